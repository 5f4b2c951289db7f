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

from elk_ssm._platforms import by_platform
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.linalg.structure import Operator
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.solve.problem import Problem
from elk_ssm.solve.unrolling import equations_of, scan_by_platform
from elk_ssm.surrogate.linearization import Linearization, Where, time_chunks


class Blocks(NamedTuple):
    """A recurrence cut into blocks.

    Attributes:
        step: The flat step on these inputs.
        length: Number of steps of this device, those that fill up its blocks included.
        initial: x_0, shape `(D,)`.
        inputs: Inputs of the whole blocks, leaves of shape `(C, n, ...)`, or
            `(n, C, ...)` when not laid out.
        tail: Inputs of the remaining steps, leaves of shape `(T mod C, ...)`.
        size: Steps C in a block.
        laid_out: Which of the two layouts `inputs` has.
        axis: Where time lives; n is then the number of blocks of this device.
        begin: Time index of the first step.
        existing: How many blocks of all devices have steps at all, None for every one.
    """

    step: FlatStep
    length: int
    initial: Array
    inputs: PyTree
    tail: PyTree
    size: int
    laid_out: bool
    axis: TimeAxis = LOCAL
    begin: Array | int = 0
    existing: int | None = None

    @property
    def number(self) -> int:
        """Number of blocks n."""
        return self.length // self.size

    @property
    def rest(self) -> int:
        """Number of steps after the last whole block."""
        return self.length % self.size

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


def cut(problem: Problem, block_size: int, *, lay_out: bool = True) -> Blocks:
    """Cut what this device holds of a recurrence into blocks of C steps."""
    if problem.axis.is_sharded:
        return _cut_shard(problem, block_size, lay_out)
    length, count = problem.length, problem.length // block_size
    blocks = in_blocks(problem.inputs, count, block_size)
    if lay_out:
        blocks = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), blocks)
    tail = jax.tree.map(lambda x: x[count * block_size :], problem.inputs)
    whole = blocks, tail, block_size, lay_out
    return Blocks(problem.step, length, problem.initial, *whole)


def _cut_shard(problem: Problem, block_size: int, lay_out: bool) -> Blocks:
    """Cut the shard of a device into whole blocks.

    Every device holds `ceil(T / P)` steps, the last ones also such as do not exist
    (their inputs are there and are not used). Steps that fill up its last block, and
    those after the end, keep the state as it is; a block of nothing else is not `real`.
    """
    length, axis = problem.length, problem.axis
    shard = -(-length // axis.size)
    fill = -shard % block_size
    begin = (axis.axis_index * shard + jnp.zeros((), jnp.int32)).astype(jnp.int32)
    here = problem._replace(length=shard + fill, axis=LOCAL)
    if fill == 0 and shard * axis.size == length:
        return cut(here, block_size, lay_out=lay_out)._replace(axis=axis, begin=begin)

    def fill_up(x: Array) -> Array:
        return jnp.concatenate([x, jnp.repeat(x[:1], fill, axis=0)])

    def step_or_stay(consts: list, state: Array, entry: tuple) -> Array:
        exists, inputs = entry
        return jnp.where(exists, problem.function(consts, state, inputs), state)

    exists = jnp.arange(shard + fill) < jnp.clip(length - begin, 0, shard)
    entries = exists, jax.tree.map(fill_up, problem.inputs)
    here = here._replace(function=step_or_stay, inputs=entries)
    blocks = cut(here, block_size, lay_out=lay_out)
    existing = None
    if shard * axis.size > length:
        full, rest = divmod(length, shard)
        existing = full * blocks.number + -(-rest // block_size)
    return blocks._replace(axis=axis, begin=begin, existing=existing)


def near_divisor(length: int, target: float) -> int:
    """The largest divisor of `length` from 2/3 `target` to `target`; or `target`.

    Sizes that fit leave no rest, and a rest costs a copy of everything.
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


def fill_up(x: Array, count: int) -> Array:
    """Repeat the last of the leading entries until there are `count`."""
    missing = count - x.shape[0]
    if missing <= 0:
        return x
    return jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)])


def in_order(by_step: Array) -> Array:
    """From what blocks went through side by side, `(C, n, D)`, to `(n C, D)`."""
    return jnp.swapaxes(by_step, 0, 1).reshape(-1, by_step.shape[-1])


def block_map(step: FlatStep, block_size: int) -> FlatStep:
    """C steps as one, with inputs of shape `(C, ...)`."""

    def block(state: Array, inputs: PyTree) -> Array:
        def body(state: Array, entry: PyTree) -> tuple[Array, None]:
            return step(state, entry), None

        return jax.lax.scan(body, state, inputs, length=block_size)[0]

    return block


def shift(initial: Array, nodes: Array) -> Array:
    """State before each block: x_0, X_1, ..., X_{n-1}."""
    return jnp.concatenate([initial[None], nodes[:-1]])


def linearize_nodes(
    linearization: Linearization, blocks: Blocks, nodes: Array, iteration: Array
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
        return linearization.push(blocks.step, state, inputs, operator, at)

    def from_start(state: Array, inputs: PyTree, time: Array) -> tuple[Array, Operator]:
        return one_step(state, before, inputs, time)

    begin = blocks.axis.shift(blocks.initial, nodes)
    chunks = time_chunks(linearization, size)
    if blocks.size == 1:
        first = blocks.entry(0)
        return _map_nodes(from_start, (begin, *first), chunks)
    # The first step starts from the identity, the others push what has accumulated.
    every = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (nodes.shape[0], *x.shape)), before
    )

    def body(carry: tuple, j: Array) -> tuple[tuple, None]:
        return _map_nodes(one_step, (*carry, *blocks.entry(j)), chunks), None

    first = jax.tree.map(lambda x: x[0], (begin, every, *blocks.entry(0)))
    equations = equations_of(one_step, *first)
    steps = jnp.arange(blocks.size)
    return scan_by_platform(body, (begin, every), steps, equations)[0]


def _map_nodes(function: Any, operands: tuple, chunks: tuple[int | None, ...]) -> Any:
    """Map over the leading axis, at most so many entries side by side, by platform."""
    count = jax.tree.leaves(operands)[0].shape[0]
    on_cpu, elsewhere = (None if c is None or c >= count else c for c in chunks)

    def by(chunk: int | None) -> Any:
        def mapped(*operands: PyTree) -> Any:
            if chunk is None:
                return jax.vmap(function)(*operands)
            size = near_divisor(count, chunk)
            return jax.lax.map(lambda args: function(*args), operands, batch_size=size)

        return mapped

    if on_cpu == elsewhere:
        return by(on_cpu)(*operands)
    return by_platform(*operands, cpu=by(on_cpu), default=by(elsewhere))
