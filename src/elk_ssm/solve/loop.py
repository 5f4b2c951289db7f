r"""The one loop. Every method is this loop with other parts.

One pass at the nodes X (states at block ends; every state when C = 1):

    F, A   = block maps and their stand-in Jacobians at X           surrogate
    r      = X - F                                                  residual
    step   = solution of  d_k = A_k d_{k-1} - r_k                   undamped
    d      = step, or the filter or smoother mean with noise s^2    damped
    X      = X + d, exact prefix kept, gate applied

It stops when `stopping.judge` finds everything below tolerance and `certify` finds that
this is a small error, or when the exact prefix covers all nodes, so that n passes
always suffice.
"""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, FlatStep
from elk_ssm.kalman.affine import apply
from elk_ssm.parallel.backend import Backend, by_backend
from elk_ssm.solution import History, Status, int_status
from elk_ssm.solve.carry import RUNNING, Carry, Prefix, start
from elk_ssm.solve.certify import try_out
from elk_ssm.solve.gate import Gate, extend_prefix, set_back, settle_prefix
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import Blocks
from elk_ssm.solve.passes import Pass, damped_update, evaluate_pass, mean_noise
from elk_ssm.solve.stopping import (
    PATIENCE,
    Tolerance,
    Verdict,
    differs_in_sign_of_zero,
    going_on,
    judge,
    may_end,
    rounding_floor,
    scale_of,
)
from elk_ssm.surrogate.policy import Seen

_PROGRESS = 0.25


def iterate(
    method: Method,
    step: FlatStep,
    blocks: Blocks,
    guess: Array,
    tolerance: Tolerance,
    max_iters: Array,
    *,
    history: int,
    backend: Backend,
    policy: Any = None,
) -> Carry:
    """Run passes until one of the stopping rules holds.

    With `blocks.axis` spread over devices every device runs this on its own blocks, and
    all of them take the same decisions.

    Args:
        method: What to run.
        step: The recurrence on flat states.
        blocks: Its layout, n blocks.
        guess: First nodes, `(n, D)`, finite.
        tolerance: Relative and absolute tolerance.
        max_iters: Largest number of passes, `()`.
        history: How many passes to record.
        backend: Which scans to use.
        policy: First state of the noise policy, if it is not to be made here.
    """

    def running(carry: Carry) -> Array:
        return (carry.status == RUNNING) & (carry.iteration < max_iters)

    def body(carry: Carry) -> Carry:
        after, scale = one_pass(method, step, blocks, tolerance, backend, carry)
        bound = tolerance.bound(scale), rounding_floor(scale)
        return try_out(step, blocks, bound, backend, carry, after)

    carry = jax.lax.while_loop(running, body, start(method, guess, history, policy))
    cut_off = jnp.where(
        carry.status == RUNNING, int_status(Status.max_iters_reached), carry.status
    )
    return carry._replace(status=cut_off)


@jax.named_scope("one_pass")
def one_pass(
    method: Method,
    step: FlatStep,
    blocks: Blocks,
    tolerance: Tolerance,
    backend: Backend,
    carry: Carry,
) -> tuple[Carry, Array]:
    """Evaluate, judge, update; and the sizes that a conclusion is relative to."""
    seen = evaluate_pass(method, step, blocks, backend, carry.nodes, carry.iteration)
    axis = blocks.axis
    carry, accept = _consult_policy(method, blocks, carry, seen)
    noise = None if method.noise is None else method.noise.noise(carry.policy)
    verdict, scale = _judge(method, blocks, tolerance, backend, carry, seen)
    update = (
        seen.step
        if noise is None
        else damped_update(method, seen, noise, backend, axis)
    )
    update = jnp.where(verdict.converged, seen.step, update)
    exact = extend_prefix(carry.exact, carry.nodes, seen.values, axis)
    edge = axis.row(seen.values, exact - 1)

    def settled(step: Array) -> Array:
        candidate = carry.nodes + step
        # Zeros take the sign that f gave them.
        candidate = jnp.where(candidate == seen.values, seen.values, candidate)
        return settle_prefix(candidate, carry.nodes, seen.values, exact, axis)

    nodes, free = settled(update), settled(seen.step)
    small = jnp.all(jnp.abs(seen.residual) <= tolerance.bound(scale), axis=1)
    damped = nodes
    prefix = Prefix(exact, edge)
    nodes, carry = _gate(
        method, blocks, carry, seen, verdict, nodes, free, small, prefix
    )
    set_back = None
    if carry.history is not None:
        ungated = damped if method.gate is None else jnp.where(carry.free, free, damped)
        set_back = axis.total(jnp.sum(jnp.any(nodes != ungated, axis=1)))
    stalls = jnp.where(verdict.stalled, carry.stalls + 1, 0)
    carry = carry._replace(stalls=stalls)
    status = _status(verdict, stalls, prefix, blocks.unknowns)
    # Behind a break the iterate is better than its update.
    nodes = jnp.where(status == Status.nonfinite, carry.nodes, nodes)
    if carry.accepted is not None:
        frozen = axis.index(nodes.shape[0])[:, None] < exact
        stay = accept | frozen | (status != RUNNING)
        nodes = jnp.where(stay, nodes, carry.accepted)
    carry = _record(
        blocks, carry, seen, verdict, noise, nodes, exact, set_back, status, update
    )
    return carry, scale


