"""flax.nnx cells: modules that hold their parameters, split and merged at each step."""

from collections.abc import Callable
from typing import Any

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


def from_nnx(cell: Any, carry: PyTree = None) -> tuple[CellStep, PyTree]:
    """Turn a flax.nnx RNN cell into `(f, initial_state)`.

    The cell is split once and merged inside f, so f is pure: what a step changes in
    the module (statistics, PRNG streams) is dropped.

    Args:
        cell: A `flax.nnx` RNN cell, such as `GRUCell(C, D, rngs=rngs)`.
        carry: Initial carry without batch axis. Default is the cell's own
            `initialize_carry`, with seed 0.

    Returns:
        f, with a closed-form diagonal for SimpleCell, GRUCell, LSTMCell and
        OptimizedLSTMCell (see `diagonal`), and the initial state.

    Raises:
        TypeError: The cell is not a flax.nnx module.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from flax import nnx
        >>> from elk_ssm.interop import cells
        >>> f, h0 = cells.from_nnx(nnx.GRUCell(2, 3, rngs=nnx.Rngs(0)))
        >>> elk.evaluate(f, h0, jnp.ones((50, 2))).states.shape
        (50, 3)
    """
    check_framework(cell, "nnx", "a flax.nnx RNN cell")
    from flax import nnx

    graph, values = nnx.split(cell)
    if carry is None:
        carry = cell.initialize_carry((1,), rngs=nnx.Rngs(0))

    def step(state: PyTree, inputs: PyTree) -> PyTree:
        return nnx.merge(graph, values)(state, inputs)[0]

    return CellStep(step, _closed_form(cell)), carry


def _closed_form(cell: Any) -> Diagonal | None:
    """Return the diagonal of a cell of flax itself; subclasses may do anything."""
    build = _BUILDERS.get((type(cell).__module__, type(cell).__name__))
    return None if build is None else build(cell)


def _array(variable: Any) -> Array:
    return jnp.asarray(variable[...])


def _affine(layer: Any) -> Callable[[Array], Array]:
    """Return one of nnx's linear layers as a function of its input alone."""
    kernel = _array(layer.kernel)
    bias = None if layer.bias is None else _array(layer.bias)

    def apply(value: Array) -> Array:
        product = jnp.dot(value, kernel)
        return product if bias is None else product + bias

    return apply


def _fused_weights(layer: Any, count: int) -> Array:
    """Diagonals of the kernels that a fused layer holds side by side, one row each."""
    parts = jnp.split(_array(layer.kernel), count, axis=-1)
    return jnp.stack([jnp.diagonal(part) for part in parts])


def _simple(cell: Any) -> Diagonal:
    of_input, of_state = _affine(cell.dense_i), _affine(cell.dense_h)
    weight = _fused_weights(cell.dense_h, 1)[0] + (1 if cell.residual else 0)

    def diagonal(hidden: Array, value: Array) -> Array:
        a = of_input(value) + of_state(hidden)
        a = a + hidden if cell.residual else a
        return vanilla_diagonal(a, weight, cell.activation_fn)

    return diagonal


def _gru(cell: Any) -> Diagonal:
    of_input, of_state = _affine(cell.dense_i), _affine(cell.dense_h)
    weights = _fused_weights(cell.dense_h, 3)

    def diagonal(hidden: Array, value: Array) -> Array:
        ir, iz, candidate = jnp.split(of_input(value), 3)
        hr, hz, recalled = jnp.split(of_state(hidden), 3)
        gates = GruGates(ir + hr, iz + hz, candidate, recalled)
        return gru_diagonal(hidden, gates, weights, cell.gate_fn, cell.activation_fn)

    return diagonal


def _lstm(cell: Any) -> Diagonal:
    inputs = [_affine(layer) for layer in (cell.ii, cell.if_, cell.ig, cell.io)]
    recurrent = (cell.hi, cell.hf, cell.hg, cell.ho)
    states = [_affine(layer) for layer in recurrent]
    weights = jnp.concatenate([_fused_weights(layer, 1) for layer in recurrent])

    def diagonal(state: tuple[Array, Array], value: Array) -> tuple[Array, Array]:
        memory, hidden = state
        gates = LstmGates(*(i(value) + h(hidden) for i, h in zip(inputs, states)))
        return lstm_diagonal(memory, gates, weights, cell.gate_fn, cell.activation_fn)

    return diagonal


def _fused_lstm(cell: Any) -> Diagonal:
    of_input, of_state = _affine(cell.dense_i), _affine(cell.dense_h)
    weights = _fused_weights(cell.dense_h, 4)

    def diagonal(state: tuple[Array, Array], value: Array) -> tuple[Array, Array]:
        memory, hidden = state
        gates = LstmGates(*jnp.split(of_input(value) + of_state(hidden), 4))
        return lstm_diagonal(memory, gates, weights, cell.gate_fn, cell.activation_fn)

    return diagonal


_HOME = "flax.nnx.nn.recurrent"
_BUILDERS: dict[tuple[str, str], Callable[[Any], Diagonal]] = {
    (_HOME, "SimpleCell"): _simple,
    (_HOME, "GRUCell"): _gru,
    (_HOME, "LSTMCell"): _lstm,
    (_HOME, "OptimizedLSTMCell"): _fused_lstm,
}
