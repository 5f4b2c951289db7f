"""`flax.linen.RNN`, evaluated in parallel over time.

`flax.linen.Bidirectional` takes these layers as it takes flax's own.
"""

from typing import Any

import flax.linen as nn
import jax

from elk_ssm._types import Array, PyTree
from elk_ssm.interop.cells.layers.sequences import Direction, run_cell
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method


class RNN(nn.RNN):
    """`flax.linen.RNN` with a `method`: same constructor, parameters, call and result.

    A cell whose variables or PRNG streams change from step to step (asked for by
    `variable_axes`, `variable_carry` or `split_rngs`) is no fixed recurrence; it is
    evaluated by flax's own scan.

    Attributes:
        method: See `elk.evaluate`; None is the default method.

    Example:
        >>> import flax.linen as nn
        >>> import jax, jax.numpy as jnp
        >>> from elk_ssm.interop.cells.layers import linen
        >>> layer = linen.RNN(nn.GRUCell(features=3))
        >>> variables = layer.init(jax.random.key(0), jnp.ones((4, 50, 2)))
        >>> layer.apply(variables, jnp.ones((4, 50, 2))).shape
        (4, 50, 3)
    """

    method: Method | Auto | None = None

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: PyTree = None,
        init_key: Array | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Apply the cell along the time axis; see `flax.linen.RNN.__call__`.

        Args:
            inputs: `(*batch, T, *features)`, or `(T, *batch, *features)`.
            initial_carry: Carry with batch axes; default is the cell's.
            init_key: PRNG key of the cell's initial carry.
            seq_lengths: Valid steps `(*batch)`.
            return_carry: Overrides the attribute, as the next three do.
            time_major: Whether time is the first axis.
            reverse: Whether to run from the last valid step to the first.
            keep_order: Whether reversed outputs are put back in the inputs' order.

        Returns:
            Outputs, or (carry, outputs) with `return_carry`.
        """
        direction = Direction(
            self.time_major, self.return_carry, self.reverse, self.keep_order
        ).override(
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
        )
        if self.is_initializing() or self._changes():
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                init_key=init_key,
                seq_lengths=seq_lengths,
                **direction._asdict(),
            )
        if initial_carry is None:
            initial_carry = self._first_carry(inputs, init_key, direction.time_major)
        cell, variables = self.cell.unbind()
        return run_cell(
            lambda carry, value: cell.apply(variables, carry, value),
            initial_carry,
            inputs,
            direction,
            feature_axes=self.cell.num_feature_axes,
            seq_lengths=seq_lengths,
            method=self.method,
        )

    def _changes(self) -> bool:
        """Whether the cell's variables or streams change from step to step."""
        return (
            bool(self.variable_axes)
            or self.variable_carry is not False
            or any(self.split_rngs.values())
        )

    def _first_carry(
        self, inputs: Array, key: Array | None, time_major: bool
    ) -> PyTree:
        axis = 0 if time_major else inputs.ndim - self.cell.num_feature_axes - 1
        shape = inputs.shape[:axis] + inputs.shape[axis + 1 :]
        key = jax.random.key(0) if key is None else key
        return self.cell.initialize_carry(key, shape)
