r"""The one driver of all recursions over time.

Time is cut into shards. Every shard reduces its steps to one element, the state that
enters it is what the elements of all earlier shards make of the initial one, and it
runs its steps from there. What differs is where the shards live:

| where | a shard is | inside a shard |
|---|---|---|
| one shard | the whole series | one `lax.scan` |
| devices | what a device of a mesh holds | two scans, or a prefix scan |
| lanes | a piece of a series, under `jax.vmap` | two scans |

An associative scan over the entries of a shard (`prefix`) is what an accelerator runs;
`backend` chooses. Lanes are cut from what a device holds, so both may be had at once.
A reversed run goes through the same entries from the last to the first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.parallel.backend import Backend, by_backend
from elk_ssm.parallel.every_step import at_every_step
from elk_ssm.parallel.prefix import prefix_scan
from elk_ssm.parallel.recursion import Recursion
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.parallel.tree import climb, descend, whole


def run(
    recursion: Recursion,
    *,
    backend: Backend,
    axis: TimeAxis = LOCAL,
    reverse: bool = False,
    before: bool = False,
    lanes: int = 1,
) -> Any:
    """Run a recursion through time.

    Args:
        recursion: The recursion; on a mesh it holds the entries of this device.
        backend: `"auto"`, `"sequential"` or `"associative"`.
        axis: Where time lives, in the direction of time, whatever `reverse`.
        reverse: Whether to run from the last entry to the first. The state that enters
            is then the last device's `initial`, otherwise the first one's.
        before: Whether to return the states before the steps instead of outputs.
        lanes: Into how many pieces to cut a sequential run.

    Returns:
        The outputs, in the order of the entries, leading axis T.
    """
    axis = axis.reversed() if reverse else axis
    sequential = partial(_lanes, lanes=lanes) if lanes > 1 else _sequential
    how = {"reverse": reverse, "before": before}
    return by_backend(
        backend,
        partial(sequential, recursion, axis, **how),
        partial(_prefix, recursion, axis, **how),
    )[0]


def run_both(
    forward: Recursion,
    backward: Callable[[Any], Recursion],
    *,
    backend: Backend,
    axis: TimeAxis,
) -> tuple[Any, Any]:
    """Run forwards, and backwards through the same elements: a mesh gathers once.

    Args:
        forward: The first recursion.
        backward: Makes the second one of the outputs of the first. Its elements are the
            same, combined in the other order, and what enters the last of all is what
            `nothing` ends in.
        backend: As for `run`.
        axis: Where time lives.

    Returns:
        The outputs of both.
    """

    def way(recursion: Recursion, reverse: bool, every: Any) -> tuple[Any, Any]:
        how: Any = {"reverse": reverse, "before": False, "every": every}
        where = axis.reversed() if reverse else axis
        return by_backend(
            backend,
            partial(_sequential, recursion, where, **how),
            partial(_prefix, recursion, where, **how),
        )

    there, every = way(forward, False, None)
    every = jax.tree.map(lambda x: x[::-1], every)
    return there, way(backward(there), True, every)[0]


def _sequential(recursion: Recursion, axis: TimeAxis, **how: Any) -> tuple[Any, Any]:
    """Run through the steps of a device."""
    recursion = recursion.prepared() if axis.is_sharded else recursion
    return _shard(recursion, axis, (None, recursion.entries), **how)


def _shard(
    recursion: Recursion,
    axis: TimeAxis,
    entries: tuple,
    *,
    reverse: bool,
    before: bool,
    every: Any = None,
) -> tuple[Any, Any]:
    """Run through the steps of a shard, and before for what they do to any state.

    Args:
        recursion: The recursion.
        axis: Where the shards live.
        entries: Which of the entries exist (None: all), and the entries.
        reverse: The direction.
        before: Whether to return the states before the steps.
        every: What each shard does as one element, in the order of the run, if known.

    Returns:
        The outputs, and `every` of more shards than one.
    """

    def append(run: Any, entry: tuple) -> tuple[Any, None]:
        return _if(entry[0], recursion.append(run, entry[1]), run), None

    def step(state: Any, entry: tuple) -> tuple[Any, Any]:
        after, output = recursion.step(state, entry[1])
        after = _if(entry[0], after, state)
        return after, after if before else output

    start = recursion.initial
    if axis.is_sharded and every is None:
        begin = _beginning(recursion, axis)
        every = axis.gather(jax.lax.scan(append, begin, entries, reverse=reverse)[0])
    if axis.is_sharded:
        start = _exclusive(recursion, axis, every, "sequential")
    found = jax.lax.scan(step, start, entries, reverse=reverse)[1]
    return _shift(start, found, reverse) if before else found, every


def _prefix(
    recursion: Recursion,
    axis: TimeAxis,
    *,
    reverse: bool,
    before: bool,
    every: Any = None,
) -> tuple[Any, Any]:
    """Combine all elements of a shard, and let them act on the state that enters."""
    if recursion.fan_in:
        return _by_tree(recursion, axis, reverse=reverse, before=before, every=every)
    entries, begin = recursion.entries, _beginning(recursion, axis)
    written = not recursion.rare
    elements = at_every_step(recursion.element, entries, written=written)
    elements = jax.tree.map(lambda x, y: _ahead(x, y, reverse), begin, elements)
    how = {"reverse": reverse, "written": written}
    up_to = prefix_scan(recursion.combine, elements, **how)
    up_to = jax.tree.map(lambda x: x[:-1] if reverse else x[1:], up_to)
    if axis.is_sharded:
        if every is None:
            every = axis.gather(jax.tree.map(lambda x: x[0 if reverse else -1], up_to))
        start = _exclusive(recursion, axis, every, "associative")
        after = jax.vmap(recursion.act, (0, None))(up_to, start)
    else:
        start, after = recursion.initial, recursion.state(up_to)
    earlier = _shift(start, after, reverse)
    outputs = earlier if before else recursion.outputs(earlier, entries, after)
    return outputs, every


def _by_tree(
    recursion: Recursion, axis: TimeAxis, *, reverse: bool, before: bool, every: Any
) -> tuple[Any, Any]:
    """Combine up a tree, and let its elements act on states on the way down."""

    def ordered(elements: Any) -> Any:
        return jax.tree.map(lambda x: x[::-1], elements) if reverse else elements

    entries, start = recursion.entries, recursion.initial
    tree = climb(recursion, ordered(jax.vmap(recursion.element)(entries)))
    if axis.is_sharded:
        if every is None:
            every = whole(recursion, tree)
            every = axis.gather(recursion.combine(_beginning(recursion, axis), every))
        start = _exclusive(recursion, axis, every, "associative")
    after = ordered(descend(recursion, tree, start))
    earlier = _shift(start, after, reverse)
    outputs = earlier if before else recursion.outputs(earlier, entries, after)
    return outputs, every


def _lanes(
    recursion: Recursion, axis: TimeAxis, *, lanes: int, **how: bool
) -> tuple[Any, None]:
    """Run K pieces side by side, the last one filled up with steps that do nothing."""
    recursion = recursion.prepared()
    length = jax.tree.leaves(recursion.entries)[0].shape[0]
    piece = -(-length // min(lanes, length))
    count = -(-length // piece)

    def cut(x: Array) -> Array:
        filled = jnp.concatenate([x, jnp.repeat(x[-1:], count * piece - length, 0)])
        return filled.reshape(count, piece, *x.shape[1:])

    real = None
    if count * piece > length:
        real = (jnp.arange(count * piece) < length).reshape(count, piece)
    inside = axis.lanes(count)

    def one(entries: Any) -> Any:
        return _shard(recursion, inside, entries, **how)[0]

    entries = real, jax.tree.map(cut, recursion.entries)
    found = jax.vmap(one, axis_name=inside.name)(entries)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:length], found), None


def _beginning(recursion: Recursion, axis: TimeAxis) -> Any:
    """Return what a shard appends its steps to: on the first one, what is known."""
    begin = recursion.known(recursion.initial)
    if not axis.is_sharded:
        return begin
    return _where(axis.axis_index == 0, begin, recursion.nothing())


def _exclusive(
    recursion: Recursion, axis: TimeAxis, every: Any, backend: Backend
) -> Any:
    """Return the state that enters a shard, of what every shard does."""
    first, later = (
        jax.tree.map(lambda x: x[0], every),
        jax.tree.map(lambda x: x[1:], every),
    )

    def through(state: Any, run: Any) -> tuple[Any, Any]:
        return recursion.act(run, state), state

    if backend == "sequential":
        last, states = jax.lax.scan(through, recursion.state(first), later)
        states = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), states, last)
    else:
        states = recursion.state(prefix_scan(recursion.combine, every))
    place = axis.axis_index
    earlier = jax.tree.map(lambda x: x[jnp.maximum(place - 1, 0)], states)
    return _where(place == 0, recursion.initial, earlier)


def _shift(start: Any, after: Any, reverse: bool) -> Any:
    """Return the state before each step from those after."""

    def one(first: Array, x: Array) -> Array:
        return _ahead(first, x[1:] if reverse else x[:-1], reverse)

    return jax.tree.map(one, start, after)


def _ahead(first: Array, x: Array, reverse: bool) -> Array:
    """Put what comes first in the direction of the run before all else."""
    return jnp.concatenate([x, first[None]] if reverse else [first[None], x])


def _if(real: Array | None, moved: Any, same: Any) -> Any:
    """Pass over what does not exist."""
    return moved if real is None else _where(real, moved, same)


def _where(condition: Any, chosen: Any, other: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), chosen, other)
