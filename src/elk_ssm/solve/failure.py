"""What is done about a solve that did not converge: find the truth, or fall back.

Off the trajectory f may be undefined where on it it is not: a square root of an iterate
that is not positive yet. So a non-finite value accuses f only after the trajectory has
been followed step by step, which also finds the step at which it breaks.
"""

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.solution import Status, int_status
from elk_ssm.solve.nodes import roll_out_in_turn, roll_out_sequentially

_CHUNK = 512


def settle_failure(
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    states: Array,
    status: Array,
    block_size: int,
    length: int,
    axis: TimeAxis = LOCAL,
) -> tuple[Array, Array, Array]:
    """Follow a trajectory that is suspected to break; exact where it does not.

    Args:
        step: The recurrence on flat states.
        initial: x_0, `(D,)`.
        inputs: Leaves with a leading axis of at least n C steps.
        states: States `(n, D)` at the ends of blocks of C steps.
        status: What the method concluded.
        block_size: C.
        length: Number of steps of all devices.
        axis: Where time lives; n is then what this device holds.

    Returns:
        The states, which are the exact ones when the trajectory is finite and else
        finite up to the break and its last finite state after it; the status; and the
        step that failed (0 for the first), or -1.
    """
    suspect = (status == Status.nonfinite) | ~axis.all(jnp.isfinite(states))
    held = step, initial, inputs, states, suspect, block_size
    if axis.is_spread:
        states, failed = _in_turn(*held, length=length, axis=axis)
    else:
        states, failed = _in_chunks(*held)
    verdict = jnp.where(failed < 0, Status.converged, Status.nonfinite)
    status = jnp.where(suspect, verdict.astype(status.dtype), status)
    return states, status, failed


def _in_chunks(
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    states: Array,
    suspect: Array,
    block_size: int,
) -> tuple[Array, Array]:
    """Replace suspected states, chunk by chunk; and the step that broke, or -1.

    Nothing of size T is formed, and nothing in here is the same in every round, which
    the compiler would hoist out of the loop and always evaluate.
    """
    count = states.shape[0]
    rows = min(max(_CHUNK // block_size, 1), count)

    def chunk(carry: tuple) -> tuple:
        first, states, failed = carry
        row = jnp.minimum(first, count - rows)
        before = jnp.where(row > 0, states[row - 1], initial)
        entries = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(
                x, row * block_size, rows * block_size
            ),
            inputs,
        )
        found = roll_out_sequentially(step, before, entries, rows * block_size)
        broken = ~jnp.all(jnp.isfinite(found), axis=1)
        place = jnp.argmax(broken)
        breaks = jnp.where(jnp.any(broken), row * block_size + place, -1)
        # What lies behind a break stays at the last state before it.
        whole = jnp.where(breaks < 0, rows, place // block_size)
        whole = jnp.where(failed < 0, whole, 0)
        ends = found[block_size - 1 :: block_size]
        last = jnp.where(whole > 0, ends[jnp.maximum(whole - 1, 0)], before)
        ends = jnp.where((jnp.arange(rows) < whole)[:, None], ends, last)
        states = jax.lax.dynamic_update_slice_in_dim(states, ends, row, axis=0)
        failed = jnp.where(failed < 0, breaks.astype(failed.dtype), failed)
        return first + rows, states, failed

    # A loop and no `cond`, of which `vmap` would run both branches for every batch.
    begin = jnp.where(suspect, 0, count), states, jnp.asarray(-1, jnp.int32)
    _, states, failed = jax.lax.while_loop(lambda c: c[0] < count, chunk, begin)
    return states, failed


def _in_turn(
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    states: Array,
    suspect: Array,
    block_size: int,
    length: int,
    axis: TimeAxis,
) -> tuple[Array, Array]:
    """The same with every device following its steps when its turn comes."""

    def follow(carry: tuple) -> tuple:
        states = carry[1]
        steps = states.shape[0] * block_size
        every = jnp.repeat(states, block_size, axis=0)
        found = roll_out_in_turn(step, initial, inputs, every, axis)
        # Behind the end there are no steps that could fail.
        exists = axis.index(steps) < length
        (first,) = axis.first_true(exists & ~jnp.all(jnp.isfinite(found), axis=1))
        ends = found[block_size - 1 :: block_size]
        row = first // block_size
        last = jnp.where(row > 0, axis.row(ends, jnp.maximum(row - 1, 0)), initial)
        kept = jnp.where((axis.index(len(ends)) < row)[:, None], ends, last)
        failed = jnp.where(first < axis.size * steps, first, -1).astype(jnp.int32)
        return jnp.zeros_like(suspect), kept, failed

    begin = suspect, states, jnp.asarray(-1, jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0], follow, begin)[1:]


def fall_back(
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    length: int,
    states: Array,
    status: Array,
    axis: TimeAxis = LOCAL,
) -> tuple[Array, Array]:
    """Evaluate sequentially what the iteration did not bring to convergence."""
    undecided = status != Status.converged

    def evaluate(_: tuple) -> tuple:
        if axis.is_spread:
            found = roll_out_in_turn(step, initial, inputs, states, axis)
        else:
            found = roll_out_sequentially(step, initial, inputs, length)
        return jnp.zeros_like(undecided), found

    # A loop and no `cond`, of which `vmap` would run both branches for every batch.
    _, states = jax.lax.while_loop(
        lambda carry: carry[0], evaluate, (undecided, states)
    )
    return states, jnp.where(undecided, int_status(Status.converged), status)
