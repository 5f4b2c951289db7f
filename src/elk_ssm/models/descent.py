r"""Maxima by L-BFGS, or by any transformation of gradients that optax has.

The direction is optax's. A step that makes the objective worse, or no number, is
refused and halved. L-BFGS has converged where a whole step promises a gain below the
tolerance, g'd / 2, or three steps in a row had none; other transformations by the
latter alone. A step that is short because a longer one led to where the objective is no
number says nothing of either: a search that ends before such a wall has not converged.

When the search has ended, the slope is looked at on either side of the best point in
every parameter, (g(x + h e_i) - g(x - h e_i)) / 2h, which is the observed information.
All are turns of one loop, so that the objective is compiled once: a program that has
it three times, with second derivatives, takes the compiler several times as long.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._progress import searched
from elk_ssm._types import Array
from elk_ssm.solution import Status

if TYPE_CHECKING:
    import optax

_MOST_HALVINGS = 30
# So many steps in a row that gain less than the tolerance end a search.
_PATIENCE = 3
# In units of unconstrained parameters, of which one is a factor of e in a variance.
_LONGEST = 2.0
_RUNNING = -1


class Found(NamedTuple):
    """Where a search ended.

    Attributes:
        x: `(n,)`, the best point.
        value: The objective there, `()`.
        slope: Of the objective, `(n,)`.
        status: Value of a `Status`.
        num_iters: Steps that were taken.
        num_refused: Steps that were not, as the objective fell or was not finite.
        information: Minus the second derivatives, `(n, n)`; zero if not asked for.
    """

    x: Array
    value: Array
    slope: Array
    status: Array
    num_iters: Array
    num_refused: Array
    information: Array


class Search(NamedTuple):
    """How to search.

    Attributes:
        tool: An optax transformation; `None` for L-BFGS.
        max_iters: Steps at most.
        tol: Gain below which it has converged; `None` by the dtype.
        information: Whether it is wanted.
        progress: Whether a display is told of every turn.
    """

    tool: Any = None
    max_iters: int = 200
    tol: float | None = None
    information: bool = True
    progress: bool = False

    @property
    def monotone(self) -> bool:
        """Whether every step has to improve the objective."""
        return self.tool is None

    @property
    def transformation(self) -> "optax.GradientTransformation":
        """What makes directions of slopes."""
        import optax

        return self.tool or optax.scale_by_lbfgs(memory_size=10)

    def tolerance(self, value: Array) -> Array:
        """Return the gain that is none, for an objective of this size."""
        if self.tol is not None:
            return jnp.asarray(self.tol, value.dtype)
        eps = jnp.finfo(value.dtype).eps
        return eps**0.6 + 4 * eps * jnp.abs(value)


class _At(NamedTuple):
    x: Array
    value: Array
    slope: Array


class _State(NamedTuple):
    here: _At
    best: _At
    memory: Any
    step: Array
    share: Array
    small: Array
    walled: Array  # whether the next step is short because of a wall
    iters: Array
    refused: Array
    status: Array
    probe: Array
    information: Array


def climb(objective: Callable[[Array], Array], x: Array, how: Search) -> Found:
    """Climb from a point `(n,)`."""
    both = jax.value_and_grad(lambda x: -objective(x))
    size, width = x.shape[0], jnp.finfo(x.dtype).eps ** 0.25
    probes = 2 * size if how.information else 0

    def body(state: _State) -> _State:
        searching = state.status < 0
        axis = jnp.arange(size) == state.probe // 2
        aside = jnp.where(axis, jnp.where(state.probe % 2, -width, width), 0)
        x = jnp.where(
            searching, state.here.x + state.share * state.step, state.best.x + aside
        )
        there = _At(x, *both(x))
        if how.progress:
            steepest = jnp.max(jnp.abs(there.slope))
            searched(state.iters + 1, -there.value, steepest, state.probe, probes)
        seen = there.slope / (2 * width) * jnp.where(state.probe % 2, -1, 1)
        probed = state._replace(
            probe=state.probe + 1,
            information=state.information + axis[:, None] * seen,
        )
        return _pick(searching, _searched(state, there, how), probed)

    zero, one = jnp.zeros((), jnp.int32), jnp.ones((), x.dtype)
    # The first turn steps nowhere, onto the start.
    nowhere = _At(x, one * jnp.inf, jnp.zeros_like(x))
    memory = how.transformation.init(x)
    none = jnp.zeros_like(x)
    start = _State(
        *(nowhere, nowhere, memory, none, one, zero, zero > 0, zero - 1, zero),
        *(zero + _RUNNING, zero, jnp.zeros((size, size), x.dtype)),
    )
    end = lax.while_loop(lambda s: (s.status < 0) | (s.probe < probes), body, start)
    (x, value, slope), information = end.best, end.information
    return Found(
        *(x, -value, -slope, end.status, end.iters, end.refused),
        (information + information.T) / 2,
    )


def _searched(state: _State, there: _At, how: Search) -> _State:
    """Take a step or refuse it, and find the next one."""
    here, first = state.here, state.iters < 0
    eps = jnp.finfo(here.value.dtype).eps
    fine = jnp.isfinite(there.value) & jnp.all(jnp.isfinite(there.slope))
    drop = -jnp.sum(state.step * here.slope)
    gain = here.value - there.value
    slack = 4 * eps * jnp.abs(there.value)
    enough = gain >= 1e-4 * state.share * drop - slack
    taken = fine & (enough | first if how.monotone else True)
    least = how.tolerance(there.value)
    small = jnp.where(jnp.abs(gain) <= least, state.small + 1, 0)
    small = jnp.where(taken & ~state.walled, small, state.small)
    now = _pick(taken, there, here)
    updates, memory = how.transformation.update(now.slope, state.memory, now.x)
    step = _downhill(updates, now.slope) if how.monotone else updates
    step, memory = _pick(taken, (step, memory), (state.step, state.memory))
    share = jnp.where(taken, 1.0, state.share / 2).astype(here.x.dtype)
    iters = state.iters + taken
    done = small >= _PATIENCE
    if how.monotone:
        done = done | (-jnp.sum(step * now.slope) / 2 <= least)
    status = jnp.where(iters >= how.max_iters, Status.max_iters_reached, _RUNNING)
    stuck = share < 0.5**_MOST_HALVINGS
    status = jnp.where(stuck, Status.precision_limit, status)
    status = jnp.where(taken & done, Status.converged, status)
    status = jnp.where(first & ~fine, Status.nonfinite, status)
    return state._replace(
        here=now,
        best=_pick(fine & (there.value < state.best.value), there, state.best),
        memory=memory,
        step=step,
        share=share,
        small=small,
        walled=~taken & (state.walled | ~fine),
        iters=jnp.where(first & ~fine, 0, iters),
        refused=state.refused + ~(taken | first),
        status=status.astype(jnp.int32),
    )


def _downhill(updates: Array, slope: Array) -> Array:
    """Return a step of L-BFGS, or the slope where its memory leads uphill."""
    step = jnp.where(jnp.sum(updates * slope) > 0, -updates, -slope)
    longest = jnp.max(jnp.abs(step), initial=0)
    return step * jnp.minimum(1, _LONGEST / jnp.maximum(longest, 1e-30))


def _pick(condition: Array, chosen: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
