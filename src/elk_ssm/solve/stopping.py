"""When the iteration may stop. Every test is written so that a NaN fails it.

A jitted `jnp.max` on the CPU backend of jaxlib 0.10.2 drops NaNs for some shapes, so
no decision is taken on a maximum: comparisons are made entry by entry (a NaN compares
false) and joined by the position of the first one that fails, which devices that share
the time axis agree on.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from elk_ssm._types import Array, ArrayLike
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis

# Sizes are seen over so many steps, in windows of so many unknowns.
_REACH_STEPS, _WINDOW = 64, 8
_ROUNDING_UNITS = 32
_TIGHT, _ROUNDING_UNITS_OF_BLOCK = 0.1, 16
_SLOWEST_ROOM = 0.2
_SMALLEST_STATE = 1e-12


class Tolerance(NamedTuple):
    """What counts as no error: `relative` to a state's size, and `absolute`."""

    relative: Array
    absolute: Array

    def bound(self, scale: Array) -> Array:
        """Largest error allowed of states of these sizes."""
        return jnp.maximum(self.relative * scale, self.absolute)

    def times(self, factor: ArrayLike) -> "Tolerance":
        """Return a tighter (or looser) tolerance."""
        return Tolerance(self.relative * factor, self.absolute * factor)


class Facts(NamedTuple):
    """What a pass is judged by.

    Attributes:
        residual: `(n, D)`, x_t - f(x_{t-1}, u_t) at the iterate.
        step: `(n, D)`, the undamped step from it.
        alike: `(n, D)`, whether state and rollout value have the same sign if zero.
        inexact: `(n,)`, which nodes are beyond the exact prefix and not exact.
    """

    residual: Array
    step: Array
    alike: Array
    inexact: Array


class Verdict(NamedTuple):
    """What one pass concludes, all booleans and integers of shape `()`.

    Attributes:
        first_inexact: Position of the first node beyond the exact prefix.
        converged: Residual and undamped step are below tolerance everywhere; or the
            residual is at the rounding floor, and the step below the tolerance of the
            largest state of all.
        suspect: f is non-finite at a step before which everything is below tolerance;
            whether it is at the exact states too is for `solve.failure` to find.
        stalled: The residual is at the rounding floor and the step does not shrink.
            `PATIENCE` such passes in a row mean that rounding is the limit.
        residual_norm: Largest residual, `inf` for a NaN.
        step_norm: Largest undamped step, `inf` for a NaN.
    """

    first_inexact: Array
    converged: Array
    suspect: Array
    stalled: Array
    residual_norm: Array
    step_norm: Array


def default_tolerance(dtype: jnp.dtype) -> float:
    """Relative tolerance of a dtype: 1e-5 in float32, 1e-12 in float64."""
    return 1e-12 if jnp.finfo(dtype).bits == 64 else 1e-5


def make_tolerance(
    relative: ArrayLike | None, absolute: ArrayLike | None, dtype: Any
) -> Tolerance:
    """Fill in what was not given: states below 1e-12 count as no larger than that."""
    relative = default_tolerance(dtype) if relative is None else relative
    relative = jnp.asarray(relative, dtype)
    if absolute is None:
        absolute = _SMALLEST_STATE * relative
    return Tolerance(relative, jnp.asarray(absolute, dtype))


def per_block(tolerance: Tolerance, count: int, dtype: Any) -> Tolerance:
    """What one of `count` blocks may be off, as errors of blocks may add up.

    A tenth of the tolerance for all, but no block is asked for more than rounding.
    """
    tight = tolerance.times(_TIGHT)
    rounding = _ROUNDING_UNITS_OF_BLOCK * jnp.finfo(dtype).eps
    relative = jnp.maximum(tight.relative / count, rounding)
    return Tolerance(jnp.minimum(relative, tight.relative), tight.absolute / count)


