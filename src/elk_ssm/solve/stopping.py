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

# A size counts half after 32 steps, and at the earliest after four unknowns.
_HALVINGS_PER_STEP, _MOST_HALVINGS = 1 / 32, 1 / 4
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

    Every dimension by itself, and local in time: the smaller of two maxima that forget,

        before_t = max(|x_t|, before_{t-1} 2^(-h))
        after_t = max(|x_t|, after_{t+1} 2^(-h))

    with h = 1/32 a step and at most 1/4 between unknowns. Neither a large dimension
    beside, nor a wild state earlier or later, loosens the tolerance of a small one; and
    a state that passes through zero keeps one, by what is about it.

    Args:
        values: Rollout values at the unknowns, `(n, D)`.
        block_size: Steps C between the unknowns.
        backend: Which scan to use.
        axis: Where time lives.
    """
    halvings = min(block_size * _HALVINGS_PER_STEP, _MOST_HALVINGS)
    magnitude = jnp.where(jnp.isfinite(values), jnp.abs(values), 0)
    nothing = jnp.zeros_like(magnitude[0])
    run = partial(_fading_maximum, backend=backend, halvings=halvings)
    if not axis.is_spread:
        before = run(magnitude, nothing)
        return jnp.minimum(before, run(magnitude, before[-1], reverse=True))
    # Devices hand on what they end, and begin, with.
    ends = run(magnitude, nothing)[-1], run(magnitude, nothing, reverse=True)[0]
    forward, backward = axis.gather(ends)
    distance = axis.place - jnp.arange(axis.size)
    fade = 2.0 ** (-halvings * magnitude.shape[0])

    def arriving(sizes: Array, distance: Array) -> Array:
        weight = jnp.where(distance > 0, fade ** (distance - 1.0), 0)
        return jnp.max(sizes * weight[:, None].astype(sizes.dtype), axis=0)

    at_the_end = arriving(forward, axis.size - jnp.arange(axis.size))
    later = jnp.maximum(
        arriving(backward, -distance),
        at_the_end * fade ** (axis.size - 1.0 - axis.place),
    )
    before = run(magnitude, arriving(forward, distance))
    return jnp.minimum(before, run(magnitude, later, reverse=True))


def _fading_maximum(
    magnitude: Array,
    first: Array,
    *,
    backend: Backend,
    halvings: float,
    reverse: bool = False,
) -> Array:
    """Maximum over the past (or the future), which counts half after 1/h entries."""

    def sequential(magnitude: Array, first: Array) -> Array:
        def body(size: Array, now: Array) -> tuple[Array, Array]:
            size = jnp.maximum(now, size * 2**-halvings)
            return size, size

        return jax.lax.scan(body, first, magnitude, reverse=reverse)[1]

    def associative(magnitude: Array, first: Array) -> Array:
        # In logarithms forgetting is a slope, and what is left is a maximum.
        slope = halvings * jnp.arange(1, len(magnitude) + 1, dtype=magnitude.dtype)
        slope = slope[::-1] if reverse else slope
        level = jnp.log2(magnitude) + slope[:, None]
        level = jnp.maximum(jax.lax.cummax(level, reverse=reverse), jnp.log2(first))
        return jnp.exp2(level - slope[:, None])

    return by_backend(backend, sequential, associative, magnitude, first)


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
    scale: Array,
    tolerance: Tolerance,
    last_step_norm: Array,
    axis: TimeAxis = LOCAL,
) -> Verdict:
    """Compare a pass with the tolerance; the verdict is the same on every device.

    Args:
        residual: `(n, D)`, x_t - f(x_{t-1}, u_t) at the iterate.
        step: `(n, D)`, the undamped step from it.
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
    settled = small & (jnp.abs(step) <= room * bound)
    # Behind a break no step has a size, so the rate says nothing there.
    row_settled = small & (jnp.abs(step) <= bound)
    floor = _ROUNDING_UNITS * jnp.finfo(residual.dtype).eps * scale
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
    stalled = stalled & ~converged
    return Verdict(converged, suspect, stalled, residual_norm, step_norm)
