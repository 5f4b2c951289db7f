r"""Newton's method on the noise that drives a trajectory, towards a maximum.

A pass expands -log p(z, y) in the noise to second order along the trajectory (see
`riccati`) and follows the dynamics themselves with the feedback that comes out,

    w_t <- w_t + k_t + K_t (z_t-1 - z_t-1 of before)        z_t = f(z_t-1) + G w_t

so every trajectory is one that the model can take, and the merit is -log p(z, y)
itself: no constraint, no multiplier, no penalty. The feedback holds a trajectory that
expands (differential dynamic programming); where steps are small it is Newton's step.
A shift mu I of the Hessian in the noise, whose unit is that of the prior, is raised
until the merit falls by a part of what was predicted, and pivots that are not positive
are replaced by their size, at least one.

Where a pivot is not positive, its direction u has u'Mu < 0 with all that follows at its
best answer: a direction of negative curvature, tried beside the step. Statuses are
those of `newton`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._loop import PATIENCE, SEARCHING, run_passes, status_of
from elk_ssm._types import Array
from elk_ssm.linalg.small import matmul, matvec, transpose
from elk_ssm.nssm.curvature import emission_curvature
from elk_ssm.nssm.driven import Driven, each_root, log_driven, log_emissions, roll
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.riccati import (
    Feedback,
    Linear,
    eliminate,
    tensors,
    transition_slopes,
)
from elk_ssm.nssm.rows import Rows, taylor_rows
from elk_ssm.nssm.shifts import MOST_TRIES, grown, lessened
from elk_ssm.nssm.stopping import (
    entries,
    largest_increment,
    search,
    size_of_states,
    slack_of,
)
from elk_ssm.solution import Status

_ENOUGH = 0.1
_KICK, _MOST_HALVINGS = 4.0, 24
_ROUNDING_UNITS = 16


class Steered(NamedTuple):
    """What travels through the loop; `status` is `SEARCHING` while it goes on."""

    path: Driven
    merit: Array
    lowest: Array
    shift: Array
    iteration: Array
    stalls: Array
    step_norm: Array
    status: Array


class Attempt(NamedTuple):
    """One shift: its path, its feedback, and whether it is good enough."""

    shift: Array
    path: Driven
    feedback: Feedback
    merit: Array
    done: Array
    tries: Array


def merit_of(posed: Posed, path: Driven) -> Array:
    """Return -log p(z, y), infinite where it is not a number."""
    merit = -log_driven(posed, path)
    return jnp.where(jnp.isnan(merit), jnp.inf, merit)


def expand_path(posed: Posed, path: Driven) -> Linear:
    """Expand along a path that is a trajectory, emissions to second order."""
    slopes = -jax.grad(lambda x: log_emissions(posed, x))(path.states)
    bends = emission_curvature(posed, path.states)
    A, _ = transition_slopes(posed, path)
    gaps = jnp.zeros_like(path.states)
    return Linear(A, each_root(posed, path.states), gaps, slopes, bends)


def approach(posed: Posed, around: Driven) -> Driven:
    """Return a trajectory that a Gauss-Newton pass finds from states that are none."""
    A, moved = transition_slopes(posed, around)
    roots = each_root(posed, around.states)
    first = posed.initial_mean + matvec(roots[0], around.noise[0])
    gaps = jnp.concatenate([first[None], moved]) - around.states
    slopes = -jax.grad(lambda x: log_emissions(posed, x))(around.states)
    bends = information_of(taylor_rows(posed, around.states, "positive"))
    feedback = eliminate(around.noise, Linear(A, roots, gaps, slopes, bends), None)
    return follow(posed, around, feedback)


def information_of(rows: Rows) -> Array:
    """Return sum of h h' / r over the rows of each step, `(T, D, D)`."""
    precisions = jnp.where(rows.observed, 1 / rows.variances, 0)
    weighted = precisions[..., None] * rows.weights
    return matmul(transpose(rows.weights), weighted)


def follow(posed: Posed, path: Driven, feedback: Feedback) -> Driven:
    """Follow the dynamics with the feedback's noise."""
    K, k = feedback.gains, feedback.steps
    before = jnp.concatenate([posed.initial_mean[None], path.states[:-1]])

    def respond(t, state: Array, w: Array) -> Array:
        return w + k[t] + matvec(K[t], state - before[t])

    return roll(posed, path.noise, respond)


def steer(posed: Posed, first: Steered, tolerance: Array, max_iters: Array) -> Steered:
    """Run passes until a stopping rule holds."""
    return run_passes(
        lambda carry: steer_once(posed, tolerance, carry), first, max_iters, SEARCHING
    )


