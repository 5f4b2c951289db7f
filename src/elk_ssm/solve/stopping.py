"""When the iteration may stop. Every test is written so that a NaN fails it.

A jitted `jnp.max` on the CPU backend of jaxlib 0.10.2 drops NaNs for some shapes, so
no decision is taken on a maximum: comparisons are made entry by entry (a NaN compares
false) and joined by the position of the first one that fails, which devices that share
the time axis agree on.
"""

from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from elk_ssm._loop import in_place_of
from elk_ssm._platforms import by_platform
from elk_ssm._types import Array, ArrayLike
from elk_ssm.linalg.small import raised
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
        inexact: `(n, D)`, which entries of nodes beyond the exact prefix are not exact.
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
        breaks: Whether f is non-finite there, so that it is at an exact state.
        suspect: f is non-finite at a step before which everything is below tolerance;
            whether it is at the exact states too is for `solve.failure` to find.
        stalled: The residual is at the rounding floor and the step does not shrink.
            `PATIENCE` such passes in a row mean that rounding is the limit.
        residual_norm: Largest residual, `inf` for a NaN.
        step_norm: Largest undamped step, `inf` for a NaN.
    """

    first_inexact: Array
    breaks: Array
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


class Scale(NamedTuple):
    """Sizes of states: `local` ones `(n, D)`, and the largest of each dimension."""

    local: Array
    top: Array


def scale_of(values: Array, block_size: int, axis: TimeAxis = LOCAL) -> Array:
    """Return the local sizes of `sizes_of` alone."""
    return sizes_of(values, block_size, axis).local


def sizes_of(values: Array, block_size: int, axis: TimeAxis = LOCAL) -> Scale:
    """Size of the states about now, which tolerances are relative to.

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
    count, dimension = magnitude.shape
    # Behind the end nothing is known: the last steps once more stand for it.
    last_few = min(max(_REACH_STEPS // (2 * block_size), 2), reach * _WINDOW)
    earlier, end = jnp.zeros_like(magnitude[:1]), magnitude[-last_few:]
    if axis.is_sharded:
        halo = reach * _WINDOW
        parts = magnitude[-halo:], magnitude[:halo], magnitude
        last, first, tops = axis.gather(tuple(jnp.max(x, axis=0) for x in parts))
        earlier = jnp.where(axis.axis_index > 0, last[axis.axis_index - 1], 0)[None]
        following = first[jnp.minimum(axis.axis_index + 1, axis.size - 1)]
        end = jnp.where(axis.axis_index < axis.size - 1, following, end)
        top = jnp.max(tops, axis=0)
    else:
        top = jnp.max(magnitude, axis=0)
    within = -(-count // _WINDOW)
    fill = jnp.zeros((-(count + end.shape[0]) % _WINDOW, dimension), magnitude.dtype)
    windows = jnp.concatenate([magnitude, end, fill]).reshape(-1, _WINDOW, dimension)
    runs = _largest_of_runs(windows, earlier, reach, within)
    places = jnp.unstack(windows[:within], axis=1)
    forwards = accumulate([runs[:within], *places], jnp.maximum)
    backwards = accumulate([runs[reach + 1 :], *places[::-1]], jnp.maximum)
    both = zip(list(forwards)[1:], list(backwards)[:0:-1], strict=True)
    found = jnp.stack([jnp.minimum(*seen) for seen in both], axis=1)
    return Scale(found.reshape(-1, dimension)[:count], top)


def _largest_of_runs(windows: Array, earlier: Array, reach: int, within: int) -> Array:
    """Largest of each `reach` windows of 8 in a row, of which the last begins behind.

    Args:
        windows: `(w, 8, D)`.
        earlier: `(1, D)`, what every entry before the first window is.
        reach: Windows of a run; the first run ends where the windows begin.
        within: Windows that runs lie before and behind; behind them all is zero.
    """
    fill = within + reach - windows.shape[0]

    def padded(x: Array) -> Array:
        ahead = jnp.broadcast_to(
            earlier.reshape(1, *[1] * (x.ndim - 2), -1), (reach, *x.shape[1:])
        )
        return jnp.concatenate([ahead, x, jnp.zeros((fill, *x.shape[1:]), x.dtype)])

    def by_windows(windows: Array) -> Array:
        of_each = padded(jnp.max(windows, axis=1))
        count = of_each.shape[0] - reach + 1
        return reduce(jnp.maximum, (of_each[j : j + count] for j in range(reach)))

    def at_once(windows: Array) -> Array:
        rows = padded(windows).reshape(-1, windows.shape[-1])
        window, stride = (reach * _WINDOW, 1), (_WINDOW, 1)
        least = jnp.zeros((), rows.dtype)
        return lax.reduce_window(rows, least, lax.max, window, stride, "VALID")

    return by_platform(windows, cpu=by_windows, default=at_once)


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
    found = jnp.max(_magnitude(every), axis=1, initial=0)
    return found[0] if len(arrays) == 1 else found


def going_on(facts: Facts) -> Verdict:
    """Return the verdict of a pass that ends nothing, of one device."""
    no = jnp.asarray(False)
    (first,) = LOCAL.first_true(jnp.any(facts.inexact, axis=1))
    breaks = ~jnp.all(jnp.isfinite(facts.residual[first]))
    residual_norm, step_norm = largest(facts.residual, facts.step)
    return Verdict(first, breaks, no, no, no, residual_norm, step_norm)


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
    scale: Scale,
    tolerance: Tolerance,
    last_step_norm: Array,
    axis: TimeAxis = LOCAL,
) -> Verdict:
    """Compare a pass with the tolerance; the verdict is the same on every device.

    Args:
        facts: What the pass found.
        scale: Sizes of the states, from `sizes_of`.
        tolerance: Relative and absolute tolerance.
        last_step_norm: Largest undamped step of the pass before.
        axis: Where time lives.
    """
    residual, step, alike, inexact = facts
    bound, floor = tolerance.bound(scale.local), rounding_floor(scale.local)
    off, move = _magnitude(residual), _magnitude(step)
    # Behind a break no step has a size, so the rate says nothing there.
    settled = (off <= bound) & (move <= bound)
    # Rounding of large states stays in a recurrence that forgets nothing, and where the
    # state is small later, steps are no smaller than that.
    rounded = off <= floor
    share = jnp.where(settled & alike, _share(move, bound), jnp.inf)
    above = jnp.where(rounded, jnp.where(alike, 0.0, 0.5), 1.0).astype(off.dtype)
    broken = ~jnp.isfinite(residual)
    sizes = off, move, share, _share(move, tolerance.bound(scale.top)), above
    largest, places = axis.survey(sizes, ((inexact, broken), (~settled, broken)))
    residual_norm, step_norm, share, carried, above = largest
    (first_inexact, breaks), (first_unsettled, suspect) = places
    step_norm = in_place_of(last_step_norm, step_norm)
    # With steps that shrink by a factor rate, the error after this one is about
    # step * rate / (1 - rate): a slow method has to get further down.
    tiny = jnp.finfo(step.dtype).tiny
    ratio = last_step_norm / jnp.maximum(step_norm, tiny)
    room = jnp.clip(ratio - 1, _SLOWEST_ROOM, 1)
    converged = (share <= room) | ((above == 0) & (carried <= room))
    stalled = (above < 1) & (step_norm >= last_step_norm)
    # Steps below tolerance that do not shrink are slow, not spoiled by rounding.
    none = axis.size * residual.shape[0]
    stalled = stalled & ~converged & (first_unsettled < none)
    norms = residual_norm, step_norm
    return Verdict(first_inexact, breaks, converged, suspect, stalled, *norms)


def _share(size: Array, bound: Array) -> Array:
    """How much of a bound is used; of no bound at all, nothing uses nothing."""
    return jnp.where(size > 0, size / raised(bound, size.ndim), 0)


def _magnitude(x: Array) -> Array:
    """Size of each entry, `inf` of a NaN, which a maximum could drop."""
    return jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x))
