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
    nowhere = jnp.asarray(-1, jnp.int32)

    def truth(carry: tuple) -> tuple:
        if axis.is_spread:
            found = _in_turn(step, initial, inputs, carry[1], block_size, length, axis)
        else:
            found = _in_chunks(step, initial, inputs, carry[1], block_size)
        return jnp.zeros_like(suspect), *found

    # A loop and no `cond`, of which `vmap` would run both branches for every batch.
    _, states, failed = jax.lax.while_loop(
        lambda carry: carry[0], truth, (suspect, states, nowhere)
    )
    verdict = jnp.where(failed < 0, Status.converged, Status.nonfinite)
    status = jnp.where(suspect, verdict.astype(status.dtype), status)
    return states, status, failed


def _in_chunks(
    step: FlatStep, initial: Array, inputs: PyTree, states: Array, block_size: int
) -> tuple[Array, Array]:
    """Replace the states, chunk by chunk until one breaks; and the step that did.

    Nothing of size T is formed, and nothing in here is the same in every round, which
    the compiler would hoist out of the loop and always evaluate.
    """
    count = states.shape[0]
    rows = min(max(_CHUNK // block_size, 1), count)

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < count) & (carry[2] < 0)

    def chunk(carry: tuple) -> tuple:
        first, states, _ = carry
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
        failed = jnp.where(jnp.any(broken), row * block_size + place, -1)
        ends = found[block_size - 1 :: block_size]
        states = jax.lax.dynamic_update_slice_in_dim(states, ends, row, axis=0)
        return first + rows, states, failed.astype(jnp.int32)

    begin = jnp.asarray(0, jnp.int32), states, jnp.asarray(-1, jnp.int32)
    _, states, failed = jax.lax.while_loop(unfinished, chunk, begin)
    row = jnp.where(failed < 0, count, failed // block_size)
    last = jnp.where(row > 0, states[jnp.maximum(row - 1, 0)], initial)
    return jnp.where((jnp.arange(count) < row)[:, None], states, last), failed


def _in_turn(
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    states: Array,
    block_size: int,
    length: int,
    axis: TimeAxis,
) -> tuple[Array, Array]:
    """The same with every device following its steps when its turn comes."""
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
    return kept, jnp.where(first < axis.size * steps, first, -1).astype(jnp.int32)


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