def steer_once(posed: Posed, tolerance: Array, carry: Steered) -> Steered:
    """Expand, step, judge."""
    slack = slack_of(posed, carry.merit)
    linear = expand_path(posed, carry.path)
    trial = _try_shifts(posed, carry, linear, slack)
    definite = jnp.all(trial.feedback.pivots > 0)
    kicked, kick_merit, bends = _leave_saddle(posed, carry, trial.feedback, definite)
    better = jnp.isfinite(kick_merit) & ~(trial.done & (trial.merit <= kick_merit))
    moved = trial.done | better

    def choose(kick: Array, step: Array, old: Array) -> Array:
        return jnp.where(better, kick, jnp.where(trial.done, step, old))

    path = jax.tree.map(choose, kicked, trial.path, carry.path)
    merit = choose(kick_merit, trial.merit, carry.merit)
    variances = jnp.sum(linear.G**2, axis=2) + jnp.finfo(slack.dtype).tiny
    scale = size_of_states(posed, carry.path.states, variances)
    step = trial.path.states - carry.path.states
    norm, small = largest_increment(posed, step, scale, tolerance)
    decrement = _decrement(trial.feedback)
    settled = decrement <= jnp.maximum(tolerance**2 * entries(posed), slack)
    still = trial.done & (trial.shift <= 0) & definite & ~better & settled & small
    at_floor = (decrement <= slack) & ~better & ~(norm < carry.step_norm)
    stalls = jnp.where(moved, jnp.where(at_floor, carry.stalls + 1, 0), PATIENCE)
    stuck = stalls >= PATIENCE
    finite = jnp.all(jnp.isfinite(trial.feedback.slopes))
    status = status_of(
        (stuck, Status.precision_limit),
        (stuck & bends, Status.saddle),
        (stuck & ~finite, Status.nonfinite),
        (still, Status.converged),
        (merit < carry.lowest, Status.unbounded),
        otherwise=SEARCHING,
    )
    return Steered(
        path=path,
        merit=merit,
        lowest=carry.lowest,
        shift=_next_shift(trial, carry.merit - merit, decrement / 2, slack),
        iteration=carry.iteration + 1,
        stalls=stalls,
        step_norm=norm,
        status=status,
    )


def _decrement(feedback: Feedback) -> Array:
    """Return g' H^-1 g, twice the rise that is predicted."""
    return -jnp.sum(feedback.slopes * feedback.steps)


def _try_shifts(posed: Posed, carry: Steered, linear: Linear, slack: Array) -> Attempt:
    """Raise the shift until the step is good enough."""
    second = tensors(posed, carry.path)

    def attempt(shift: Array, tries: Array) -> Attempt:
        shift = shift.astype(slack.dtype)
        feedback = eliminate(carry.path.noise, linear, second, shift)
        path = follow(posed, carry.path, feedback)
        merit = merit_of(posed, path)
        decrement = _decrement(feedback)
        enough = merit <= carry.merit - _ENOUGH * decrement / 2 + slack
        done = enough & jnp.isfinite(merit) & jnp.all(jnp.isfinite(path.states))
        return Attempt(shift, path, feedback, merit, done, tries)

    def trying(last: Attempt) -> Array:
        return ~last.done & (last.tries < MOST_TRIES)

    def again(last: Attempt) -> Attempt:
        larger = grown(last.shift)
        shift = jnp.where(last.tries == 0, carry.shift, larger)
        return attempt(shift, last.tries + 1)

    like = jax.eval_shape(attempt, carry.shift, carry.stalls)
    begin = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.while_loop(trying, again, begin)


def _next_shift(trial: Attempt, rise: Array, predicted: Array, slack: Array) -> Array:
    less = lessened(trial.shift, rise, predicted, slack)
    return less.astype(slack.dtype)


def _leave_saddle(
    posed: Posed, carry: Steered, feedback: Feedback, definite: Array
) -> tuple[Driven, Array, Array]:
    """Step along the last pivot in time that is not positive, if there is any.

    Returns:
        The path; its merit, infinite if none was good enough; and whether the log
        posterior bends upwards there by more than rounding.
    """
    path, none = carry.path, jnp.full_like(carry.merit, jnp.inf)
    bad = feedback.pivots <= 0
    steps = jnp.arange(bad.shape[0])
    t = jnp.max(jnp.where(jnp.any(bad, axis=1), steps, 0))
    j = jnp.argmax(bad[t])
    direction = feedback.parts[0][t, j]
    bend = -feedback.pivots[t, j]
    slope = jnp.sum(feedback.slopes[t] * direction)
    towards = jnp.where(slope > 0, -direction, direction)
    floor = _ROUNDING_UNITS * jnp.finfo(bend.dtype).eps * feedback.sizes[t]
    bends = ~definite & (bend > floor)
    later = feedback._replace(
        gains=jnp.where((steps > t)[:, None, None], feedback.gains, 0),
        steps=jnp.where((steps == t)[:, None], towards, 0),
    )

    def along(length: Array) -> Driven:
        return follow(posed, path, later._replace(steps=length * later.steps))

    def trial(length: Array) -> tuple[Array, Array]:
        merit = merit_of(posed, along(length))
        rise = length * jnp.abs(slope) + length**2 * bend / 2
        return merit, merit <= carry.merit - _ENOUGH * rise

    def leave() -> tuple[Driven, Array]:
        length, merit, enough = search(
            trial, jnp.full_like(carry.merit, _KICK), _MOST_HALVINGS
        )
        return along(length), jnp.where(enough, merit, none)

    kicked, merit = jax.lax.cond(bends, leave, lambda: (path, none))
    return kicked, merit, bends
