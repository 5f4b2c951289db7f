"""Blocks that were started from the wrong states, evaluated again one by one.

A block that becomes non-finite accuses f only when it was followed from x_0 on; before,
all is evaluated again from there.
"""

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.solve.problem import Problem
from elk_ssm.solve.rollout import roll_out_sequentially
from elk_ssm.solve.stopping import differs_in_sign_of_zero, largest


@jax.named_scope("repair")
def repair(
    problem: Problem,
    block_size: int,
    states: Array,
    nodes: Array,
    bound: Array,
    from_scratch: Array,
) -> tuple[Array, Array, Array, Array]:
    """Re-evaluate, one after the other, the blocks that do not fit together.

    Block k was started from node k - 1. It is right when that node is, up to `bound`,
    where block k - 1 ends, and all blocks before are right. After a re-evaluated block
    has ended where the next one was started, everything up to the next misfit is right.

    Args:
        problem: The recurrence.
        block_size: C.
        states: All states of the whole blocks, `(n C, D)`, or their ends, `(n, D)`.
        nodes: Where each block's successor was started, `(n, D)`; NaN if unknown.
        bound: Largest misfit of each block, `(n, D)`.
        from_scratch: Whether nothing is known yet.

    Returns:
        The states, how many blocks were re-evaluated, the largest misfit accepted, and
        whether the recurrence breaks.
    """
    count = nodes.shape[0]
    rows = states.shape[0] // count  # of a block that are kept: all, or its end
    last = states[rows - 1 :: rows]

    def fit(end: Array, node: Array, bound: Array) -> Array:
        close = jnp.abs(end - node) <= bound
        return jnp.all(close & ~differs_in_sign_of_zero(end, node), axis=-1)

    fits = fit(last, nodes, bound)
    index = jnp.arange(count)
    # The first block from k on whose end does not fit the start of the next one.
    misfit = jax.lax.cummin(jnp.where(fits, count, index), reverse=True)
    misfit = jnp.append(misfit, count)

    def unfinished(carry: tuple) -> Array:
        return carry[0] < count

    def body(carry: tuple) -> tuple:
        k, before, states, repaired, in_turn, breaks = carry
        begin = k * block_size
        entries = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, begin, block_size),
            problem.inputs,
        )
        block = roll_out_sequentially(problem.step, before, entries, block_size)
        states = jax.lax.dynamic_update_slice_in_dim(
            states, block[block_size - rows :], k * rows, axis=0
        )
        merged = fit(block[-1], nodes[k], bound[k]) & ~in_turn
        jump = misfit[k + 1]
        following = jnp.where(merged, jump + 1, k + 1)
        before = jnp.where(merged, last[jnp.minimum(jump, count - 1)], block[-1])
        broken = ~jnp.all(jnp.isfinite(block))
        again = broken & ~in_turn
        following = jnp.where(again, 0, jnp.where(broken, count, following))
        before = jnp.where(again, problem.initial, before)
        breaks = breaks | (broken & in_turn)
        return following, before, states, repaired + 1, in_turn | again, breaks

    in_turn = from_scratch | ~jnp.all(jnp.isfinite(states))
    first = jnp.where(in_turn, 0, misfit[0] + 1)
    end = last[jnp.minimum(misfit[0], count - 1)]
    before = jnp.where(in_turn, problem.initial, end)
    none, no = jnp.asarray(0, jnp.int32), jnp.zeros_like(in_turn)
    carry = (first, before, states, none, in_turn, no)
    _, _, states, repaired, _, breaks = jax.lax.while_loop(unfinished, body, carry)
    # Misfits that were re-evaluated away no longer count.
    worst = jnp.where(fits[:, None], last - nodes, 0)
    return states, repaired, largest(worst), breaks
