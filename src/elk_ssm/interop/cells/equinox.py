"""equinox cells: modules called as `cell(input, state)`, input first and unbatched."""

from collections.abc import Callable
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
)
from elk_ssm.interop.cells.step import CellStep

Diagonal = Callable[[PyTree, PyTree], PyTree]


def from_equinox(cell: Any, state: PyTree = None) -> tuple[CellStep, PyTree]:
    """Turn an equinox RNN cell into `(f, initial_state)`.

    Args:
        cell: `equinox.nn.GRUCell`, `equinox.nn.LSTMCell`, or any equinox module called
            as `cell(input, state) -> state`.
        state: Initial state. Default is zeros: `(D,)` for the GRU, the pair (hidden,
            memory) for the LSTM; other modules need it.

    Returns:
        f, with a closed-form diagonal for both cells of equinox (see `diagonal`), and
        the initial state.

    Raises:
        TypeError: The cell is not an equinox module.
        ValueError: The module is not a cell of equinox and no state was given.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> import equinox as eqx
        >>> from elk_ssm.interop import cells
        >>> f, h0 = cells.from_equinox(eqx.nn.GRUCell(2, 3, key=jax.random.key(0)))
        >>> elk.evaluate(f, h0, jnp.ones((50, 2))).states.shape
        (50, 3)
    """
    check_framework(cell, "equinox", "an equinox module")
    state = zero_state(cell) if state is None else state

    def step(state: PyTree, inputs: PyTree) -> PyTree:
        return cell(inputs, state)

    return CellStep(step, _closed_form(cell)), state


def zero_state(cell: Any) -> PyTree:
    """Return the state of zeros of a cell of equinox, or raise `ValueError`."""
    kind = _kind(cell)
    if kind is None:
        raise ValueError(
            f"{type(cell).__name__} does not say what its state is; pass it: "
            "from_equinox(cell, state)."
        )
    zeros = jnp.zeros(cell.hidden_size, cell.weight_hh.dtype)
    return zeros if kind == "GRUCell" else (zeros, zeros)


def _kind(cell: Any) -> str | None:
    """Name of a cell of equinox itself; None for other modules and for subclasses."""
    known = type(cell).__module__.startswith("equinox.nn")
    name = type(cell).__name__
    return name if known and name in ("GRUCell", "LSTMCell") else None


def _closed_form(cell: Any) -> Diagonal | None:
    build = {"GRUCell": _gru, "LSTMCell": _lstm}.get(_kind(cell) or "")
    return None if build is None else build(cell)


def _weights(cell: Any, count: int) -> Array:
    """Diagonals of the recurrent kernels, one row each."""
    parts = jnp.split(cell.weight_hh, count)
    return jnp.stack([jnp.diagonal(part) for part in parts])


def _from_input(cell: Any, value: Array) -> Array:
    product = cell.weight_ih @ value
    return product if cell.bias is None else product + cell.bias


def _gru(cell: Any) -> Diagonal:
    weights = _weights(cell, 3)

    def diagonal(hidden: Array, value: Array) -> Array:
        ir, iz, candidate = jnp.split(_from_input(cell, value), 3)
        hr, hz, recalled = jnp.split(cell.weight_hh @ hidden, 3)
        recalled = recalled if cell.bias_n is None else recalled + cell.bias_n
        gates = GruGates(ir + hr, iz + hz, candidate, recalled)
        return gru_diagonal(hidden, gates, weights, jax.nn.sigmoid, jnp.tanh)

    return diagonal


def _lstm(cell: Any) -> Diagonal:
    weights = _weights(cell, 4)

    def diagonal(state: tuple[Array, Array], value: Array) -> tuple[Array, Array]:
        hidden, memory = state
        gates = LstmGates(
            *jnp.split(_from_input(cell, value) + cell.weight_hh @ hidden, 4)
        )
        of_memory, of_hidden = lstm_diagonal(
            memory, gates, weights, jax.nn.sigmoid, jnp.tanh
        )
        return of_hidden, of_memory

    return diagonal