def scale_of(values: Array, block_size: int, axis: TimeAxis = LOCAL) -> Array:
    """Size of the states about now, `(n, D)`, which tolerances are relative to.

    Every dimension by itself, and local in time: the smaller of the largest magnitude
    in the last 57 to 64 steps and that in the next 57 to 64 (9 to 16 unknowns at
    least; the current one is in both). Neither a large dimension beside, nor a wild
    state before or after, loosens the tolerance of a small one; and a state that passes
    through zero keeps one, by what is about it.

    Args:
        values: Rollout values at the unknowns, `(n, D)`.
        block_size: Steps C between the unknowns.
        axis: Where time lives.
    """
    reach = max(_REACH_STEPS // (block_size * _WINDOW) - 1, 1)
    magnitude = jnp.where(jnp.isfinite(values), jnp.abs(values), 0)
    # Behind the end nothing is known: the last steps stand for it.
    earlier = jnp.zeros_like(magnitude[0])
    end = max(_REACH_STEPS // (2 * block_size), 2)
    later = jnp.max(magnitude[-end:], axis=0)
    if axis.is_sharded:
        halo = reach * _WINDOW
        ends = jnp.max(magnitude[-halo:], axis=0), jnp.max(magnitude[:halo], axis=0)
        last, first = axis.gather(ends)
        earlier = jnp.where(axis.axis_index > 0, last[axis.axis_index - 1], 0)
        following = first[jnp.minimum(axis.axis_index + 1, axis.size - 1)]
        later = jnp.where(axis.axis_index < axis.size - 1, following, later)
    before = _recent_maximum(magnitude, earlier, reach)
    return jnp.minimum(before, _recent_maximum(magnitude, later, reach, reverse=True))


def _recent_maximum(
    magnitude: Array, earlier: Array, reach: int, *, reverse: bool = False
) -> Array:
    """Largest so far in this window of 8 and in `reach` windows before it.

    `earlier` stands before the first. In reverse: from here on, and windows after.
    A maximum for each window leaves at most 8 comparisons for every entry.
    """
    count, dimension = magnitude.shape
    padded = jnp.pad(magnitude, [(0, -count % _WINDOW), (0, 0)])
    windows = padded.reshape(-1, _WINDOW, dimension)
    seen, covered = _shift(jnp.max(windows, axis=1), earlier, 1, reverse), 1
    while covered < reach:
        further = min(covered, reach - covered)
        seen = jnp.maximum(seen, _shift(seen, earlier, further, reverse))
        covered += further
    so_far = []
    for place in reversed(range(_WINDOW)) if reverse else range(_WINDOW):
        seen = jnp.maximum(seen, windows[:, place])
        so_far.append(seen)
    found = jnp.stack(so_far[::-1] if reverse else so_far, axis=1)
    return found.reshape(-1, dimension)[:count]


def _shift(x: Array, first: Array, distance: int, reverse: bool) -> Array:
    """Move entries towards the end, or the beginning; `first` comes in."""
    distance = min(distance, x.shape[0])
    coming = jnp.broadcast_to(first, (distance, *x.shape[1:]))
    if reverse:
        return jnp.concatenate([x[distance:], coming])
    return jnp.concatenate([coming, x[: x.shape[0] - distance]])


def rounding_floor(scale: Array) -> Array:
    """What rounding alone may leave of states of these sizes."""
    return _ROUNDING_UNITS * jnp.finfo(scale.dtype).eps * scale


def differs_in_sign_of_zero(x: Array, y: Array) -> Array:
    """Whether x and y are zeros of different signs, which compare as equal."""
    return (x == 0) & (y == 0) & (jnp.signbit(x) != jnp.signbit(y))


def largest(*arrays: Array) -> Array:
    """Largest magnitude of each, `inf` when any entry is NaN; of one, a scalar.

    For reports, not decisions. Arrays of one shape are reduced together.
    """
    every = jnp.stack(arrays).reshape(len(arrays), -1)
    magnitude = jnp.where(jnp.isnan(every), jnp.inf, jnp.abs(every))
    found = jnp.max(magnitude, axis=1, initial=0)
    return found[0] if len(arrays) == 1 else found


def going_on(facts: Facts) -> Verdict:
    """Return the verdict of a pass that ends nothing, of one device."""
    no = jnp.asarray(False)
    (first,) = LOCAL.first_true(facts.inexact)
    residual_norm, step_norm = largest(facts.residual, facts.step)
    return Verdict(first, no, no, no, residual_norm, step_norm)


def may_end(residual: Array, values: Array, tolerance: Tolerance) -> Array:
    """Whether `judge` may conclude anything, `()`; false for most passes, and cheap.

    Local sizes are no larger than the largest of all, so no residual before the first
    broken one may be above the tolerance of that.
    """
    magnitude = jnp.where(jnp.isfinite(values), jnp.abs(values), 0)
    scale = jnp.max(magnitude, axis=0, keepdims=True)
    bound = jnp.maximum(tolerance.bound(scale), rounding_floor(scale))
    first_large, first_broken = LOCAL.first_true(
        ~jnp.all(jnp.abs(residual) <= bound, axis=1),
        ~jnp.all(jnp.isfinite(residual), axis=1),
    )
    return first_large >= first_broken


def judge(
    facts: Facts,
    scale: Array,
    tolerance: Tolerance,
    last_step_norm: Array,
    axis: TimeAxis = LOCAL,
) -> Verdict:
    """Compare a pass with the tolerance; the verdict is the same on every device.

    Args:
        facts: What the pass found.
        scale: `(n, D)`, from `scale_of`.
        tolerance: Relative and absolute tolerance.
        last_step_norm: Largest undamped step of the pass before.
        axis: Where time lives.
    """
    residual, step, alike, inexact = facts
    bound = tolerance.bound(scale)
    residual_norm, step_norm, top = axis.largest(
        *largest(residual, step), jnp.max(scale, axis=0)
    )
    # With steps that shrink by a factor rate, the error after this one is about
    # step * rate / (1 - rate): a slow method has to get further down.
    tiny = jnp.finfo(step.dtype).tiny
    ratio = last_step_norm / jnp.maximum(step_norm, tiny)
    room = jnp.clip(ratio - 1, _SLOWEST_ROOM, 1)
    small = jnp.abs(residual) <= bound
    settled = small & alike & (jnp.abs(step) <= room * bound)
    # Behind a break no step has a size, so the rate says nothing there.
    row_settled = small & (jnp.abs(step) <= bound)
    rounded = jnp.abs(residual) <= rounding_floor(scale)
    # Rounding of large states stays in a recurrence that forgets nothing, and where the
    # state is small later, steps are no smaller than that.
    carried = rounded & alike & (jnp.abs(step) <= room * tolerance.bound(top)[None, :])
    first_inexact, first_unsettled, first_unsettled_row, *others = axis.first_true(
        inexact,
        ~jnp.all(settled, axis=1),
        ~jnp.all(row_settled, axis=1),
        ~jnp.all(jnp.isfinite(residual), axis=1),
        ~jnp.all(rounded, axis=1),
        ~jnp.all(carried, axis=1),
    )
    first_broken, first_above_floor, no_carry = others
    none = axis.size * residual.shape[0]
    converged = (first_unsettled == none) | (no_carry == none)
    suspect = (first_broken < none) & (first_unsettled_row >= first_broken)
    stalled = (first_above_floor == none) & (step_norm >= last_step_norm)
    # Steps below tolerance that do not shrink are slow, not spoiled by rounding.
    stalled = stalled & ~converged & (first_unsettled_row < none)
    return Verdict(first_inexact, converged, suspect, stalled, residual_norm, step_norm)
