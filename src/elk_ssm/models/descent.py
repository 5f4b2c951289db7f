r"""Maxima by L-BFGS, or by any transformation of gradients that optax has.

The direction is optax's; a step that makes the objective worse, or no number, is
refused and halved. For one that is not a descent direction, as momentum may give, the
slope itself is tried. L-BFGS keeps its curvature from steps that were taken only.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._types import Array
from elk_ssm.models.scoring import Found, tolerance_of
from elk_ssm.solution import Status

if TYPE_CHECKING:
    import optax

_MOST_HALVINGS = 30
# So many steps in a row that gain less than the tolerance end a search.
_PATIENCE = 3
_LONGEST = 2.0


class _State(NamedTuple):
    x: Array
    value: Array
    slope: Array
    memory: Any
    share: Array
    small: Array
    iters: Array
    refused: Array
    status: Array
    best: Any


def climb(
    objective: Callable[[Array], Array],
    x: Array,
    max_iters: int,
    tol: float | None,
    tool: "optax.GradientTransformation | None" = None,
) -> Found:
    """Climb from a point.

    Args:
        objective: What is made large.
        x: `(n,)`.
        max_iters: Steps at most.
        tol: Gain in log likelihood below which it has converged; `None` by the dtype.
        tool: An optax transformation; `None` for L-BFGS.
    """
    import optax

    monotone = tool is None
    tool = optax.scale_by_lbfgs(memory_size=10) if tool is None else tool

    def loss(x: Array) -> Array:
        return -objective(x)

    both = jax.value_and_grad(loss)

    def body(state: _State) -> _State:
        updates, memory = tool.update(state.slope, state.memory, state.x)
        step = _downhill(updates, state.slope) if monotone else updates
        drop = -jnp.sum(step * state.slope)
        x = state.x + state.share * step
        value, slope = both(x)
        fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
        least = tolerance_of(value) if tol is None else jnp.asarray(tol)
        slack = 4 * jnp.finfo(x.dtype).eps * jnp.abs(state.value)
        gain = state.value - value
        enough = gain >= 1e-4 * state.share * drop - slack
        taken = fine & (enough if monotone else True)
        small = jnp.where(jnp.abs(gain) <= least, state.small + 1, 0)
        share = jnp.where(taken, 1.0, state.share / 2).astype(x.dtype)
        iters = state.iters + taken
        status = jnp.where(iters >= max_iters, Status.max_iters_reached, -1)
        stuck = share < 0.5**_MOST_HALVINGS
        status = jnp.where(stuck, Status.precision_limit, status)
        done = taken & (small >= _PATIENCE)
        done = done | (drop / 2 <= least) if monotone else done
        status = jnp.where(done, Status.converged, status).astype(jnp.int32)
        best = _pick(fine & (value < state.best[0]), (value, x, slope), state.best)
        moved = x, value, slope, memory, small
        stays = state.x, state.value, state.slope, state.memory, state.small
        x, value, slope, memory, small = _pick(taken, moved, stays)
        refused = state.refused + ~taken
        return _State(
            x, value, slope, memory, share, small, iters, refused, status, best
        )

    value, slope = both(x)
    zero = jnp.zeros((), jnp.int32)
    fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
    status = jnp.where(fine, -1, Status.nonfinite).astype(jnp.int32)
    one, best = jnp.ones((), x.dtype), (value, x, slope)
    start = _State(x, value, slope, tool.init(x), one, zero, zero, zero, status, best)
    end = lax.while_loop(lambda s: s.status < 0, body, start)
    value, x, slope = end.best
    return Found(x, -value, -slope, end.status, end.iters, end.refused)


def _downhill(updates: Array, slope: Array) -> Array:
    """Return a step of L-BFGS, or the slope where its memory leads uphill."""
    step = jnp.where(jnp.sum(updates * slope) > 0, -updates, -slope)
    return step * jnp.minimum(1, _LONGEST / jnp.maximum(jnp.max(jnp.abs(step)), 1e-30))


def _pick(condition: Array, chosen: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