def _judge(
    method: Method,
    blocks: Blocks,
    tolerance: Tolerance,
    backend: Backend,
    carry: Carry,
    seen: Pass,
) -> tuple[Verdict, Array]:
    """Judge by local sizes, and return them; if they may matter, and else zeros.

    They cost several passes over the nodes, while a branch costs an accelerator a look
    at the host and devices their agreement. The gate needs the sizes anyway.
    """
    axis = blocks.axis
    found = seen.residual, seen.step

    def judged() -> tuple[Verdict, Array]:
        alike = ~differs_in_sign_of_zero(carry.nodes, seen.values)
        scale = scale_of(seen.values, blocks.size, axis)
        verdict = judge(*found, alike, scale, tolerance, carry.step_norm, axis)
        return verdict, scale

    def unjudged() -> tuple[Verdict, Array]:
        return going_on(*found), jnp.zeros_like(seen.values)

    def judged_if_needed() -> tuple[Verdict, Array]:
        needed = may_end(seen.residual, seen.values, tolerance)
        return jax.lax.cond(needed, judged, unjudged)

    if method.gate is not None or axis.is_spread:
        return judged()
    return by_backend(backend, judged_if_needed, judged)


def _consult_policy(
    method: Method, blocks: Blocks, carry: Carry, seen: Pass
) -> tuple[Carry, Array]:
    """Let the noise policy see the iterate; it may adapt, and may refuse it."""
    if method.noise is None:
        return carry, jnp.asarray(True)
    squares = blocks.axis.total(jnp.sum(seen.residual**2))
    merit = squares / 2
    merit = jnp.where(jnp.isfinite(merit), merit, jnp.inf)
    state, accept = method.noise.update(
        carry.policy,
        Seen(
            seen.residual,
            merit,
            carry.merit,
            carry.predicted,
            carry.iteration,
            squares / (blocks.unknowns * seen.residual.shape[1]),
        ),
    )
    carry = carry._replace(policy=state)
    if carry.accepted is None:
        return carry, accept
    return carry._replace(
        merit=jnp.where(accept, merit, carry.merit),
        accepted=jnp.where(accept, carry.nodes, carry.accepted),
    ), accept


def _gate(
    method: Method,
    blocks: Blocks,
    carry: Carry,
    seen: Pass,
    verdict: Verdict,
    nodes: Array,
    free: Array,
    small: Array,
    prefix: Prefix,
) -> tuple[Array, Carry]:
    """Apply the gate; the first updates are tried undamped and ungated.

    A linear recurrence is solved by the first undamped pass, however far out it goes,
    and one that forgets by a few; gate and damping would hold them back. So the free
    nodes go on while each pass quarters the largest residual. The gated ones wait, and
    take over at the first pass that does not.

    Returns:
        The nodes to go on with, and the carry with the gated ones that wait.
    """
    to_rollout, axis = blocks.size > 1, blocks.axis

    def apply_gate(gate: Gate | None, nodes: Array) -> Array:
        return set_back(
            gate,
            nodes,
            seen.values,
            small,
            blocks.initial,
            prefix.exact,
            to_rollout=to_rollout,
            last_exact=prefix.edge,
            axis=axis,
        )

    if method.gate is None:
        return apply_gate(None, nodes), carry
    assert carry.gated is not None
    gated = apply_gate(method.gate, nodes)
    frozen = axis.index(nodes.shape[0])[:, None] < prefix.exact
    waiting = jnp.where(frozen, nodes, carry.gated)
    falling = verdict.residual_norm <= _PROGRESS * carry.residual_norm
    free_still = carry.free & (falling | axis.all(small))
    onward = jnp.where(carry.free, waiting, gated)
    chosen = jnp.where(free_still, apply_gate(None, free), onward)
    return chosen, carry._replace(gated=gated, free=free_still)


def _status(verdict: Verdict, stalls: Array, prefix: Prefix, count: int) -> Array:
    complete = prefix.exact >= count
    # The prefix is exact, so a non-finite rollout value at its end is f's own.
    broken = verdict.suspect | ~jnp.all(jnp.isfinite(prefix.edge))
    limit = int_status(Status.precision_limit)
    status = jnp.where(stalls >= PATIENCE, limit, RUNNING)
    done = verdict.converged | complete
    status = jnp.where(done, int_status(Status.converged), status)
    return jnp.where(broken, int_status(Status.nonfinite), status)


def _record(
    blocks: Blocks,
    carry: Carry,
    seen: Pass,
    verdict: Verdict,
    noise: Array | None,
    nodes: Array,
    exact: Array,
    set_back: Array | None,
    status: Array,
    update: Array,
) -> Carry:
    residual_norm, step_norm = verdict.residual_norm, verdict.step_norm
    history = carry.history
    if history is not None and set_back is not None:
        level = jnp.inf if noise is None else mean_noise(blocks, noise)
        i = carry.iteration
        history = History(
            history.residual_norm.at[i].set(residual_norm, mode="drop"),
            history.step_norm.at[i].set(step_norm, mode="drop"),
            history.noise.at[i].set(level, mode="drop"),
            history.exact.at[i].set(exact, mode="drop"),
            history.set_back.at[i].set(set_back, mode="drop"),
        )
    predicted = carry.predicted
    if carry.accepted is not None:
        before = blocks.axis.before(jnp.zeros_like(update[0]), update)
        after = seen.residual + update - apply(seen.operator, before)
        predicted = blocks.axis.total(jnp.sum(after**2)) / 2
    return carry._replace(
        nodes=nodes,
        predicted=predicted,
        iteration=carry.iteration + 1,
        exact=exact,
        status=status,
        residual_norm=residual_norm,
        step_norm=step_norm,
        history=history,
    )
