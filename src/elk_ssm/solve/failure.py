"""What is done about a solve that did not converge: find the truth, or fall back.

Off the trajectory f may be undefined where on it it is not: a square root of an iterate
that is not positive yet. So a non-finite value accuses f only after the trajectory has
been followed step by step, which also finds the step at which it breaks.
"""

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.solution import Status, int_status
from elk_ssm.solve.problem import Problem
from elk_ssm.solve.rollout import roll_out_in_turn, roll_out_sequentially

_CHUNK = 512


@jax.named_scope("failure")
def settle_failure(
    problem: Problem,
    states: Array,
    status: Array,
    block_size: int,
    bad: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Follow a trajectory that is suspected to break; exact where it does not.

    Args:
        problem: The recurrence, of at least n C steps on this device.
        states: States `(n, D)` at the ends of blocks of C steps.
        status: What the method concluded.
        block_size: C.
        bad: Whether a state is not finite, where that is known.

    Returns:
        The states, which are the exact ones when the trajectory is finite and else
        finite up to the break and its last finite state after it; the status; and the
        step that failed (0 for the first), or -1.
    """
    if bad is None:
        bad = ~problem.axis.all(jnp.isfinite(states))
    suspect = (status == Status.nonfinite) | bad
    follow = _in_turn if problem.axis.is_sharded else _in_chunks
    states, failed = follow(problem, states, suspect, block_size)
    verdict = jnp.where(failed < 0, Status.converged, Status.nonfinite)
    status = jnp.where(suspect, verdict.astype(status.dtype), status)
    return states, status, failed


@jax.named_scope("hold")
def hold_at_break(initial: Array, states: Array, breaks: Array) -> tuple[Array, Array]:
    """Let a trajectory that is known to break stay at its last finite state.

    Args:
        initial: x_0, `(D,)`.
        states: All states, followed step by step, `(T, D)`.
        breaks: Whether one of them is not finite.

    Returns:
        The states; and the step that failed (0 for the first), or -1.
    """

    def hold(carry: tuple) -> tuple:
        _, states, _ = carry
        failed = jnp.argmin(jnp.all(jnp.isfinite(states), axis=1))
        last = jnp.where(failed > 0, states[jnp.maximum(failed - 1, 0)], initial)
        before = jnp.arange(len(states)) < failed
        held = jnp.where(before[:, None], states, last)
        return jnp.zeros_like(breaks), held, failed.astype(jnp.int32)

    # A loop and no `cond`, of which `vmap` would run both branches for every batch.
    begin = breaks, states, jnp.asarray(-1, jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0], hold, begin)[1:]


def _in_chunks(
    problem: Problem, states: Array, suspect: Array, block_size: int
) -> tuple[Array, Array]:
    """Replace suspected states, chunk by chunk; and the step that broke, or -1.

    Nothing of size T is formed, and nothing in here is the same in every round, which
    the compiler would hoist out of the loop and always evaluate.
    """
    count, initial = states.shape[0], problem.initial
    rows = min(max(_CHUNK // block_size, 1), count)

    def chunk(carry: tuple) -> tuple:
        first, states, failed = carry
        row = jnp.minimum(first, count - rows)
        before = jnp.where(row > 0, states[row - 1], initial)
        entries = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(
                x, row * block_size, rows * block_size
            ),
            problem.inputs,
        )
        steps = rows * block_size
        found = roll_out_sequentially(problem.step, before, entries, steps)
        broken = ~jnp.all(jnp.isfinite(found), axis=1)
        breaks = row * block_size + jnp.argmax(broken)
        breaks = jnp.where(jnp.any(broken), breaks, -1).astype(failed.dtype)
        failed = jnp.where(failed < 0, breaks, failed)
        # What lies behind a break stays at the last state before it.
        good = jnp.clip(failed // block_size - row, 0, rows)
        whole = jnp.where(failed < 0, rows, good)
        ends = found[block_size - 1 :: block_size]
        last = jnp.where(whole > 0, ends[jnp.maximum(whole - 1, 0)], before)
        ends = jnp.where((jnp.arange(rows) < whole)[:, None], ends, last)
        states = jax.lax.dynamic_update_slice_in_dim(states, ends, row, axis=0)
        return first + rows, states, failed

    # A loop and no `cond`, of which `vmap` would run both branches for every batch.
    begin = jnp.where(suspect, 0, count), states, jnp.asarray(-1, jnp.int32)
    _, states, failed = jax.lax.while_loop(lambda c: c[0] < count, chunk, begin)
    return states, failed


def _in_turn(
    problem: Problem, states: Array, suspect: Array, block_size: int
) -> tuple[Array, Array]:
    """The same with every device following its steps when its turn comes."""
    axis = problem.axis
    steps = states.shape[0] * block_size

    def follow(carry: tuple) -> tuple:
        every = jnp.repeat(carry[1], block_size, axis=0)
        found = roll_out_in_turn(problem, every)
        # Behind the end there are no steps that could fail.
        exists = axis.index(steps) < problem.length
        (first,) = axis.first_true(exists & ~jnp.all(jnp.isfinite(found), axis=1))
        ends = found[block_size - 1 :: block_size]
        row = first // block_size
        last = axis.row(ends, jnp.maximum(row - 1, 0))
        last = jnp.where(row > 0, last, problem.initial)
        kept = jnp.where((axis.index(len(ends)) < row)[:, None], ends, last)
        failed = jnp.where(first < axis.size * steps, first, -1).astype(jnp.int32)
        return jnp.zeros_like(suspect), kept, failed

    begin = suspect, states, jnp.asarray(-1, jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0], follow, begin)[1:]


@jax.named_scope("fall_back")
def fall_back(problem: Problem, states: Array, status: Array) -> tuple[Array, Array]:
    """Evaluate sequentially what the iteration did not bring to convergence."""
    undecided = status != Status.converged

    def evaluate(_: tuple) -> tuple:
        if problem.axis.is_sharded:
            found = roll_out_in_turn(problem, states)
        else:
            todo = problem.initial, problem.inputs, problem.length
            found = roll_out_sequentially(problem.step, *todo)
        return jnp.zeros_like(undecided), found

    # A loop and no `cond`, of which `vmap` would run both branches for every batch.
    _, states = jax.lax.while_loop(
        lambda carry: carry[0], evaluate, (undecided, states)
    )
    return states, jnp.where(undecided, int_status(Status.converged), status)
