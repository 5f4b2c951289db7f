"""When the iteration may stop. Every test is written so that a NaN fails it.

A jitted `jnp.max` on the CPU backend of jaxlib 0.10.2 drops NaNs for some shapes, so
no decision is taken on a maximum: comparisons are made entry by entry (a NaN compares
false) and joined by the position of the first one that fails, which devices that share
the time axis agree on.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.kalman.backend import Backend, by_backend
from elk_ssm.kalman.time_axis import LOCAL, TimeAxis

_PER_DIMENSION_FLOOR = 0.1
_ROUNDING_UNITS = 32
_WRITTEN_OUT = 8
_SLOWEST_ROOM = 0.2
PATIENCE = 3


class Verdict(NamedTuple):
    """What one pass concludes, all booleans and integers of shape `()`.

    Attributes:
        converged: Residual and undamped step are below tolerance everywhere.
        nonfinite: f is non-finite at a step before which everything has converged.
        stalled: The residual is at the rounding floor and the step does not shrink.
            `PATIENCE` such passes in a row mean that rounding is the limit.
        residual_norm: Largest residual, `inf` for a NaN.
        step_norm: Largest undamped step, `inf` for a NaN.
    """

    converged: Array
    nonfinite: Array
    stalled: Array
    residual_norm: Array
    step_norm: Array


def default_tolerance(dtype: jnp.dtype) -> float:
    """Relative tolerance of a dtype: 1e-5 in float32, 1e-12 in float64."""
    return 1e-12 if jnp.finfo(dtype).bits == 64 else 1e-5


def scale_of(
    values: Array, initial: Array, backend: Backend, axis: TimeAxis = LOCAL
) -> Array:
    """Size of the states so far, `(n, D)`, which tolerances are relative to.

    A running maximum per dimension: wild states later on do not loosen the tolerance
    of those before. Dimensions much smaller than the largest one are held to a tenth of
    that one, because their rounding errors come from it.
    """
    magnitude = jnp.where(jnp.isfinite(values), jnp.abs(values), 0)
    first = jnp.abs(initial)
    if axis.is_spread:
        here = jnp.max(magnitude, axis=0)
        nothing = jnp.zeros_like(first)
        earlier = axis.entering(jnp.maximum, here, nothing, backend)
        first = jnp.maximum(first, earlier)

    def sequential(magnitude: Array) -> Array:
        def body(size: Array, now: Array) -> tuple[Array, Array]:
            size = jnp.maximum(size, now)
            return size, size

        return jax.lax.scan(body, first, magnitude)[1]

    def associative(magnitude: Array) -> Array:
        return jnp.maximum(jax.lax.cummax(magnitude), first)

    size = by_backend(backend, sequential, associative, magnitude)
    return jnp.maximum(size, _PER_DIMENSION_FLOOR * _row_maximum(size))


def _row_maximum(size: Array) -> Array:
    """Largest entry of each row, `(n, 1)`; few columns are faster written out."""
    if size.shape[-1] > _WRITTEN_OUT:
        return jnp.max(size, axis=-1, keepdims=True)
    columns = [size[:, i] for i in range(size.shape[-1])]
    return reduce(jnp.maximum, columns)[:, None]


def largest(x: Array) -> Array:
    """Largest magnitude, `inf` when any entry is NaN. For reports, not decisions."""
    magnitude = jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x))
    return jnp.max(magnitude, initial=0)


def judge(
    residual: Array,
    step: Array,
    scale: Array,
    tolerance: Array,
    last_step_norm: Array,
    axis: TimeAxis = LOCAL,
) -> Verdict:
    """Compare a pass with the tolerance; the verdict is the same on every device.

    Args:
        residual: `(n, D)`, x_t - f(x_{t-1}, u_t) at the iterate.
        step: `(n, D)`, the undamped step from it.
        scale: `(n, D)`, from `scale_of`.
        tolerance: Relative tolerance.
        last_step_norm: Largest undamped step of the pass before.
        axis: Where time lives.
    """
    bound = tolerance * scale
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
    nonfinite = (first_broken < none) & (first_unsettled_row >= first_broken)
    stalled = (first_above_floor == none) & (step_norm >= last_step_norm)
    stalled = stalled & ~converged
    return Verdict(converged, nonfinite, stalled, residual_norm, step_norm)
