"""`flax.nnx.RNN`, evaluated in parallel over time.

`flax.nnx.Bidirectional` takes these layers as it takes flax's own.
"""

from typing import Any

import jax
from flax import nnx

from elk_ssm._types import Array, PyTree
from elk_ssm.interop.cells.layers.sequences import Direction, run_cell
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method


class _Choice:
    """Holds a method as part of a module's structure; compares by identity."""

    def __init__(self, method: Method | Auto | None):
        self.method = method


class RNN(nnx.RNN):
    """`flax.nnx.RNN` with a `method`: same constructor, parameters, call and result.

    A cell that holds more than parameters (PRNG streams, statistics) changes from step
    to step and is no fixed recurrence; it is evaluated by flax's own scan.

    Args:
        cell: A `flax.nnx` RNN cell.
        method: See `elk.evaluate`; None is the default method.
        **options: What else `flax.nnx.RNN` takes: `time_major`, `return_carry`,
            `reverse`, `keep_order`, `unroll`, `state_axes`, `broadcast_rngs`, `rngs`.

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> from elk_ssm.interop.cells.layers import nnx as layers
        >>> layer = layers.RNN(nnx.GRUCell(2, 3, rngs=nnx.Rngs(0)))
        >>> layer(jnp.ones((4, 50, 2))).shape
        (4, 50, 3)
    """

    def __init__(
        self,
        cell: nnx.RNNCellBase,
        *,
        method: Method | Auto | None = None,
        **options: Any,
    ):
        super().__init__(cell, **options)
        self.choice = _Choice(method)

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: PyTree = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Apply the cell along the time axis; see `flax.nnx.RNN.__call__`.

        Args:
            inputs: `(*batch, T, *features)`, or `(T, *batch, *features)`.
            initial_carry: Carry with batch axes; default is the cell's.
            seq_lengths: Valid steps `(*batch)`.
            return_carry: Overrides the constructor's option, as the next three do.
            time_major: Whether time is the first axis.
            reverse: Whether to run from the last valid step to the first.
            keep_order: Whether reversed outputs are put back in the inputs' order.
            rngs: PRNG streams of the cell's initial carry.

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
        graph, *states = nnx.split(self.cell, nnx.Param, ...)
        if jax.tree.leaves(states[1]):
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                seq_lengths=seq_lengths,
                rngs=rngs,
                **direction._asdict(),
            )
        if initial_carry is None:
            initial_carry = self._first_carry(inputs, rngs, direction.time_major)

        def step(carry: PyTree, value: Array) -> tuple[PyTree, Array]:
            return nnx.merge(graph, *states)(carry, value)

        return run_cell(
            step,
            initial_carry,
            inputs,
            direction,
            feature_axes=self.cell.num_feature_axes,
            seq_lengths=seq_lengths,
            method=self.choice.method,
        )

    def _first_carry(self, inputs: Array, rngs: Any, time_major: bool) -> PyTree:
        axis = 0 if time_major else inputs.ndim - self.cell.num_feature_axes - 1
        shape = inputs.shape[:axis] + inputs.shape[axis + 1 :]
        rngs = self.rngs if rngs is None else rngs
        rngs = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
        return self.cell.initialize_carry(shape, rngs)
