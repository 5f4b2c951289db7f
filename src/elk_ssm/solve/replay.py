r"""Derivatives of recurrences with vector-Jacobian rules: those of `lax.scan`.

The rule of a `jax.custom_vjp` need not be linear (a clipped gradient), nor the
transpose of anything (a surrogate gradient). So it must be applied where `lax.scan`
applies it: once in every step, to all of the cotangent that arrives there, last step
first,

    w_t = v_t + p_{t+1},     (p_t, inputs, consts) += rules of step t at x_{t-1} (w_t).

No adjoint system is solved. The trajectory found in parallel is followed by a scan that
takes its values from it and its derivatives from f,

    c_t = graft(x_t, f(c_{t-1}, u_t)),          c_0 = x_0,

where `graft(value, carrier)` is the value with the derivatives of the carrier. JAX
differentiates that scan as any other: reverse mode to any order, batches, and the
message of forward mode, which such rules do not have. Where nothing is differentiated
no value depends on the scan, and the compiler drops it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction
from elk_ssm._types import Array, PyTree
from elk_ssm.solve.nodes import block_map, in_blocks, shift
from elk_ssm.solve.problem import Primals, StepWithConsts

StepWithOutput = Callable[[list, Array, PyTree], tuple[Array, PyTree]]


@jax.custom_jvp
def graft(value: Array, carrier: Array) -> Array:
    """Return `value` with the derivatives, of any order, of `carrier`."""
    return value


@graft.defjvp
def _graft_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return graft(*primals), tangents[1]


def _graft_in_scan(value: Array, carrier: Array) -> Array:
    """`graft` by arithmetic: second derivatives of `lax.scan` lose custom rules."""
    # Written so that the sign of a zero survives.
    return value - (jax.lax.stop_gradient(carrier) - carrier)


def attach(value: Array, carrier: Array) -> Array:
    """`graft` where there are derivatives, else the value."""
    moves = jnp.issubdtype(value.dtype, jnp.inexact)
    return graft(value, carrier) if moves else value


def replay(
    function: StepWithOutput, primals: Primals, states: Array
) -> tuple[Array, PyTree]:
    """Follow a known trajectory by a scan, for its derivatives.

    Args:
        function: `function(consts, state, input) -> (state, output)`.
        primals: Constants, initial state and inputs.
        states: The trajectory at the primals, `(T, D)`; its derivatives do not count.

    Returns:
        The states with the derivatives of the scan, and the stacked outputs.
    """
    consts, initial, inputs = primals
    known = jax.lax.stop_gradient(states)

    # Only the states are kept for reverse mode: a step is taken again there.
    @partial(jax.checkpoint, prevent_cse=False)
    def body(before: Array, entry: tuple) -> tuple[Array, tuple[Array, PyTree]]:
        value, user_input = entry
        found, output = function(consts, before, user_input)
        return _graft_in_scan(value, found), (found, output)

    carrier, outputs = jax.lax.scan(body, initial, (known, inputs))[1]
    return graft(known, carrier), outputs


@partial(jax.jit, static_argnums=0)
def replay_outputs(
    function: HoistedFunction, primals: Primals, states: Array
) -> tuple[Array, PyTree]:
    """`replay` with the values of the outputs found side by side, as the states are."""
    consts, initial, inputs = jax.lax.stop_gradient(primals)
    before = jax.lax.stop_gradient(shift(initial, states))
    values = jax.vmap(lambda x, u: function(consts, x, u)[1])(before, inputs)
    states, outputs = replay(function, primals, states)
    return states, jax.tree.map(attach, values, outputs)


def replay_states(
    function: StepWithConsts, primals: Primals, states: Array, block_size: int
) -> Array:
    """`replay` without outputs, of states at the ends of blocks of C steps."""
    if block_size > 1:
        consts, initial, inputs = primals
        primals = consts, initial, in_blocks(inputs, states.shape[0], block_size)

    def step(consts: list, state: Array, entry: PyTree) -> tuple[Array, tuple]:
        if block_size == 1:
            return function(consts, state, entry), ()
        return block_map(partial(function, consts), block_size)(state, entry), ()

    return replay(step, primals, states)[0]
