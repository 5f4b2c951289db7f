r"""Newton's method on the log posterior with its exact curvature, towards a maximum.

Gauss-Newton passes stop where the expansion sees no slope, at a saddle or a minimum
too, or where the second derivatives that it lacks are large. From there on a pass does

    (-H + mu W + E) d = g,      W = diag of the magnitudes in -H, plus 1 / q

by one elimination over time (see `tridiagonal`), which also tells whether the matrix is
positive definite; E replaces just the pivots that are not positive. mu is the first of
the last one's tenth, 8 times that, ... for which log p(z, y) rises by a part of what
was predicted (Levenberg-Marquardt; Nocedal & Wright 2006, sections 3.4 and 4.3).

Where -H is not definite a direction of negative curvature is found by inverse
iteration, v <- (-H + mu W)^-1 W v, with mu bisected towards the smallest that is
definite, and the better of both steps is taken (Moré & Sorensen 1979, Math. Program.
16), so a saddle is left although its gradient is zero.

Converged is a definite -H, a step below tolerance, and a Newton decrement
g' (-H)^-1 g, twice the rise that is left, of nothing but rounding, per step of time and
in all. Where the rounding of a state is more than its deviation given all others,
1 / W, log p is noise there, and the end is called the limit of precision. On several
devices E is zero, and mu grows until the matrix is definite.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._loop import PATIENCE, SEARCHING, run_passes, status_of
from elk_ssm._types import Array
from elk_ssm.nssm.densities import log_joint_along
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.saddle import leave_saddle
from elk_ssm.nssm.second_order import Around, dot, look_around, solve_shifted
from elk_ssm.nssm.shifts import MOST_TRIES, grown, lessened
from elk_ssm.nssm.stopping import (
    entries,
    largest_increment,
    magnitude_of,
    size_of_states,
    slack_of,
)
from elk_ssm.solution import Status, int_status

_ENOUGH = 0.1
_UNBOUNDED = 1e15


class Climb(NamedTuple):
    """What travels through the loop; `status` is `SEARCHING` while it goes on."""

    states: Array
    merit: Array
    lowest: Array
    shift: Array
    iteration: Array
    stalls: Array
    step_norm: Array
    status: Array


class Trial(NamedTuple):
    """One shift mu: its step `(T, D)`, predicted reduction, whether it is enough."""

    shift: Array
    definite: Array
    increments: Array
    slope: Array
    reduction: Array
    merit: Array
    done: Array
    tries: Array


def climb(posed: Posed, first: Climb, tolerance: Array, max_iters: Array) -> Climb:
    """Run Newton passes until a stopping rule holds."""

    def body(carry: Climb) -> Climb:
        return newton_pass(posed, tolerance, carry)

    return run_passes(body, first, max_iters, SEARCHING)


def newton_pass(posed: Posed, tolerance: Array, carry: Climb) -> Climb:
    """Expand to second order, step, judge."""
    around = look_around(posed, carry.states)
    slack = slack_of(posed, carry.merit)
    trial = _try_shifts(posed, carry, around, tolerance, slack)
    kick, kicked, bends = leave_saddle(
        posed, carry.states, carry.merit, around, trial.definite
    )
    moved = trial.done & (trial.merit <= carry.merit + _loose(posed, carry))
    moved = moved & (trial.merit > -jnp.inf)
    better = jnp.isfinite(kicked) & ~(moved & (trial.merit <= kicked))
    increments = jnp.where(better, kick, trial.increments)
    merit = jnp.where(better, kicked, trial.merit)
    moved = moved | better
    states = jnp.where(moved, carry.states + increments, carry.states)
    scale = size_of_states(posed, carry.states, 1 / around.metric)
    norm, small = largest_increment(posed, increments, scale, tolerance)
    # A step that is shifted is short by itself.
    still = trial.done & (trial.shift <= 0) & ~bends & ~better
    still = still & _is_settled(
        posed, around, carry.states, trial.increments, tolerance
    )
    at_floor = (trial.reduction <= slack) & ~better & ~(norm < carry.step_norm)
    stalls = jnp.where(moved, jnp.where(at_floor, carry.stalls + 1, 0), PATIENCE)
    known = _is_known(posed, around, carry.states)
    status = _judge(posed, around, still & small, stalls, bends, known)
    rise = carry.merit - merit
    merit = jnp.where(moved, merit, carry.merit)
    boundless = _is_boundless(posed, carry, around, trial, merit, small)
    return Climb(
        states=states,
        merit=merit,
        lowest=carry.lowest,
        shift=_next_shift(trial, rise, slack),
        iteration=carry.iteration + 1,
        stalls=stalls,
        step_norm=norm,
        status=jnp.where(boundless, int_status(Status.unbounded), status),
    )


def _try_shifts(
    posed: Posed, carry: Climb, around: Around, tolerance: Array, slack: Array
) -> Trial:
    """Raise the shift until the step is good enough."""
    loose = _loose(posed, carry)

    def trying(trial: Trial) -> Array:
        return ~trial.done & (trial.tries < MOST_TRIES)

    def attempt(last: Trial) -> Trial:
        larger = grown(last.shift)
        shift = jnp.where(last.tries == 0, carry.shift, larger).astype(slack.dtype)
        step, definite = solve_shifted(posed, around, shift, around.gradient, True)
        usable = posed.axis.all(jnp.isfinite(step))
        if posed.axis.is_sharded:
            usable = usable & definite
        step = jnp.where(usable, step, 0)
        slope = dot(posed, around.gradient, step)
        reduction = (slope + shift * dot(posed, around.metric * step, step)) / 2
        density, left = log_joint_along(posed, carry.states + step, step)
        merit = -density
        enough = merit <= carry.merit - _ENOUGH * reduction + slack
        # Where large terms of log p cancel, its slope still tells what it does not.
        near = (reduction <= loose) & (merit <= carry.merit + loose)
        enough = enough | (near & (jnp.abs(left) <= slope / 2))
        # Where nothing but rounding is left, a longer search would follow the rounding.
        settled = definite & (shift <= 0) & (slope <= loose)
        settled = settled & _is_settled(posed, around, carry.states, step, tolerance)
        enough = (enough & jnp.isfinite(left)) | settled
        done = usable & (slope >= 0) & enough
        tries = last.tries + 1
        return Trial(shift, definite, step, slope, reduction, merit, done, tries)

    zero = jnp.zeros_like(slack)
    start = Trial(
        carry.shift,
        jnp.asarray(False),
        jnp.zeros_like(carry.states),
        *(zero, zero, carry.merit),
        jnp.asarray(False),
        jnp.asarray(0, jnp.int32),
    )
    return jax.lax.while_loop(trying, attempt, start)


def _loose(posed: Posed, carry: Climb) -> Array:
    """Return what the merit may rise by where it is made of large terms that cancel."""
    rounding = float(jnp.finfo(carry.merit.dtype).eps) ** (1 / 3)
    return rounding * magnitude_of(posed, carry.merit)


def _is_settled(
    posed: Posed, around: Around, states: Array, step: Array, tolerance: Array
) -> Array:
    """Whether the Newton decrement g' d is below tolerance, or of rounding."""
    rounded = _rounded(states)
    floor = dot(posed, around.metric * rounded, rounded)
    rise = jnp.sum(around.gradient * step, axis=1)
    each = posed.axis.all(jnp.abs(rise) <= jnp.maximum(tolerance, floor))
    total = posed.axis.total(jnp.sum(rise))
    return each & (total <= jnp.maximum(tolerance**2 * entries(posed), floor))


