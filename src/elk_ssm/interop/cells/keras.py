"""Keras 3 cells on the JAX backend: stateless calls on batches of one."""

from collections.abc import Sequence
from typing import Any

import jax

from elk_ssm._types import Array, PyTree
from elk_ssm.interop.cells.detect import check_framework
from elk_ssm.interop.cells.step import CellStep


def from_keras(
    cell: Any, state: PyTree = None, *, variables: Sequence[Array] | None = None
) -> tuple[CellStep, PyTree]:
    """Turn a Keras 3 RNN cell into `(f, initial_state)`.

    The state is the list that Keras uses: `[h]`, for the LSTM `[h, c]`, each `(D,)`.
    Dropout is off, as in inference.

    Args:
        cell: A built `keras.layers` cell: SimpleRNNCell, GRUCell, LSTMCell or your own.
        state: Initial state without batch axis. Default is the cell's own
            `get_initial_state`.
        variables: Values for `cell.trainable_variables`, in that order; they may be
            traced, which is how gradients are taken. Default is the current values.

    Returns:
        f (its diagonal by autodiff) and the initial state.

    Raises:
        TypeError: The cell is not a Keras layer.
        ValueError: The backend is not JAX, or the cell is not built.

    Example:
        >>> import os; os.environ["KERAS_BACKEND"] = "jax"
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> import keras
        >>> from elk_ssm.interop import cells
        >>> cell = keras.layers.GRUCell(3); cell.build((None, 2))
        >>> f, h0 = cells.from_keras(cell)
        >>> elk.evaluate(f, h0, jnp.ones((50, 2))).states[0].shape
        (50, 3)
    """
    check_framework(cell, "keras", "a Keras 3 RNN cell")
    _check_ready(cell)
    if variables is None:
        variables = [v.value for v in cell.trainable_variables]
    fixed = [v.value for v in cell.non_trainable_variables]
    if state is None:
        state = jax.tree.map(lambda x: x[0], cell.get_initial_state(batch_size=1))

    def step(state: PyTree, inputs: PyTree) -> PyTree:
        batch = jax.tree.map(lambda x: x[None], (inputs, state))
        (_, after), _ = cell.stateless_call(list(variables), fixed, *batch)
        return jax.tree.map(lambda x: x[0], after)

    return CellStep(step), state


def _check_ready(cell: Any) -> None:
    import keras

    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=jax in the "
            "environment before importing keras."
        )
    if not cell.built:
        raise ValueError(
            "The Keras cell has no weights yet; build it first: "
            "cell.build((None, input_size))."
        )
