r"""Maximum likelihood of a linear model by the method of scoring.

Of the innovations w_t of variance one and their log variances log s_t,

    L = -1/2 sum log s - 1/2 sum w^2 - ...

the first derivatives alone give the information

    I = 1/2 sum (d log s)(d log s)' + sum u u',     u = dw + w d(log s) / 2

(Harvey, 1989, equation 3.4.69), which is positive semi-definite, and one forward pass
with a tangent for every parameter gives value, slope and information together. The step
is (I + prior + e)^-1 times the slope, no longer than `_LONGEST` in any parameter; half
of it, and half of that, until the objective does not fall.

It has converged when a full step promises less than a tolerance in log likelihood. The
small e is what lets a variance that wants to be zero stop: in log v both slope and
information vanish with v.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._types import Array
from elk_ssm.linalg.small import matmul, solve, transpose
from elk_ssm.solution import Status

_LONGEST = 2.0
_LEAST_INFORMATION = 1e-4
_MOST_HALVINGS = 30


class Point(NamedTuple):
    """Where a search stands: x `(n,)`, objective `()`, slope `(n,)`, `(n, n)`."""

    x: Array
    value: Array
    slope: Array
    information: Array


class Found(NamedTuple):
    """Where a search ended.

    Attributes:
        x: `(n,)`, the best point.
        value: The objective there, `()`.
        slope: Of the objective, `(n,)`.
        status: Value of a `Status`.
        num_iters: Steps that were taken.
        num_refused: Steps that were not, as the objective fell or was not finite.
    """

    x: Array
    value: Array
    slope: Array
    status: Array
    num_iters: Array
    num_refused: Array


class _State(NamedTuple):
    point: Point
    step: Array
    share: Array
    promise: Array
    iters: Array
    refused: Array
    status: Array


def tolerance_of(value: Array) -> Array:
    """Return the gain in log likelihood that is none, for one of this size."""
    eps = jnp.finfo(value.dtype).eps
    return eps**0.6 + 4 * eps * jnp.abs(value)


def score(
    evaluate: Callable[[Array], Point], x: Array, max_iters: int, tol: float | None
) -> Found:
    """Climb from a point.

    Args:
        evaluate: The objective and what it is like around a point.
        x: `(n,)`.
        max_iters: Steps at most.
        tol: Gain in log likelihood below which it has converged; `None` by the dtype.
    """

    def judged(state: _State) -> _State:
        """Find the next step, and whether there is one."""
        point = state.point
        step, promise = _step_from(point)
        least = tolerance_of(point.value) if tol is None else jnp.asarray(tol)
        done = jnp.where(promise <= least, Status.converged, state.status)
        spent = (done < 0) & (state.iters >= max_iters)
        status = jnp.where(spent, Status.max_iters_reached, done)
        return state._replace(step=step, promise=promise, status=status)

    def body(state: _State) -> _State:
        here = state.point
        there = evaluate(here.x + state.share * state.step)
        fine = _is_finite(there)
        slack = 4 * jnp.finfo(here.value.dtype).eps * jnp.abs(here.value)
        taken = fine & (there.value >= here.value - slack)
        point = Point(*(jnp.where(taken, new, old) for new, old in zip(there, here)))
        moved = state._replace(
            point=point,
            share=jnp.where(taken, 1.0, state.share / 2).astype(here.x.dtype),
            iters=state.iters + taken,
            refused=state.refused + ~taken,
        )
        after = judged(moved)
        stuck = ~taken & (moved.share < 0.5**_MOST_HALVINGS) & (after.status < 0)
        status = jnp.where(stuck, Status.precision_limit, after.status)
        return after._replace(status=status)

    first, zero = evaluate(x), jnp.zeros((), jnp.int32)
    running = jnp.where(_is_finite(first), -1, Status.nonfinite).astype(jnp.int32)
    none = jnp.zeros((), x.dtype)
    state = _State(first, jnp.zeros_like(x), none + 1, none, zero, zero, running)
    state = judged(state)._replace(
        status=jnp.where(running < 0, judged(state).status, running)
    )
    end = lax.while_loop(lambda s: s.status < 0, body, state)
    point = end.point
    return Found(point.x, point.value, point.slope, end.status, end.iters, end.refused)


def _is_finite(point: Point) -> Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in point]
    return jnp.all(jnp.stack(leaves))


def _step_from(point: Point) -> tuple[Array, Array]:
    """Return the step, and the gain that it promises."""
    size = point.x.shape[0]
    if size == 0:
        return point.x, jnp.zeros((), point.x.dtype)
    eye = jnp.eye(size, dtype=point.x.dtype)
    curved = point.information + _LEAST_INFORMATION * eye
    step = solve(curved, point.slope[:, None])[:, 0]
    promise = jnp.sum(step * point.slope) / 2
    longest = jnp.max(jnp.abs(step))
    return step * jnp.minimum(1, _LONGEST / jnp.maximum(longest, 1e-30)), promise


def information_of(residuals: Array, slopes: Array, log_slopes: Array) -> Array:
    """Return I from w `(N,)` and the derivatives of w and log s, `(n, N)`."""
    moved = slopes + residuals * log_slopes / 2
    squares = matmul(log_slopes, transpose(log_slopes)) / 2
    return squares + matmul(moved, transpose(moved))


def with_tangents(
    function: Callable[[Array], tuple[Array, Array, Array]], x: Array
) -> Point:
    """Evaluate log p, w and log s with a tangent for every parameter."""

    def along(tangent: Array) -> tuple:
        return jax.jvp(function, (x,), (tangent,))

    basis = jnp.eye(x.shape[0], dtype=x.dtype)
    (value, residuals, _), (slope, moved, logs) = jax.vmap(along, out_axes=(None, 0))(
        basis
    )
    return Point(x, value, slope, information_of(residuals, moved, logs))
