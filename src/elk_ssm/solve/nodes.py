r"""The unknowns: states at the ends of blocks of C steps.

    X_k = F_k(X_{k-1}),   k = 1, ..., n = T // C,   F_k = C steps of f,   X_0 = x_0

C = 1 makes every state an unknown (the published methods). The T mod C steps after the
last whole block follow from X_n and are no unknowns. Inputs are laid out once, as
`(C, n, ...)`: a rollout of all blocks side by side is then one scan over C steps of f
mapped over n lanes, and reads contiguous memory. Where memory counts more than speed
they stay where they are, `(n, C, ...)`, and each step gathers its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.linalg.structure import Operator
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.surrogate.linearization import Linearization, Where


class Blocks(NamedTuple):
    """A recurrence cut into blocks.

    Attributes:
        initial: x_0, shape `(D,)`.
        inputs: Inputs of the whole blocks, leaves of shape `(C, n, ...)`, or
            `(n, C, ...)` when not laid out.
        tail: Inputs of the remaining steps, leaves of shape `(T mod C, ...)`.
        size: Steps C in a block.
        number: Number of blocks n.
        rest: Number of remaining steps.
        laid_out: Which of the two layouts `inputs` has.
        axis: Where time lives; n is then the number of blocks of this device.
        begin: Time index of the first step.
        existing: How many blocks of all devices have steps at all, None for every one.
    """

    initial: Array
    inputs: PyTree
    tail: PyTree
    size: int
    number: int
    rest: int
    laid_out: bool
    axis: TimeAxis = LOCAL
    begin: Array | int = 0
    existing: int | None = None

    @property
    def unknowns(self) -> int:
        """Number of unknown nodes of all devices together."""
        if self.existing is not None:
            return self.existing
        return self.axis.size * self.number

    @property
    def real(self) -> Array | None:
        """Which blocks of this device have steps, `(n,)`; None for all of them."""
        if self.existing is None:
            return None
        return self.axis.index(self.number) < self.existing

    def entry(self, j: Array | int) -> tuple[PyTree, Array]:
        """Inputs `(n, ...)` and time indices `(n,)` of step j of every block."""
        axis = 0 if self.laid_out else 1
        inputs = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, j, axis, keepdims=False),
            self.inputs,
        )
        first = self.begin + self.size * jnp.arange(self.number, dtype=jnp.int32)
        return inputs, j + first


def cut(
    initial: Array,
    inputs: PyTree,
    length: int,
    block_size: int,
    *,
    lay_out: bool = True,
) -> Blocks:
    """Cut a recurrence of `length` steps into blocks."""
    count = length // block_size
    whole = count * block_size
    blocks = in_blocks(inputs, count, block_size)
    if lay_out:
        blocks = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), blocks)
    tail = jax.tree.map(lambda x: x[whole:], inputs)
    return Blocks(initial, blocks, tail, block_size, count, length - whole, lay_out)


def cut_piece(
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    length: int,
    block_size: int,
    axis: TimeAxis,
    *,
    lay_out: bool = True,
) -> tuple[FlatStep, Blocks]:
    """Cut what this device holds of a recurrence of `length` steps.

    Every device holds `ceil(length / P)` steps, the last ones also such as do not exist
    (their inputs are there and are not used), and cuts them into blocks of C. Steps
    that fill up its last block, and those after the end, keep the state as it is; a
    block of nothing else is not `real`.

    Args:
        step: The recurrence on flat states.
        initial: x_0, on every device.
        inputs: What this device holds of the inputs.
        length: T, of all devices together.
        block_size: Steps C in a block.
        axis: Where time lives.
        lay_out: As for `cut`.

    Returns:
        The step to use with these blocks, and the blocks; they have no tail.
    """
    piece = -(-length // axis.size)
    fill = -piece % block_size
    begin = (axis.place * piece + jnp.zeros((), jnp.int32)).astype(jnp.int32)
    if fill == 0 and piece * axis.size == length:
        blocks = cut(initial, inputs, piece, block_size, lay_out=lay_out)
        return step, blocks._replace(axis=axis, begin=begin)

    def fill_up(x: Array) -> Array:
        return jnp.concatenate([x, jnp.repeat(x[:1], fill, axis=0)])

    def step_or_stay(state: Array, entry: tuple[Array, PyTree]) -> Array:
        exists, inputs = entry
        return jnp.where(exists, step(state, inputs), state)

    exists = jnp.arange(piece + fill) < jnp.clip(length - begin, 0, piece)
    entries = exists, jax.tree.map(fill_up, inputs)
    blocks = cut(initial, entries, piece + fill, block_size, lay_out=lay_out)
    existing = None
    if piece * axis.size > length:
        full, rest = divmod(length, piece)
        existing = full * blocks.number + -(-rest // block_size)
    blocks = blocks._replace(axis=axis, begin=begin, existing=existing)
    return step_or_stay, blocks


def near_divisor(length: int, target: float) -> int:
    """The largest divisor of `length` from 2/3 `target` to `target`; or `target`.

    Pieces that fit leave no rest, and a rest costs a copy of everything.
    """
    near = range(int(target * 2 / 3), int(target) + 1)
    fitting = [c for c in near if c and length % c == 0]
    return max(fitting, default=int(target))


def in_blocks(inputs: PyTree, count: int, block_size: int) -> PyTree:
    """Fold the first `count * block_size` steps into `(count, block_size, ...)`."""
    return jax.tree.map(
        lambda x: x[: count * block_size].reshape(count, block_size, *x.shape[1:]),
        inputs,
    )


def block_map(step: FlatStep, block_size: int) -> FlatStep:
    """C steps as one, with inputs of shape `(C, ...)`."""

    def block(state: Array, inputs: PyTree) -> Array:
        def body(state: Array, entry: PyTree) -> tuple[Array, None]:
            return step(state, entry), None

        return jax.lax.scan(body, state, inputs, length=block_size)[0]

    return block


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

    begin = blocks.axis.before(blocks.initial, nodes)
    chunk = linearization.time_chunk(size)
    if blocks.size == 1:
        first = blocks.entry(0)
        return _map_nodes(from_start, (begin, *first), chunk)
    # The first step starts from the identity, the others push what has accumulated.
    every = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (nodes.shape[0], *x.shape)), before
    )

    def body(carry: tuple, j: Array) -> tuple[tuple, None]:
        return _map_nodes(one_step, (*carry, *blocks.entry(j)), chunk), None

    return jax.lax.scan(body, (begin, every), jnp.arange(blocks.size))[0]


def _map_nodes(function: Any, operands: tuple, chunk: int | None) -> Any:
    """Map over the leading axis, at most `chunk` entries side by side."""
    count = jax.tree.leaves(operands)[0].shape[0]
    if chunk is None or count <= chunk:
        return jax.vmap(function)(*operands)
    chunk = near_divisor(count, chunk)
    return jax.lax.map(lambda args: function(*args), operands, batch_size=chunk)


def roll_out(step: FlatStep, blocks: Blocks, nodes: Array) -> Array:
    """Return all T states, each block rolled out from the node before it."""
    states = nodes
    if blocks.size > 1:
        states = roll_out_whole(step, blocks, nodes)
    if blocks.rest == 0:
        return states
    before = states[-1] if states.shape[0] else blocks.initial
    tail = roll_out_sequentially(step, before, blocks.tail, blocks.rest)
    return jnp.concatenate([states, tail])


def roll_out_whole(step: FlatStep, blocks: Blocks, nodes: Array) -> Array:
    """Return the states of the whole blocks, each rolled out from the node before."""
    lanes = jax.vmap(step)

    def body(states: Array, j: Array) -> tuple[Array, Array]:
        states = lanes(states, blocks.entry(j)[0])
        return states, states

    begin = blocks.axis.before(blocks.initial, nodes)
    by_step = jax.lax.scan(body, begin, jnp.arange(blocks.size))[1]
    return jnp.swapaxes(by_step, 0, 1).reshape(-1, nodes.shape[1])


def roll_to_ends(
    step: FlatStep, blocks: Blocks, states: Array, first: Array | int = 0
) -> Array:
    """Advance all blocks side by side from step `first` to their ends, `(n, D)`."""
    lanes = jax.vmap(step)

    def body(j: Array, states: Array) -> Array:
        return lanes(states, blocks.entry(j)[0])

    return jax.lax.fori_loop(first, blocks.size, body, states)


def roll_out_sequentially(
    step: FlatStep, initial: Array, inputs: PyTree, length: int
) -> Array:
    """Return the states of `length` steps from `initial`, one after the other."""

    def body(state: Array, inputs: PyTree) -> tuple[Array, Array]:
        state = step(state, inputs)
        return state, state

    return jax.lax.scan(body, initial, inputs, length=length)[1]


def roll_out_in_turn(
    step: FlatStep, initial: Array, inputs: PyTree, states: Array, axis: TimeAxis
) -> Array:
    """Return the states `(n, D)` of this device, one device after the other.

    Every round all devices run through their steps, and one more starts from the right
    state; `states` stand in for what is not known yet.
    """

    def one_round(_: int, states: Array) -> Array:
        begin = axis.before(initial, states)[0]
        return roll_out_sequentially(step, begin, inputs, states.shape[0])

    return jax.lax.fori_loop(0, axis.size, one_round, states)
