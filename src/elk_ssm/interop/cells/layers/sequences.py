"""Batches of sequences through a cell: axes, lengths and directions.

Conventions are those of `flax.linen.RNN`. Inputs are `(*batch, T, *features)`, or
`(T, *batch, *features)` when time-major. `seq_lengths`, of shape `(*batch)`, says how
many of the first steps of each sequence are meant; the rest is padding at the end.
Outputs at padding are those of the cell run on over it, as in flax: they are neither
zeroed nor used for anything else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.scanning import scan
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method

Cell = Callable[[PyTree, Array], tuple[PyTree, PyTree]]


class Direction(NamedTuple):
    """How a batch of sequences is read, `flax.linen.RNN`'s options of the same name."""

    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False

    def override(self, **options: bool | None) -> "Direction":
        """Replace what is not None."""
        given = {name: value for name, value in options.items() if value is not None}
        return self._replace(**given)


def run_cell(
    cell: Cell,
    carry: PyTree,
    inputs: Array,
    direction: Direction,
    *,
    feature_axes: int = 1,
    seq_lengths: Array | None = None,
    method: Method | Auto | None = None,
) -> Any:
    """Run a cell over a batch of sequences, in parallel over time.

    Args:
        cell: `cell(carry, input) -> (carry, output)`, without batch axes.
        carry: Initial carry with the batch axes first on every leaf.
        inputs: `(*batch, T, *features)`, or `(T, *batch, *features)`.
        direction: How to read and return them.
        feature_axes: Number of axes of one input.
        seq_lengths: Lengths `(*batch)`, or None.
        method: See `elk.evaluate`.

    Returns:
        The outputs in the axes of the inputs; with `return_carry` the pair (carry,
        outputs), where the carry is that after each sequence's last valid step.

    Raises:
        ValueError: The inputs have too few axes, or lengths do not fit the batch.
    """
    batch_axes = check_axes(inputs, feature_axes, direction.time_major, seq_lengths)
    if direction.time_major:
        inputs = jnp.moveaxis(inputs, 0, batch_axes)
    if direction.reverse:
        inputs = flip(inputs, seq_lengths, batch_axes)
    pick = direction.return_carry and seq_lengths is not None

    def step(carry: PyTree, value: Array) -> tuple[PyTree, PyTree]:
        carry, output = cell(carry, value)
        return carry, (carry if pick else (), output)

    def one(carry: PyTree, values: Array) -> tuple[PyTree, PyTree]:
        return scan(step, carry, values, method=method)

    run = one
    for _ in range(batch_axes):
        run = jax.vmap(run)
    last, (carries, outputs) = run(carry, inputs)
    if pick:
        last = _at_last_step(carries, seq_lengths, batch_axes)
    if direction.reverse and direction.keep_order:
        outputs = jax.tree.map(lambda x: flip(x, seq_lengths, batch_axes), outputs)
    if direction.time_major:
        outputs = jax.tree.map(lambda x: jnp.moveaxis(x, batch_axes, 0), outputs)
    return (last, outputs) if direction.return_carry else outputs


def check_axes(
    inputs: Array, feature_axes: int, time_major: bool, seq_lengths: Array | None
) -> int:
    """Return the number of batch axes, or raise `ValueError`."""
    batch_axes = inputs.ndim - feature_axes - 1
    if batch_axes < 0:
        raise ValueError(
            f"inputs need a time axis and {feature_axes} feature axes; got shape "
            f"{inputs.shape}."
        )
    first = 1 if time_major else 0
    batch = inputs.shape[first : first + batch_axes]
    if seq_lengths is not None and jnp.shape(seq_lengths) != batch:
        raise ValueError(
            f"seq_lengths must have the shape {batch} of the batch; got "
            f"{jnp.shape(seq_lengths)}."
        )
    return batch_axes


def flip(x: Array, lengths: Array | None, batch_axes: int) -> Array:
    """Reverse each sequence along its time axis, padding kept at the end.

    Args:
        x: `(*batch, T, ...)`.
        lengths: Valid steps `(*batch)`, or None for all.
        batch_axes: Number of batch axes.
    """
    if lengths is None:
        return jnp.flip(x, axis=batch_axes)
    steps = x.shape[batch_axes]
    positions = (
        steps - 1 - jnp.arange(steps) + jnp.asarray(lengths)[..., None]
    ) % steps
    return _take(x, positions, batch_axes)


def _at_last_step(carries: PyTree, lengths: Any, batch_axes: int) -> PyTree:
    last = jnp.asarray(lengths)[..., None] - 1

    def pick(x: Array) -> Array:
        return jnp.squeeze(_take(x, last, batch_axes), batch_axes)

    return jax.tree.map(pick, carries)


def _take(x: Array, positions: Array, batch_axes: int) -> Array:
    features = x.ndim - batch_axes - 1
    positions = positions.reshape(*positions.shape, *(1,) * features)
    return jnp.take_along_axis(x, positions, axis=batch_axes)
