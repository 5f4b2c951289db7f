"""flax.linen cells: functions of (variables, carry, input), carry first."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.interop.cells.detect import check_framework
from elk_ssm.interop.cells.diagonals import (
    GruGates,
    LstmGates,
    gru_diagonal,
    lstm_diagonal,
    vanilla_diagonal,
)
from elk_ssm.interop.cells.step import CellStep

Diagonal = Callable[[PyTree, PyTree], PyTree]


def from_linen(
    cell: Any, variables: Mapping[str, Any], carry: PyTree = None
) -> tuple[CellStep, PyTree]:
    """Turn a flax.linen RNN cell into `(f, initial_state)`.

    Args:
        cell: A `flax.linen` RNN cell, such as `GRUCell(features=D)`, not bound.
        variables: What `cell.init` returned, `{"params": ...}`. May be traced: take
            the gradient of a loss that calls `from_linen` inside.
        carry: Initial carry without batch axis, `(D,)` or a tuple of such. Default is
            the cell's own `initialize_carry`, with key 0.

    Returns:
        f, with a closed-form diagonal for SimpleCell, GRUCell, MGUCell, LSTMCell and
        OptimizedLSTMCell (see `diagonal`), and the initial state.

    Raises:
        TypeError: The cell is not a flax.linen module.
        ValueError: The variables have no collection "params".

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> import flax.linen as nn
        >>> from elk_ssm.interop import cells
        >>> cell, key = nn.GRUCell(features=3), jax.random.key(0)
        >>> variables = cell.init(key, jnp.zeros(3), jnp.zeros(2))
        >>> f, h0 = cells.from_linen(cell, variables)
        >>> elk.evaluate(f, h0, jnp.ones((50, 2))).states.shape
        (50, 3)
    """
    check_framework(cell, "linen", "a flax.linen RNN cell")
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = list(variables) if isinstance(variables, Mapping) else variables
        raise ValueError(
            'variables must be what cell.init returned, {"params": ...}; got '
            f"{found!r}. Wrap bare parameters as {{'params': parameters}}."
        )
    if carry is None:
        carry = cell.initialize_carry(jax.random.key(0), (1,))

    def step(state: PyTree, inputs: PyTree) -> PyTree:
        return cell.apply(variables, state, inputs)[0]

    return CellStep(step, _closed_form(cell, variables["params"])), carry


def _closed_form(cell: Any, params: Mapping[str, Any]) -> Diagonal | None:
    """Return the diagonal of a cell of flax itself; subclasses may do anything."""
    build = _BUILDERS.get((type(cell).__module__, type(cell).__name__))
    return None if build is None else build(cell, params)


def _affine(params: Mapping[str, Any], name: str, value: Array) -> Array:
    """Apply one of flax's dense layers."""
    layer = params[name]
    product = jnp.dot(value, layer["kernel"])
    return product + layer["bias"] if "bias" in layer else product


def _weights(params: Mapping[str, Any], *names: str) -> Array:
    """Diagonals of the recurrent kernels, one row each."""
    return jnp.stack([jnp.diagonal(params[name]["kernel"]) for name in names])


def _simple(cell: Any, params: Mapping[str, Any]) -> Diagonal:
    weight = _weights(params, "h")[0] + (1 if cell.residual else 0)

    def diagonal(hidden: Array, value: Array) -> Array:
        a = _affine(params, "i", value) + _affine(params, "h", hidden)
        a = a + hidden if cell.residual else a
        return vanilla_diagonal(a, weight, cell.activation_fn)

    return diagonal


def _gru(cell: Any, params: Mapping[str, Any]) -> Diagonal:
    weights = _weights(params, "hr", "hz", "hn")
    affine = partial(_affine, params)

    def diagonal(hidden: Array, value: Array) -> Array:
        gates = GruGates(
            affine("ir", value) + affine("hr", hidden),
            affine("iz", value) + affine("hz", hidden),
            affine("in", value),
            affine("hn", hidden),
        )
        return gru_diagonal(hidden, gates, weights, cell.gate_fn, cell.activation_fn)

    return diagonal


def _mgu(cell: Any, params: Mapping[str, Any]) -> Diagonal | None:
    if not cell.reset_gate:
        return None
    weights = _weights(params, "hf", "hf", "hn")
    affine = partial(_affine, params)

    def diagonal(hidden: Array, value: Array) -> Array:
        forget = affine("if", value) + affine("hf", hidden)
        gates = GruGates(forget, forget, affine("in", value), affine("hn", hidden))
        return gru_diagonal(hidden, gates, weights, cell.gate_fn, cell.activation_fn)

    return diagonal


def _lstm(cell: Any, params: Mapping[str, Any]) -> Diagonal:
    weights = _weights(params, "hi", "hf", "hg", "ho")

    def diagonal(state: tuple[Array, Array], value: Array) -> tuple[Array, Array]:
        memory, hidden = state
        gates = LstmGates(
            *(
                _affine(params, f"i{g}", value) + _affine(params, f"h{g}", hidden)
                for g in "ifgo"
            )
        )
        return lstm_diagonal(memory, gates, weights, cell.gate_fn, cell.activation_fn)

    return diagonal


_HOME = "flax.linen.recurrent"
_BUILDERS: dict[tuple[str, str], Callable[..., Diagonal | None]] = {
    (_HOME, "SimpleCell"): _simple,
    (_HOME, "GRUCell"): _gru,
    (_HOME, "MGUCell"): _mgu,
    (_HOME, "LSTMCell"): _lstm,
    (_HOME, "OptimizedLSTMCell"): _lstm,
}
