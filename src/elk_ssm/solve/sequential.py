"""The reference: one step after the other by `jax.lax.scan`, any dtypes."""

from functools import partial

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction
from elk_ssm._trees import is_float
from elk_ssm._types import Array, PyTree


@partial(jax.jit, static_argnums=(0, 1))
def solve_sequentially(
    function: HoistedFunction,
    length: int,
    consts: list,
    initial_state: PyTree,
    inputs: PyTree,
) -> tuple[PyTree, Array]:
    """Return the states by `lax.scan`, and where a float leaf first failed or -1."""

    def body(state: PyTree, entry: PyTree) -> tuple[PyTree, PyTree]:
        state = function(consts, state, entry)
        return state, state

    states = jax.lax.scan(body, initial_state, inputs, length=length)[1]
    finite = jnp.ones(length, bool)
    for leaf in jax.tree.leaves(states):
        if is_float(leaf):
            finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
    first = jnp.argmin(finite).astype(jnp.int32)
    return states, jnp.where(jnp.all(finite), -1, first)
