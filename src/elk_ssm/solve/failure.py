"""What is done about a solve that did not converge: locate the cause, or fall back."""

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.kalman.time_axis import LOCAL, TimeAxis
from elk_ssm.solution import Status, int_status
from elk_ssm.solve.nodes import (
    in_blocks,
    roll_out_in_turn,
    roll_out_sequentially,
    starts,
)

_CHUNK = 512


def find_failure(
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    states: Array,
    status: Array,
    block_size: int = 1,
    axis: TimeAxis = LOCAL,
    length: int | None = None,
) -> tuple[Array, Array, Array]:
    """Locate the first non-finite value that f returns along the trajectory.

    Args:
        step: The recurrence on flat states.
        initial: x_0, `(D,)`.
        inputs: Leaves with a leading axis of at least n C steps.
        states: States `(n, D)` at the ends of blocks of C steps.
        status: What the method concluded.
        block_size: C.
        axis: Where time lives; n is then what this device holds.
        length: Number of steps of all devices, needed where time is spread.

    Returns:
        The states with non-finite rows replaced by the last finite one before them,
        the status, and the failed step or -1.
    """
    suspect = (status == Status.nonfinite) | ~axis.all(jnp.isfinite(states))

    def locate(carry: tuple) -> tuple:
        _, states, _ = carry
        begin = axis.before(initial, states)[0] if axis.is_spread else initial
        failed = _first_nonfinite(step, begin, inputs, states, block_size)
        if axis.is_spread:
            assert length is not None
            piece = states.shape[0] * block_size
            somewhere = failed + axis.place * piece
            # Behind the end there are no steps that could fail.
            found = (failed >= 0) & (somewhere < length)
            failed = axis.smallest(jnp.where(found, somewhere, length))
            failed = jnp.where(failed < length, failed, -1).astype(jnp.int32)
        failed = jnp.maximum(failed, 0)
        first = failed // block_size
        before = axis.row(states, jnp.maximum(first - 1, 0))
        last = jnp.where(first > 0, before, initial)
        broken = ~jnp.all(jnp.isfinite(states), axis=1, keepdims=True)
        return jnp.zeros_like(suspect), jnp.where(broken, last, states), failed

    # A loop and no `cond`, of which `vmap` would run both branches for every batch.
    nowhere = jnp.asarray(-1, jnp.int32)
    _, states, failed_step = jax.lax.while_loop(
        lambda carry: carry[0], locate, (suspect, states, nowhere)
    )
    return states, jnp.where(suspect, int_status(Status.nonfinite), status), failed_step


def _first_nonfinite(
    step: FlatStep, initial: Array, inputs: PyTree, states: Array, block_size: int
) -> Array:
    """First step at which f, at the states given, is not finite, or -1.

    Searched chunk by chunk: nothing of size T is formed, and nothing in here is the
    same in every round, which the compiler would hoist out of the loop and always
    evaluate.
    """
    count = states.shape[0]
    chunk = min(max(_CHUNK // block_size, 1), count)

    def search(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        first = jnp.minimum(carry[0], count - chunk)
        behind = jax.lax.dynamic_slice_in_dim(states, first - 1, chunk)
        before = jnp.where(first > 0, behind, starts(initial, states[:chunk]))
        entries = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(
                x, first * block_size, chunk * block_size
            ),
            inputs,
        )
        folded = in_blocks(entries, chunk, block_size)
        inside = jax.vmap(lambda x, u: roll_out_sequentially(step, x, u, block_size))(
            before, folded
        )
        finite = jnp.all(jnp.isfinite(inside), axis=-1).reshape(-1)
        found = first * block_size + jnp.argmin(finite)
        found = jnp.where(jnp.all(finite), -1, found).astype(jnp.int32)
        return carry[0] + chunk, found

    def unfinished(carry: tuple[Array, Array]) -> Array:
        return (carry[0] < count) & (carry[1] < 0)

    begin = jnp.asarray(0, jnp.int32), jnp.asarray(-1, jnp.int32)
    return jax.lax.while_loop(unfinished, search, begin)[1]


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
