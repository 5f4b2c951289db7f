"""What a user's function says when it fails on one step, put into a sentence.

A step is tried once, on shapes, before anything runs. What it raises there is raised
again as the mistake that it most likely is, with the original chained to it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._trees import describe
from elk_ssm._types import PyTree


class Words(NamedTuple):
    """How a task calls what a step takes."""

    task: str = "evaluate"
    state: str = "state"
    entry: str = "input"
    initial: str = "initial_state"
    inputs: str = "inputs"

    @property
    def order(self) -> str:
        """The arguments of the task and of a step, in their order."""
        return (
            f"The order is {self.task}(f, {self.initial}, {self.inputs}) and "
            f"f({self.state}, {self.entry}); {self.inputs} have time first; batches "
            f"come from jax.vmap over {self.task}."
        )


OF_EVALUATE = Words()
OF_SCAN = Words("scan", "carry", "x", "init", "xs")


class NamedMistakeError(ValueError):
    """A mistake that a step of the package's own has named already."""


def shape_of_step(
    f: Any, state: PyTree, entry: PyTree, words: Words = OF_EVALUATE
) -> Any:
    """Return shapes and dtypes of `f(state, entry)`, or say why there are none.

    Raises:
        TypeError: f failed with a `TypeError`, or by what only a traced value forbids.
        ValueError: f failed otherwise.
    """
    try:
        return jax.eval_shape(f, state, entry)
    except NamedMistakeError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        cause = _cause(error)
        if cause is None and not isinstance(error, _COMMON):
            raise
        kind = TypeError if cause or isinstance(error, TypeError) else ValueError
        raise kind(
            f"f failed on one {words.state} {describe(state)} and one {words.entry} "
            f"{describe(entry)}, both without time and batch axis. "
            f"{cause or _shape_cause(state, entry, words)} What f said: {error}"
        ) from error


_COMMON = (TypeError, ValueError, IndexError, AttributeError, KeyError)


def batch_hint(state: PyTree, entry: PyTree, words: Words = OF_EVALUATE) -> str | None:
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
        f"The {words.state} {describe(state)} looks like it has a batch axis: use "
        f"jax.vmap over {words.task}, whose f, {words.initial} and {words.inputs} are "
        "those of one sequence."
    )


def _shape_cause(state: PyTree, entry: PyTree, words: Words) -> str:
    """Guess at what made f fail on one state and one input."""
    for name, tree in ((words.inputs, entry), (words.initial, state)):
        if isinstance(tree, list):
            return (
                f"{name} is a Python list, which is a pytree of its {len(tree)} "
                "entries: if one array was meant, pass jnp.asarray(...)."
            )
    hint = batch_hint(state, entry, words)
    return words.order if hint is None else f"{hint} {words.order}"


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