def _is_known(posed: Posed, around: Around, states: Array) -> Array:
    """Whether states are known to better than their deviations."""
    return posed.axis.all(around.metric * _rounded(states) ** 2 <= 1)


def _rounded(states: Array) -> Array:
    return 4 * jnp.finfo(states.dtype).eps * states


def _next_shift(trial: Trial, rise: Array, slack: Array) -> Array:
    less = lessened(trial.shift, rise, trial.reduction, slack)
    return less.astype(slack.dtype)


def _is_boundless(
    posed: Posed,
    carry: Climb,
    around: Around,
    trial: Trial,
    merit: Array,
    small: Array,
) -> Array:
    """Whether log p rose, or bends upwards near a point, beyond what a density can."""
    high = (merit < carry.lowest) | (trial.merit == -jnp.inf)
    most = 1 / jnp.finfo(merit.dtype).eps ** 2
    diagonal = jnp.diagonal(around.curvature.blocks, axis1=1, axis2=2)
    rest = around.metric - around.curvature.sizes
    bent = ~posed.axis.all(~(diagonal < -most * rest))
    return high | (bent & small)


def _judge(
    posed: Posed,
    around: Around,
    settled: Array,
    stalls: Array,
    bends: Array,
    known: Array,
) -> Array:
    finite = jnp.isfinite(around.gradient) & jnp.isfinite(around.metric)
    stuck = stalls >= PATIENCE
    return status_of(
        (stuck, Status.precision_limit),
        (stuck & bends, Status.saddle),
        (stuck & ~posed.axis.all(finite), Status.nonfinite),
        (settled, Status.converged),
        (settled & ~known, Status.precision_limit),
        otherwise=SEARCHING,
    )


def lowest_merit(posed: Posed, merit: Array) -> Array:
    """Return the merit below which a log posterior counts as unbounded."""
    return -_UNBOUNDED * (entries(posed) + jnp.abs(merit))
