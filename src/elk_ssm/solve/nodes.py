r"""The unknowns: states at the ends of blocks of C steps.

    X_k = F_k(X_{k-1}),   k = 1, ..., n = T // C,   F_k = C steps of f,   X_0 = x_0

C = 1 makes every state an unknown (the published methods). The T mod C steps after the
last whole block follow from X_n and are no unknowns. Inputs are laid out once, as
`(C, n, ...)`: a rollout of all blocks side by side is then one scan over C steps of f
mapped over n lanes, and reads contiguous memory.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.kalman.structure import Operator
from elk_ssm.surrogate.linearization import Linearization, Where


class Blocks(NamedTuple):
    """A recurrence cut into blocks.

    Attributes:
        initial: x_0, shape `(D,)`.
        inputs: Inputs of the whole blocks, leaves of shape `(C, n, ...)`.
        tail: Inputs of the remaining steps, leaves of shape `(T mod C, ...)`.
        times: Time index of each step, shape `(C, n)`.
        tail_times: Time index of the remaining steps.
    """

    initial: Array
    inputs: PyTree
    tail: PyTree
    times: Array
    tail_times: Array


def cut(initial: Array, inputs: PyTree, length: int, block_size: int) -> Blocks:
    """Lay a recurrence of `length` steps out in blocks."""
    count = length // block_size
    whole = count * block_size

    def lay_out(x: Array) -> Array:
        blocks = x[:whole].reshape(count, block_size, *x.shape[1:])
        return jnp.swapaxes(blocks, 0, 1)

    times = jnp.arange(length, dtype=jnp.int32)
    return Blocks(
        initial,
        jax.tree.map(lay_out, inputs),
        jax.tree.map(lambda x: x[whole:], inputs),
        lay_out(times),
        times[whole:],
    )


def starts(initial: Array, nodes: Array) -> Array:
    """State before each block: x_0, X_1, ..., X_{n-1}."""
    return jnp.concatenate([initial[None], nodes[:-1]])


def linearize_nodes(
    linearization: Linearization,
    step: FlatStep,
    blocks: Blocks,
    nodes: Array,
    iteration: Array,
) -> tuple[Array, Operator]:
    """Evaluate every block map and its stand-in Jacobian at the current nodes.

    Returns:
        Values F_k(X_{k-1}), shape `(n, D)`, and the operators, leading axis n.
    """
    size, dtype = nodes.shape[1], nodes.dtype
    before = linearization.start(size, dtype)

    def one_step(
        state: Array, operator: Operator, inputs: PyTree, time: Array
    ) -> tuple[Array, Operator]:
        at = Where(time, iteration)
        return linearization.push(step, state, inputs, operator, at)

    def from_start(state: Array, inputs: PyTree, time: Array) -> tuple[Array, Operator]:
        return one_step(state, before, inputs, time)

    begin = starts(blocks.initial, nodes)
    if blocks.times.shape[0] == 1:
        first = jax.tree.map(lambda x: x[0], (blocks.inputs, blocks.times))
        return _map_nodes(from_start, (begin, *first), linearization.time_chunk)
    # The first step starts from the identity, the others push what has accumulated.
    chunk = linearization.time_chunk
    every = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (nodes.shape[0], *x.shape)), before
    )

    def body(carry: tuple, entry: tuple) -> tuple[tuple, None]:
        return _map_nodes(one_step, (*carry, *entry), chunk), None

    return jax.lax.scan(body, (begin, every), (blocks.inputs, blocks.times))[0]


def _map_nodes(function: Any, operands: tuple, chunk: int | None) -> Any:
    """Map over the leading axis, at most `chunk` entries side by side."""
    count = jax.tree.leaves(operands)[0].shape[0]
    if chunk is None or count <= chunk:
        return jax.vmap(function)(*operands)
    return jax.lax.map(lambda args: function(*args), operands, batch_size=chunk)


def roll_out(step: FlatStep, blocks: Blocks, nodes: Array) -> Array:
    """Return all T states, each block rolled out from the node before it."""
    states = nodes
    if blocks.times.shape[0] > 1:
        states = roll_out_whole(step, blocks, nodes)
    if blocks.tail_times.shape[0] == 0:
        return states
    before = states[-1] if states.shape[0] else blocks.initial
    tail = roll_out_sequentially(step, before, blocks.tail, len(blocks.tail_times))
    return jnp.concatenate([states, tail])


def roll_out_whole(step: FlatStep, blocks: Blocks, nodes: Array) -> Array:
    """Return the states of the whole blocks, each rolled out from the node before."""
    lanes = jax.vmap(step)

    def body(state: Array, inputs: PyTree) -> tuple[Array, Array]:
        state = lanes(state, inputs)
        return state, state

    begin = starts(blocks.initial, nodes)
    by_step = jax.lax.scan(body, begin, blocks.inputs, length=len(blocks.times))[1]
    return jnp.swapaxes(by_step, 0, 1).reshape(-1, nodes.shape[1])


def roll_out_sequentially(
    step: FlatStep, initial: Array, inputs: PyTree, length: int
) -> Array:
    """Return the states of `length` steps from `initial`, one after the other."""

    def body(state: Array, inputs: PyTree) -> tuple[Array, Array]:
        state = step(state, inputs)
        return state, state

    return jax.lax.scan(body, initial, inputs, length=length)[1]
