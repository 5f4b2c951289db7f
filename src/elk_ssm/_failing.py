"""What a user's function says when it fails on one step, put into a sentence.

A step is tried once, on shapes, before anything runs. What it raises there is raised
again as the mistake that it most likely is, with the original chained to it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._trees import describe
from elk_ssm._types import PyTree

_ORDER = (
    "The order is evaluate(f, initial_state, inputs) and f(state, input); inputs "
    "have time first; batches come from jax.vmap over evaluate."
)


def shape_of_step(f: Any, state: PyTree, entry: PyTree) -> Any:
    """Return shapes and dtypes of `f(state, entry)`, or say why there are none.

    Raises:
        TypeError: f failed with a `TypeError`, or by what only a traced value forbids.
        ValueError: f failed otherwise.
    """
    try:
        return jax.eval_shape(f, state, entry)
    except Exception as error:
        cause = _cause(error)
        if cause is None and not isinstance(error, _COMMON):
            raise
        kind = TypeError if cause or isinstance(error, TypeError) else ValueError
        raise kind(
            f"f failed on one state {describe(state)} and one input "
            f"{describe(entry)}, both without time and batch axis. "
            f"{cause or _shape_cause(state, entry)} What f said: {error}"
        ) from error


_COMMON = (TypeError, ValueError, IndexError, AttributeError, KeyError)


def batch_hint(state: PyTree, entry: PyTree) -> str | None:
    """Say that there is a batch axis where state and input both seem to have one.

    The first axis of every leaf of the state stands first in the inputs too, and what
    was taken for one input has one axis more than what is left.
    """
    states = [x for x in jax.tree.leaves(state) if jnp.ndim(x) >= 2]
    entries = [x for x in jax.tree.leaves(entry) if jnp.ndim(x) >= 2]
    if not states or len(states) != len(jax.tree.leaves(state)):
        return None
    if not entries or len(entries) != len(jax.tree.leaves(entry)):
        return None
    return (
        f"The state {describe(state)} looks like it has a batch axis: use jax.vmap "
        "over evaluate, whose f, state and inputs are those of one sequence."
    )


def _shape_cause(state: PyTree, entry: PyTree) -> str:
    """Guess at what made f fail on one state and one input."""
    for name, tree in (("inputs", entry), ("initial_state", state)):
        if isinstance(tree, list):
            return (
                f"{name} is a Python list, which is a pytree of its {len(tree)} "
                "entries: if one array was meant, pass jnp.asarray(...)."
            )
    hint = batch_hint(state, entry)
    return _ORDER if hint is None else f"{hint} {_ORDER}"


def _cause(error: Exception) -> str | None:
    """Say what a traced value or a module forbids, None for other mistakes."""
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return "f uses NumPy on a traced value: write jnp.f(x) for np.f(x) in it."
    if isinstance(error, jax.errors.TracerIntegerConversionError):
        return (
            "f uses a traced value as a Python integer, as an index of a list or a "
            "number of repetitions: index a jnp array, or use jax.lax.fori_loop."
        )
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return (
            "f needs the value of a traced array in Python, as an if, while or float() "
            "does: use jnp.where, jax.lax.cond or jax.lax.while_loop."
        )
    if type(error).__module__.split(".")[0] == "flax":
        return (
            "f calls a flax.linen module inside of JAX's transformations: pass "
            "lambda h, u: cell.apply(params, h, u)[0], or what "
            "elk.interop.cells.from_cell makes of the module; a layer of a larger "
            "linen module is elk_ssm.interop.cells.layers.linen.RNN."
        )
    return None
