r"""Iterated smoothing: expand, smooth the increments, accept what raises log p(z, y).

One pass at the trajectory x:

    expansion   linear-Gaussian model of the increments around x       expansion
    trust       rows that observe the increments near zero             trust
    d           its smoothed mean, a Levenberg-Marquardt step           kalman
    x + a d     a = 1, 1/2, 1/4, ... until log p(z, y) has risen enough

The noise policy sees the merit -log p(z, y) of the accepted point and what the
expansion predicted for the full step, and so adapts the trust region.

A small step proves little: the trust region may be narrow, the expansion lacks second
derivatives, and at a saddle there is no slope. So these passes never say converged.
Where a step is small, where nothing is gained any more, or after `MOST_PASSES` of
them, Newton's method with the exact curvature takes over (see `newton`), in most cases
for the one pass that confirms the mode. Sigma points, whose own fixed point is no
maximum of log p(z, y), cease to raise log p close to it and hand over likewise.

Without the safeguard a small undamped step is convergence: with sigma points that is
iterated posterior linearisation (García-Fernández et al. 2017, IEEE Trans. Signal
Process. 65), towards its own fixed point.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from elk_ssm._loop import (
    PATIENCE,
    RUNNING,
    SEARCHING,
    cut_off,
    run_passes,
    status_of,
)
from elk_ssm._types import Array
from elk_ssm.linalg.structure import to_dense
from elk_ssm.nssm.densities import log_joint, log_joint_along
from elk_ssm.nssm.expansion import Expansion, expand, posterior_of
from elk_ssm.nssm.newton import Climb, climb, lowest_merit
from elk_ssm.nssm.options import Choices, Limits
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.stopping import (
    entries,
    largest_increment,
    search,
    size_of_states,
    slack_of,
)
from elk_ssm.nssm.trust import covariance_tilt, noise_scale, trust_rows
from elk_ssm.parallel.backend import Backend
from elk_ssm.solution import Status
from elk_ssm.surrogate.policy import NoisePolicy, first_state, see

_ENOUGH = 1e-4
_USEFUL = 0.25
_MOST_LENGTHS = 13
MOST_PASSES = 20


class Carry(NamedTuple):
    """What travels through the loop."""

    states: Array
    covariances: Array | None
    merit: Array
    last_merit: Array
    predicted: Array
    policy: Any
    undamped: Array
    iteration: Array
    stalls: Array
    step_norm: Array
    status: Array


class Step(NamedTuple):
    """The smoothed increments of one pass, and what the expansion says of them.

    `increments: (T, D)`, `slope` the derivative of log p along them, `reduction` the
    predicted one of the merit, `covariances` the posterior ones.
    """

    increments: Array
    slope: Array
    reduction: Array
    covariances: Array


def iterate(
    posed: Posed,
    guess: Array,
    choices: Choices,
    limits: Limits,
    policy: Any = None,
) -> Carry:
    """Run passes from a guess `(T, D)` until a stopping rule holds.

    `policy` is the noise policy's first state, if it is not to be made here. Where time
    is sharded over devices, all of them take the same decisions.
    """

    def body(carry: Carry) -> Carry:
        return one_pass(posed, choices, limits, carry)

    first = start(posed, guess, choices, limits, policy)
    carry = run_passes(body, first, limits.max_iters)
    if choices.safeguard:
        carry = _climb_on(posed, choices, limits, first, carry)
    return cut_off(carry)


def _climb_on(
    posed: Posed, choices: Choices, limits: Limits, first: Carry, carry: Carry
) -> Carry:
    """Go on by Newton's method, to a maximum."""
    shared = "states", "merit", "iteration", "step_norm", "status"
    begin = Climb(
        lowest=lowest_merit(posed, first.merit),
        shift=jnp.zeros_like(carry.merit),
        stalls=jnp.zeros_like(carry.stalls),
        **{name: getattr(carry, name) for name in shared},
    )
    found = climb(posed, begin, *limits[1:])
    # The slack for rounding in the line search must not add up to a loss.
    keep = found.merit <= first.merit
    carry = carry._replace(**{name: getattr(found, name) for name in shared})
    carry = carry._replace(states=jnp.where(keep, found.states, first.states))
    if carry.covariances is None:
        return carry
    around = expand(posed, carry.states)
    return carry._replace(covariances=_posterior(posed, around, choices.backend)[1])


def start(
    posed: Posed,
    guess: Array,
    choices: Choices,
    limits: Limits,
    policy: Any = None,
) -> Carry:
    """Return the carry before the first pass."""
    merit = -log_joint(posed, guess)
    unknown = jnp.full_like(merit, jnp.inf)
    covariances = None
    if choices.linearization != "taylor":
        covariances = _posterior(posed, expand(posed, guess), choices.backend)[1]
    return Carry(
        states=guess,
        covariances=covariances,
        merit=merit,
        last_merit=unknown,
        predicted=unknown,
        policy=first_state(limits.noise, posed.shape, guess.dtype, policy),
        undamped=jnp.asarray(False),
        iteration=jnp.asarray(0, jnp.int32),
        stalls=jnp.asarray(0, jnp.int32),
        step_norm=unknown,
        status=status_of((~jnp.isfinite(merit), Status.nonfinite)),
    )


