"""When the iteration may stop. Every test is written so that a NaN fails it.

A jitted `jnp.max` on the CPU backend of jaxlib 0.10.2 drops NaNs for some shapes, so
no decision is taken on a maximum: comparisons are made entry by entry (a NaN compares
false) and joined by the position of the first one that fails, which devices that share
the time axis agree on.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, ArrayLike
from elk_ssm.parallel.backend import Backend, by_backend
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis

# Sizes are seen over one to two windows of so many steps, and at least of unknowns.
_WINDOW_STEPS, _LEAST_WINDOW = 32, 8
_ROUNDING_UNITS = 32
_SLOWEST_ROOM = 0.2
_SMALLEST_STATE = 1e-12
PATIENCE = 3


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


class Verdict(NamedTuple):
    """What one pass concludes, all booleans and integers of shape `()`.

    Attributes:
        converged: Residual and undamped step are below tolerance everywhere.
        suspect: f is non-finite at a step before which everything is below tolerance;
            whether it is at the exact states too is for `solve.failure` to find.
        stalled: The residual is at the rounding floor and the step does not shrink.
            `PATIENCE` such passes in a row mean that rounding is the limit.
        residual_norm: Largest residual, `inf` for a NaN.
        step_norm: Largest undamped step, `inf` for a NaN.
    """

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


def scale_of(
    values: Array, block_size: int, backend: Backend, axis: TimeAxis = LOCAL
) -> Array:
    """Size of the states about now, `(n, D)`, which tolerances are relative to.

    Every dimension by itself, and local in time: the smaller of the largest magnitude
    in the last 32 to 64 steps and that in the next 32 to 64 (8 to 16 unknowns at
    least; the current one is in both). Neither a large dimension beside, nor a wild
    state before or after, loosens the tolerance of a small one; and a state that passes
    through zero keeps one, by what is about it.

    Args:
        values: Rollout values at the unknowns, `(n, D)`.
        block_size: Steps C between the unknowns.
        backend: Which scan to use.
        axis: Where time lives.
    """
    window = max(_WINDOW_STEPS // block_size, _LEAST_WINDOW)
    magnitude = jnp.where(jnp.isfinite(values), jnp.abs(values), 0)
    nothing = jnp.zeros_like(magnitude[0])
    run = partial(_recent_maximum, window=window, backend=backend)
    # Behind the end nothing is known: the last steps stand for it.
    end = jnp.max(magnitude[-max(2 * _WINDOW_STEPS // block_size, 2) :], axis=0)
    if not axis.is_spread:
        before = run(magnitude, nothing)
        return jnp.minimum(before, run(magnitude, end, reverse=True))
    ends = jnp.max(magnitude[-window:], axis=0), jnp.max(magnitude[:window], axis=0)
    last, first = axis.gather(ends)
    earlier = jnp.where(axis.place > 0, last[axis.place - 1], 0)
    before = run(magnitude, earlier)
    later = first[jnp.minimum(axis.place + 1, axis.size - 1)]
    later = jnp.where(axis.place < axis.size - 1, later, end)
    return jnp.minimum(before, run(magnitude, later, reverse=True))


def _recent_maximum(
    magnitude: Array,
    earlier: Array,
    *,
    window: int,
    backend: Backend,
    reverse: bool = False,
) -> Array:
    """Largest of the window before (`earlier` before the first) and of this one so far.

    In reverse, of this one from here on and the window after. Windows begin at
    multiples of `window` in both directions.
    """
    count = magnitude.shape[0]

    def sequential(magnitude: Array, earlier: Array) -> Array:
        starts = jnp.arange(count) % window == (window - 1 if reverse else 0)

        def body(carry: tuple, entry: tuple) -> tuple[tuple, Array]:
            (before, so_far), (now, starts) = carry, entry
            before = jnp.where(starts, so_far, before)
            so_far = jnp.where(starts, now, jnp.maximum(so_far, now))
            return (before, so_far), jnp.maximum(before, so_far)

        # The end may lie inside a window, whose other part does not exist.
        begin = earlier, earlier if count % window == 0 or not reverse else 0 * earlier
        entries = magnitude, starts
        return jax.lax.scan(body, begin, entries, reverse=reverse)[1]

    def associative(magnitude: Array, earlier: Array) -> Array:
        padded = jnp.pad(magnitude, [(0, -count % window), (0, 0)])
        windows = padded.reshape(-1, window, magnitude.shape[1])
        so_far = jax.lax.cummax(windows, axis=1, reverse=reverse)
        whole = jnp.max(windows, axis=1)
        if reverse:
            other = jnp.concatenate([whole[1:], earlier[None]])
        else:
            other = jnp.concatenate([earlier[None], whole[:-1]])
        return jnp.maximum(so_far, other[:, None]).reshape(padded.shape)[:count]

    return by_backend(backend, sequential, associative, magnitude, earlier)


def rounding_floor(scale: Array) -> Array:
    """What rounding alone may leave of states of these sizes."""
    return _ROUNDING_UNITS * jnp.finfo(scale.dtype).eps * scale


def differs_in_sign_of_zero(x: Array, y: Array) -> Array:
    """Whether x and y are zeros of different signs, which compare as equal."""
    return (x == 0) & (y == 0) & (jnp.signbit(x) != jnp.signbit(y))


def largest(x: Array) -> Array:
    """Largest magnitude, `inf` when any entry is NaN. For reports, not decisions."""
    magnitude = jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x))
    return jnp.max(magnitude, initial=0)


def judge(
    residual: Array,
    step: Array,
    alike: Array,
    scale: Array,
    tolerance: Tolerance,
    last_step_norm: Array,
    axis: TimeAxis = LOCAL,
) -> Verdict:
    """Compare a pass with the tolerance; the verdict is the same on every device.

    Args:
        residual: `(n, D)`, x_t - f(x_{t-1}, u_t) at the iterate.
        step: `(n, D)`, the undamped step from it.
        alike: `(n, D)`, whether state and rollout value have the same sign if zero.
        scale: `(n, D)`, from `scale_of`.
        tolerance: Relative and absolute tolerance.
        last_step_norm: Largest undamped step of the pass before.
        axis: Where time lives.
    """
    bound = tolerance.bound(scale)
    residual_norm, step_norm = axis.largest(largest(residual), largest(step))
    # With steps that shrink by a factor rate, the error after this one is about
    # step * rate / (1 - rate): a slow method has to get further down.
    tiny = jnp.finfo(step.dtype).tiny
    ratio = last_step_norm / jnp.maximum(step_norm, tiny)
    room = jnp.clip(ratio - 1, _SLOWEST_ROOM, 1)
    small = jnp.abs(residual) <= bound
    settled = small & alike & (jnp.abs(step) <= room * bound)
    # Behind a break no step has a size, so the rate says nothing there.
    row_settled = small & (jnp.abs(step) <= bound)
    floor = rounding_floor(scale)
    first_unsettled, first_unsettled_row, first_broken, first_above_floor = (
        axis.first_true(
            ~jnp.all(settled, axis=1),
            ~jnp.all(row_settled, axis=1),
            ~jnp.all(jnp.isfinite(residual), axis=1),
            ~jnp.all(jnp.abs(residual) <= floor, axis=1),
        )
    )
    none = axis.size * residual.shape[0]
    converged = first_unsettled == none
    suspect = (first_broken < none) & (first_unsettled_row >= first_broken)
    stalled = (first_above_floor == none) & (step_norm >= last_step_norm)
    # Steps below tolerance that do not shrink are slow, not spoiled by rounding.
    stalled = stalled & ~converged & (first_unsettled_row < none)
    return Verdict(converged, suspect, stalled, residual_norm, step_norm)
