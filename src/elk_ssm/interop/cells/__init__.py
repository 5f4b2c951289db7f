"""Cells of every framework as recurrences `f(state, input) -> state`.

    f, initial_state = cells.from_cell(cell, ...)
    sol = elk.evaluate(f, initial_state, inputs)
    sol = elk.evaluate(f, initial_state, inputs,
                       method=elk.quasi_deer(linearization=cells.diagonal(f)))

Layers that stand in for the frameworks' own RNN layers are in `cells.layers.linen`,
`cells.layers.nnx` and `cells.layers.equinox`. No framework is imported before it is
used.
"""

from collections.abc import Callable
from typing import Any

from elk_ssm._types import PyTree
from elk_ssm.interop.cells.detect import framework_of, unknown_cell
from elk_ssm.interop.cells.equinox import from_equinox
from elk_ssm.interop.cells.haiku import from_haiku
from elk_ssm.interop.cells.keras import from_keras
from elk_ssm.interop.cells.linen import from_linen
from elk_ssm.interop.cells.nnx import from_nnx
from elk_ssm.interop.cells.paired import (
    PairedLSTM,
    init_paired_lstm,
    paired_lstm,
)
from elk_ssm.interop.cells.parallel import (
    DiagonalGRU,
    DiagonalLSTM,
    diagonal_gru,
    diagonal_lstm,
    init_diagonal_gru,
    init_diagonal_lstm,
    lstm_output,
)
from elk_ssm.interop.cells.step import CellStep, diagonal

_ADAPTERS: dict[str, Callable[..., tuple[CellStep, PyTree]]] = {
    "linen": from_linen,
    "nnx": from_nnx,
    "equinox": from_equinox,
    "haiku": from_haiku,
    "keras": from_keras,
}


def from_cell(cell: Any, *args: Any, **kwargs: Any) -> tuple[CellStep, PyTree]:
    """Turn a cell of any known framework into `(f, initial_state)`.

    The framework is read off the object's class; see the adapter for what else it
    takes: `from_linen(cell, variables, carry)`, `from_nnx(cell, carry)`,
    `from_equinox(cell, state)`, `from_haiku(transformed, params, state)`,
    `from_keras(cell, state)`.

    Args:
        cell: A cell, or for haiku the transform of one.
        *args: Passed on to the adapter.
        **kwargs: Passed on to the adapter.

    Returns:
        f and the initial state, without batch axis.

    Raises:
        TypeError: No adapter knows the object; the message lists those that exist and
            how to write the closure by hand.

    Example:
        >>> import jax, equinox as eqx
        >>> from elk_ssm.interop import cells
        >>> f, h0 = cells.from_cell(eqx.nn.GRUCell(2, 3, key=jax.random.key(0)))
        >>> h0.shape
        (3,)
    """
    framework = framework_of(cell)
    if framework is None:
        raise unknown_cell(cell)
    return _ADAPTERS[framework](cell, *args, **kwargs)


__all__ = [
    "CellStep",
    "DiagonalGRU",
    "DiagonalLSTM",
    "PairedLSTM",
    "diagonal",
    "diagonal_gru",
    "diagonal_lstm",
    "from_cell",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "init_diagonal_gru",
    "init_diagonal_lstm",
    "init_paired_lstm",
    "lstm_output",
    "paired_lstm",
]
