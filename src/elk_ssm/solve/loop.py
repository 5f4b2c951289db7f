r"""The one loop. Every method is this loop with other parts.

One pass at the nodes X (states at block ends; every state when C = 1):

    F, A   = block maps and their stand-in Jacobians at X           surrogate
    r      = X - F                                                  residual
    step   = solution of  d_k = A_k d_{k-1} - r_k                   undamped
    d      = step, the step mixed with those of earlier passes,     anderson
             or the filter or smoother mean with noise s^2    damped
    X      = X + d, exact prefix kept, gate applied

It stops when `stopping.judge` finds everything below tolerance and `certify` finds that
this is a small error, or when the exact prefix covers all nodes, so that n passes
always suffice.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._loop import PATIENCE, RUNNING, cut_off, run_passes, status_of
from elk_ssm._progress import passed
from elk_ssm._types import Array
from elk_ssm.kalman.affine import apply
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.parallel.backend import by_backend
from elk_ssm.solution import History, Status
from elk_ssm.solve.anderson import mix
from elk_ssm.solve.carry import Carry, Prefix, record, start
from elk_ssm.solve.certify import try_out
from elk_ssm.solve.gate import (
    Gate,
    beyond_prefix,
    even_out,
    instead_of_rejected,
    rejected,
    settle_prefix,
)
from elk_ssm.solve.nodes import Blocks
from elk_ssm.solve.options import Options
from elk_ssm.solve.passes import Pass, damped_update, evaluate_pass, mean_noise
from elk_ssm.solve.stopping import (
    Facts,
    Verdict,
    differs_in_sign_of_zero,
    going_on,
    judge,
    may_end,
    sizes_of,
)
from elk_ssm.surrogate.policy import NoisePolicy, see

_PROGRESS = 0.25


class Candidates(NamedTuple):
    """Where the nodes may go, each `(n, D)`, the exact prefix settled.

    Attributes:
        damped: By the update of the method.
        undamped: By the undamped step.
        fallback: Where rejected nodes go instead.
        small: Whether the residual of each node is small, `(n,)`.
    """

    damped: Array
    undamped: Array
    fallback: Array
    small: Array


def iterate(blocks: Blocks, nodes: Array, options: Options, policy: Any) -> Carry:
    """Run passes until one of the stopping rules holds.

    With `blocks.axis` sharded over devices every device runs this on its own blocks,
    and all of them take the same decisions.

    Args:
        blocks: The recurrence in n blocks.
        nodes: First nodes, `(n, D)`, finite.
        options: What to run, and when to stop.
        policy: First state of the noise policy, or None if it is to be made here.
    """

    def body(carry: Carry) -> Carry:
        after = one_pass(blocks, options, carry)
        if options.progress:
            passed(after.iteration, after.exact * blocks.size, after.residual_norm)
        return after

    def until_tried(carry: Carry) -> Carry:
        # Apart from the passes, of which each would have to ask whether to try.
        with jax.named_scope("passes"):
            carry = run_passes(body, carry, options.max_iters)
        return try_out(blocks, options.tolerance, options.backend, carry)

    how: Any = {"sharded": blocks.axis.is_sharded}
    begin = start(options.concrete, nodes, options.history, policy, **how)
    with jax.named_scope("rounds"):
        return cut_off(run_passes(until_tried, begin, options.max_iters))


@jax.named_scope("one_pass")
def one_pass(blocks: Blocks, options: Options, carry: Carry) -> Carry:
    """Evaluate, judge, update."""
    method, axis = options.concrete, blocks.axis
    seen = evaluate_pass(blocks, options, carry.nodes, carry.iteration)
    carry, accept = _consult_policy(blocks, method.noise, carry, seen)
    verdict, scale = _judge(blocks, options, carry, seen)
    bound = options.tolerance.bound(scale)
    noise, update = None, seen.undamped
    if method.noise is not None:
        noise = method.noise.noise(carry.policy)
        # While the first updates are undamped, nobody asks for a damped one.
        unasked = verdict.converged
        if carry.gated is not None:
            unasked = unasked | carry.undamped
        update = damped_update(blocks, options, seen, noise, unasked)
    if method.anderson is not None and carry.mixed is not None:
        mixed = mix(method.anderson, carry.mixed, carry.nodes, update, axis)
        update, carry = mixed[0], carry._replace(mixed=mixed[1])
    exact = jnp.minimum(verdict.first_inexact + 1, axis.size * blocks.number)
    exact = exact.astype(carry.exact.dtype)
    prefix = Prefix(exact, axis.row(seen.values, exact - 1))
    found = _candidates(blocks, carry, seen, update, prefix, bound)
    nodes, carry = _gate(blocks, method.gate, carry, found, verdict, exact)
    if carry.history is not None:
        ungated = jnp.where(carry.undamped, found.undamped, found.damped)
        set_back = axis.total(jnp.sum(jnp.any(nodes != ungated, axis=1)))
        level: Any = jnp.inf if noise is None else mean_noise(blocks, noise)
        now = History(verdict.residual_norm, verdict.step_norm, level, exact, set_back)
        carry = carry._replace(history=record(carry.history, now, carry.iteration))
    stalls = jnp.where(verdict.stalled, carry.stalls + 1, 0)
    status = _status(verdict, stalls, exact, blocks.unknowns)
    # Behind a break, and at the rounding floor, an iterate is better than its update.
    kept = (status == Status.nonfinite) | (status == Status.precision_limit)
    nodes = jnp.where(kept, carry.nodes, nodes)
    if method.gate is not None and method.gate.rollouts and blocks.size > 1:
        idle = carry.undamped | (status != RUNNING)
        nodes = _even_out(blocks, method.gate, nodes, exact, idle)
    if carry.accepted is not None:
        stay = accept | _frozen(blocks, exact) | (status != RUNNING)
        nodes = jnp.where(stay, nodes, carry.accepted)
        carry = carry._replace(predicted=_predicted_merit(blocks, seen, update))
    return carry._replace(
        nodes=nodes,
        scale=scale if axis.is_sharded else None,
        iteration=carry.iteration + 1,
        exact=exact,
        status=status,
        stalls=stalls,
        residual_norm=verdict.residual_norm,
        step_norm=verdict.step_norm,
    )


def _frozen(blocks: Blocks, exact: Array) -> Array:
    """Which nodes belong to the exact prefix, `(n, 1)`."""
    return blocks.axis.index(blocks.number)[:, None] < exact


def _judge(
    blocks: Blocks, options: Options, carry: Carry, seen: Pass
) -> tuple[Verdict, Array]:
    """Judge by local sizes, and return them; if they may matter, and else zeros.

    They cost several passes over the nodes, while a branch costs an accelerator a look
    at the host and devices their agreement. The gate needs the sizes anyway.
    """
    axis, tolerance = blocks.axis, options.tolerance
    found = Facts(
        seen.residual,
        seen.undamped,
        ~differs_in_sign_of_zero(carry.nodes, seen.values),
        beyond_prefix(carry.exact, carry.nodes, seen.values, axis),
    )

    def judged() -> tuple[Verdict, Array]:
        scale = sizes_of(seen.values, blocks.size, axis)
        verdict = judge(found, scale, tolerance, carry.step_norm, axis)
        return verdict, scale.local

    def unjudged() -> tuple[Verdict, Array]:
        return going_on(found), jnp.zeros_like(seen.values)

    def judged_if_needed() -> tuple[Verdict, Array]:
        needed = may_end(seen.residual, seen.values, tolerance)
        return jax.lax.cond(needed, judged, unjudged)

    if options.concrete.gate is not None or axis.is_sharded:
        return judged()
    return by_backend(options.backend, judged_if_needed, judged)


def _consult_policy(
    blocks: Blocks, policy: NoisePolicy | None, carry: Carry, seen: Pass
) -> tuple[Carry, Array]:
    """Let the noise policy see the iterate; it may adapt, and may refuse it."""
    if policy is None:
        return carry, jnp.asarray(True)
    residual, entries = seen.residual, blocks.unknowns * seen.residual.shape[1]
    merits = None, carry.merit, carry.predicted
    at = see(blocks.axis, residual, entries, carry.iteration, merits)
    state, accept = policy.update(carry.policy, at)
    carry = carry._replace(policy=state)
    if carry.accepted is None:
        return carry, accept
    return carry._replace(
        merit=jnp.where(accept, at.merit, carry.merit),
        accepted=jnp.where(accept, carry.nodes, carry.accepted),
    ), accept


def _predicted_merit(blocks: Blocks, seen: Pass, update: Array) -> Array:
    """Half the sum of squared residuals that the linearised dynamics predict."""
    before = blocks.axis.shift(jnp.zeros_like(update[0]), update)
    after = seen.residual + update - apply(seen.operator, before)
    return blocks.axis.total(jnp.sum(after**2)) / 2


def _candidates(
    blocks: Blocks,
    carry: Carry,
    seen: Pass,
    update: Array,
    prefix: Prefix,
    bound: Array,
) -> Candidates:
    """Where the nodes may go; without a gate nobody asks for the undamped step."""
    nodes, values = carry.nodes, seen.values

    def settled(step: Array) -> Array:
        candidate = nodes + step
        # Zeros take the sign that f gave them.
        candidate = jnp.where(candidate == values, values, candidate)
        return settle_prefix(candidate, nodes, values, prefix.exact, blocks.axis)

    damped = settled(update)
    undamped = damped if carry.gated is None else settled(seen.undamped)
    fallback = instead_of_rejected(blocks, values, prefix.edge)
    small = jnp.all(jnp.abs(seen.residual) <= bound, axis=1)
    return Candidates(damped, undamped, fallback, small)


def _gate(
    blocks: Blocks,
    gate: Gate | None,
    carry: Carry,
    found: Candidates,
    verdict: Verdict,
    exact: Array,
) -> tuple[Array, Carry]:
    """Apply the gate; the first updates are tried undamped and ungated.

    A linear recurrence is solved by the first undamped pass, however far out it goes,
    and one that forgets by a few; gate and damping would hold them back. So the
    undamped nodes go on while each pass quarters the largest residual. The gated ones
    wait, and take over at the first pass that does not.

    Returns:
        The nodes to go on with, and the carry with the gated ones that wait.
    """

    def through(gate: Gate | None, nodes: Array) -> Array:
        outside = rejected(gate, blocks, nodes, found.small, exact)
        return jnp.where(outside[:, None], found.fallback, nodes)

    if carry.gated is None:
        return through(None, found.damped), carry
    gated = through(gate, found.damped)
    waiting = jnp.where(_frozen(blocks, exact), found.damped, carry.gated)
    falling = verdict.residual_norm <= _PROGRESS * carry.residual_norm
    undamped = carry.undamped & (falling | blocks.axis.all(found.small))
    onward = jnp.where(carry.undamped, waiting, gated)
    chosen = jnp.where(undamped, through(None, found.undamped), onward)
    return chosen, carry._replace(gated=gated, undamped=undamped)


def _even_out(
    blocks: Blocks, gate: Gate, nodes: Array, exact: Array, idle: Array
) -> Array:
    """Pass on what the gate let through, unless nothing was gated, or all is over."""

    def evened() -> Array:
        return even_out(gate, blocks, nodes, exact)

    found = jax.lax.cond(anywhere(~idle), evened, lambda: nodes)
    return jnp.where(idle, nodes, found)


def _status(verdict: Verdict, stalls: Array, exact: Array, count: int) -> Array:
    complete = exact >= count
    # The prefix is exact, so a non-finite rollout value at its end is f's own.
    broken = verdict.suspect | verdict.breaks
    return status_of(
        (stalls >= PATIENCE, Status.precision_limit),
        (verdict.converged | complete, Status.converged),
        (broken, Status.nonfinite),
    )