def one_pass(posed: Posed, choices: Choices, limits: Limits, carry: Carry) -> Carry:
    """Expand, step, accept, judge."""
    expansion = expand(posed, carry.states, carry.covariances, choices.linearization)
    policy, precision = _consult_policy(posed, limits.noise, carry, expansion)
    step = _step(posed, choices, carry, expansion, precision)
    slack = slack_of(posed, carry.merit)
    length, merit = _search(posed, choices, carry, step, slack)
    moved = length > 0
    states = jnp.where(moved, carry.states + length * step.increments, carry.states)
    scale = size_of_states(posed, carry.states, noise_scale(posed, expansion))
    norm, small = largest_increment(posed, step.increments, scale, limits.tolerance)
    damped = ~posed.axis.all(precision <= 0)
    at_floor = (step.reduction <= slack) & ~(norm < carry.step_norm)
    hopeless = ~moved & ((limits.noise is None) | (step.reduction <= slack))
    stalls = jnp.where(at_floor | hopeless, carry.stalls + 1, 0)
    stuck = (stalls >= PATIENCE) | (~moved & (stalls >= 1) & (limits.noise is None))
    if choices.safeguard:
        useful = moved & (step.reduction > slack)
        if carry.covariances is not None:
            useful = useful & (carry.merit - merit >= _USEFUL * step.reduction)
            stuck = stuck | ~useful
        late = carry.iteration + 1 >= MOST_PASSES
        status = jnp.where(small | stuck | late, SEARCHING, RUNNING).astype(jnp.int32)
    else:
        status = _judge(posed, small & ~damped, stuck, step, limits)
    carry = carry._replace(
        states=states,
        merit=jnp.where(moved, merit, carry.merit),
        last_merit=carry.merit,
        predicted=carry.merit - step.reduction,
        policy=policy,
        # Without the safeguard, look without damping after a small damped step, once.
        undamped=small & damped & ~carry.undamped,
        iteration=carry.iteration + 1,
        stalls=stalls,
        step_norm=norm,
        status=status,
    )
    if carry.covariances is None:
        return carry
    finite = posed.axis.all(jnp.isfinite(step.covariances))
    kept = jnp.where(finite, step.covariances, carry.covariances)
    return carry._replace(covariances=kept)


def _consult_policy(
    posed: Posed, noise: NoisePolicy | None, carry: Carry, expansion: Expansion
) -> tuple[Any, Array]:
    """Return the policy's state and the precision of the trust rows, `(T, D)`."""
    if noise is None:
        return None, jnp.zeros_like(carry.states)
    residual = posed.at_start(expansion.first, expansion.offsets)
    if posed.exists is not None:
        residual = jnp.where(posed.exists[:, None], residual, 0)
    merits = carry.merit, carry.last_merit, carry.predicted
    seen = see(posed.axis, residual, entries(posed), carry.iteration, merits)
    policy, _ = noise.update(carry.policy, seen)
    precision = 1 / (noise.noise(policy) * noise_scale(posed, expansion))
    return policy, jnp.where(carry.undamped, 0, precision)


def _step(
    posed: Posed,
    choices: Choices,
    carry: Carry,
    expansion: Expansion,
    precision: Array,
) -> Step:
    tilt = covariance_tilt(posed, carry.states)
    if carry.policy is not None or tilt is not None:
        expansion = expansion.with_rows(trust_rows(precision, tilt))
    increments, covariances = _posterior(posed, expansion, choices.backend)
    _, slope = log_joint_along(posed, carry.states, increments)
    # Of (H + P) d = g, with P the trust region: g'd - d'Hd / 2 = g'd / 2 + d'Pd / 2.
    damping = posed.axis.total(jnp.sum(precision * increments**2))
    reduction = (slope + damping) / 2
    return Step(increments, slope, reduction, covariances)


def _posterior(
    posed: Posed, expansion: Expansion, backend: Backend
) -> tuple[Array, Array]:
    posterior = posterior_of(posed, expansion, backend)
    return posterior.smoothed_means, to_dense(posterior.smoothed_covariances)


def _search(
    posed: Posed, choices: Choices, carry: Carry, step: Step, slack: Array
) -> tuple[Array, Array]:
    """Return the accepted step length, 0 if none, and its merit."""

    def merit_at(length: Array) -> Array:
        states = carry.states + length * step.increments
        density, slope = log_joint_along(posed, states, step.increments)
        # A point without derivatives is no place to go on from.
        return jnp.where(jnp.isfinite(slope), -density, jnp.inf)

    if not choices.safeguard:
        one = jnp.ones_like(slack)
        merit = merit_at(one)
        finite = posed.axis.all(jnp.isfinite(step.increments)) & jnp.isfinite(merit)
        return jnp.where(finite, one, 0), merit

    def trial(length: Array) -> tuple[Array, Array]:
        merit = merit_at(length)
        rise = _ENOUGH * length * jnp.maximum(step.slope, 0)
        return merit, merit <= carry.merit - rise + slack

    length, merit, enough = search(trial, jnp.ones_like(slack), _MOST_LENGTHS)
    return jnp.where(enough, length, 0), merit


def _judge(
    posed: Posed, converged: Array, stuck: Array, step: Step, limits: Limits
) -> Array:
    broken = ~posed.axis.all(jnp.isfinite(step.increments)) & (limits.noise is None)
    return status_of(
        (stuck, Status.precision_limit),
        (converged, Status.converged),
        (broken, Status.nonfinite),
    )
