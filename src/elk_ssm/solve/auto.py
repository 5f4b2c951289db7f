r"""The default: needs no tuning, cannot diverge, and costs a bounded number of passes.

**Where scans are sequential (CPU).** A recurrence that forgets its past is evaluated in
blocks side by side, which fills the vector unit; one that does not is evaluated step by
step, because there nothing is faster. A probe of the first steps decides: two
trajectories under the same inputs, one from x_0 and one from where the first ends, are
followed until they merge, after L steps. Blocks of C steps started from a typical state
are then right after p = ceil(1.25 L / C) passes. One more pass collects the states and
checks that every block ends where the next one was started, to a tenth of the
tolerance. Blocks for which that fails are evaluated again, one after the other, from
the last one that is right until the trajectory has merged with what is already there.
In the worst case that is sequential evaluation after `max_passes` passes.

**Where scans are parallel (GPU, TPU).** Newton's method over the blocks with the gate,
damped by annealed noise; the exact prefix bounds it by T / C passes of C steps.
"""

import enum
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._trees import static
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.solve.gate import Gate
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import Blocks, cut, roll_out_sequentially, starts
from elk_ssm.solve.stopping import largest, scale_of
from elk_ssm.surrogate.linearization import (
    DenseJacobian,
    Linearization,
    ZeroJacobian,
)
from elk_ssm.surrogate.noise import Annealed, NoisePolicy

Strategy: TypeAlias = Literal["auto", "forgetful", "newton"]
_TIGHT = 0.1
_NO_PROBE = -2
_SAFETY = 1.25
_DENSE_UP_TO = 64
# Measured break-even lengths on a CPU: one step of all blocks costs some 15 us of
# dispatch, one step of a scan 0.1 us at D = 4 and 0.6 us at D = 8.
_SMALL, _SHORTEST_SMALL, _SHORTEST, _LONG = 4, 30_000, 5_000, 300_000


class PlanKind(enum.IntEnum):
    """How `auto` evaluated a recurrence."""

    sequential = 0
    forgetful_blocks = 1
    newton_blocks = 2


class Plan(NamedTuple):
    """What `auto` chose and why; arrays, so that it lives inside `jit`.

    Attributes:
        kind: Value of a `PlanKind`.
        block_size: Steps C in a block.
        forgetting_length: Steps after which the probe had forgotten its start, -1 when
            it did not within the probe, -2 when there was no probe.
        passes: Passes over all blocks, the collecting one included.
        sequential_steps: Steps that were evaluated one after the other, probe apart.
    """

    kind: Array
    block_size: Array
    forgetting_length: Array
    passes: Array
    sequential_steps: Array

    def describe(self) -> str:
        """Say in words what was done and why; outside `jit`."""
        length, passes = int(self.forgetting_length), int(self.passes)
        left = int(self.sequential_steps)
        if self.kind == PlanKind.sequential:
            why = f"forgetting takes {length} steps, too long for blocks to pay"
            if length == _NO_PROBE:
                why = "too short for blocks to pay"
            elif length < 0:
                why = "no forgetting seen in the first steps"
            return f"sequential: {why}"
        if self.kind == PlanKind.newton_blocks:
            return f"Newton over blocks of {int(self.block_size)}: {passes} passes"
        rest = f", {left} steps re-evaluated one by one" if left else ""
        return (
            f"blocks of {int(self.block_size)}: state forgotten after {length} steps, "
            f"{passes} passes{rest}"
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Auto:
    """The automatic method; every choice can be fixed by hand.

    Attributes:
        gate: Gate of the Newton strategy.
        linearization: Boundary linearisation of the Newton strategy; None chooses dense
            for D <= 64 and zero above.
        noise: Noise policy of the Newton strategy where its linearisation is not zero;
            None is undamped.
        block_size: Steps C in a block, or None to choose from T and D.
        strategy: `"forgetful"`, `"newton"`, or `"auto"` by platform.
        max_passes: Largest number of passes of the forgetful strategy before what is
            left is evaluated sequentially.
    """

    gate: Gate | None = Gate()
    linearization: Linearization | None = None
    noise: NoisePolicy | None = Annealed(1.0, 2.0)
    block_size: int | None = static(default=None)
    strategy: Strategy = static(default="auto")
    max_passes: int = static(default=4)

    def __post_init__(self) -> None:
        if self.strategy not in ("auto", "forgetful", "newton"):
            raise ValueError(
                'strategy must be "auto", "forgetful" or "newton"; got '
                f"{self.strategy!r}."
            )
        size = self.block_size
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"block_size must be a positive integer; got {size!r}.")
        if self.max_passes < 2:
            raise ValueError(f"max_passes must be at least 2; got {self.max_passes}.")

    def forgetful_block_size(self, length: int) -> int:
        """Block size where lanes fill a vector unit: 64 steps, 256 for the longest."""
        if self.block_size is not None:
            return self.block_size
        return 64 if length < _LONG else 256

    def forgetful_pays(self, length: int, size: int) -> bool:
        """Whether blocks can win at all: each of their steps has a fixed cost."""
        if self.block_size is not None:
            return length >= 4 * self.block_size * (self.max_passes - 1)
        return length >= (_SHORTEST_SMALL if size <= _SMALL else _SHORTEST)

    def newton(self, length: int, size: int) -> Method:
        """Return the method of the Newton strategy."""
        block_size = self.block_size
        if block_size is None:
            # Depth is passes * (C + 2 log2(T / C)), and passes fall slowly with C.
            block_size = 24 if length < 100_000 else 64
        linearization = self.linearization
        if linearization is None:
            dense = size <= _DENSE_UP_TO
            linearization = DenseJacobian() if dense else ZeroJacobian()
        # Without a Jacobian there is nothing to propagate that damping could tame.
        damped = not isinstance(linearization, ZeroJacobian)
        return Method(
            linearization,
            noise=self.noise if damped else None,
            gate=self.gate,
            block_size=min(block_size, length),
        )


class Probe(NamedTuple):
    """What the first steps show."""

    length: Array
    typical: Array
    scale: Array


def evaluate_forgetful(
    auto: Auto,
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    length: int,
    tolerance: Array,
) -> tuple[Array, Array, Plan]:
    """Evaluate by the forgetful strategy.

    Returns:
        The states `(T, D)`, the largest disagreement between blocks that was left
        standing, and the plan.
    """
    size = auto.forgetful_block_size(length)
    reach = size * (auto.max_passes - 1)
    if not auto.forgetful_pays(length, initial.shape[0]):
        states = roll_out_sequentially(step, initial, inputs, length)
        return states, jnp.zeros_like(tolerance), _plan(0, size, _NO_PROBE, 1, length)
    tight = _TIGHT * tolerance
    head = jax.tree.map(lambda x: x[:reach], inputs)
    probe = _probe(step, initial, head, reach, tight)
    passes = jnp.ceil(_SAFETY * probe.length / size).astype(jnp.int32)
    pays = (probe.length >= 0) & (passes < auto.max_passes)
    blocks = cut(initial, inputs, length, size)

    def in_blocks() -> tuple[Array, Array]:
        return _collect(step, blocks, probe.typical, passes)

    def nothing() -> tuple[Array, Array]:
        count = length // size
        unknown = jnp.full((count, initial.shape[0]), jnp.nan, initial.dtype)
        return jnp.zeros((count * size, initial.shape[0]), initial.dtype), unknown

    states, nodes = jax.lax.cond(pays, in_blocks, nothing)
    bound = tight * jnp.maximum(probe.scale, _size(states, initial))
    states, repaired, worst = _repair(step, blocks, inputs, states, nodes, bound, ~pays)
    tail = length - states.shape[0]
    if tail:
        rest = roll_out_sequentially(step, states[-1], blocks.tail, tail)
        states = jnp.concatenate([states, rest])
    plan = _plan(
        pays.astype(jnp.int32),
        size,
        probe.length,
        jnp.where(pays, passes + 1, 1),
        repaired * size + tail,
    )
    return states, worst, plan


def _plan(kind: Any, size: Any, forgetting: Any, passes: Any, steps: Any) -> Plan:
    numbers = (kind, size, forgetting, passes, steps)
    return Plan(*(jnp.asarray(number, jnp.int32) for number in numbers))


def newton_plan(block_size: int, passes: Array) -> Plan:
    """Return the plan of the Newton strategy."""
    return _plan(PlanKind.newton_blocks, block_size, _NO_PROBE, passes, 0)


def _probe(
    step: FlatStep, initial: Array, head: PyTree, reach: int, tight: Array
) -> Probe:
    """Follow two trajectories under the same inputs until they merge."""
    true = roll_out_sequentially(step, initial, head, reach)
    typical = true[-1]
    other = roll_out_sequentially(step, typical, head, reach)
    scale = _size(true, initial)
    apart = ~jnp.all(jnp.abs(true - other) <= tight * scale, axis=1)
    merged = reach - jnp.argmax(apart[::-1])
    merged = jnp.where(jnp.any(apart), merged, 0)
    # A start that happens to be where the trajectory ends says nothing.
    distinct = ~jnp.all(jnp.abs(typical - initial) <= tight * scale)
    length = jnp.where(apart[-1] | ~distinct, -1, merged)
    usable = jnp.all(jnp.isfinite(typical))
    return Probe(
        jnp.where(usable, length, -1), jnp.where(usable, typical, initial), scale
    )


def _size(states: Array, initial: Array) -> Array:
    """Largest state per dimension, `(D,)`."""
    return scale_of(states, initial, "sequential")[-1]


def _collect(
    step: FlatStep, blocks: Blocks, typical: Array, passes: Array
) -> tuple[Array, Array]:
    """Run the passes, then one that keeps the states of every step.

    Returns:
        States of the whole blocks, and the nodes from which that last pass started.
    """
    lanes = jax.vmap(step)
    block_size, count = blocks.times.shape

    def ends(_: int, nodes: Array) -> Array:
        def body(state: Array, inputs: PyTree) -> tuple[Array, None]:
            return lanes(state, inputs), None

        begin = starts(blocks.initial, nodes)
        return jax.lax.scan(body, begin, blocks.inputs, length=block_size)[0]

    def keep(state: Array, inputs: PyTree) -> tuple[Array, Array]:
        state = lanes(state, inputs)
        return state, state

    nodes = jnp.broadcast_to(typical, (count, typical.shape[0]))
    nodes = jax.lax.fori_loop(0, passes, ends, nodes)
    begin = starts(blocks.initial, nodes)
    by_step = jax.lax.scan(keep, begin, blocks.inputs, length=block_size)[1]
    return jnp.swapaxes(by_step, 0, 1).reshape(-1, typical.shape[0]), nodes


def _repair(
    step: FlatStep,
    blocks: Blocks,
    inputs: PyTree,
    states: Array,
    nodes: Array,
    bound: Array,
    from_scratch: Array,
) -> tuple[Array, Array, Array]:
    """Re-evaluate, one after the other, the blocks that do not fit together.

    Block k was started from node k - 1. It is right when that node is, up to `bound`,
    where block k - 1 ends, and all blocks before are right. After a re-evaluated block
    has ended where the next one was started, everything up to the next misfit is right.

    Returns:
        The states, how many blocks were re-evaluated, and the largest misfit accepted.
    """
    block_size, count = blocks.times.shape
    last = states[block_size - 1 :: block_size]
    fits = jnp.all(jnp.abs(last - nodes) <= bound, axis=1)
    index = jnp.arange(count)
    # The first block from k on whose end does not fit the start of the next one.
    misfit = jax.lax.cummin(jnp.where(fits, count, index), reverse=True)
    misfit = jnp.append(misfit, count)

    def unfinished(carry: tuple) -> Array:
        return carry[0] < count

    def body(carry: tuple) -> tuple:
        k, before, states, repaired = carry
        begin = k * block_size
        entries = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, begin, block_size), inputs
        )
        block = roll_out_sequentially(step, before, entries, block_size)
        states = jax.lax.dynamic_update_slice_in_dim(states, block, begin, axis=0)
        merged = jnp.all(jnp.abs(block[-1] - nodes[k]) <= bound)
        jump = misfit[k + 1]
        following = jnp.where(merged, jump + 1, k + 1)
        before = jnp.where(merged, last[jnp.minimum(jump, count - 1)], block[-1])
        return following, before, states, repaired + 1

    first = jnp.where(from_scratch, 0, misfit[0] + 1)
    before = jnp.where(
        from_scratch, blocks.initial, last[jnp.minimum(misfit[0], count - 1)]
    )
    carry = (first, before, states, jnp.asarray(0, jnp.int32))
    _, _, states, repaired = jax.lax.while_loop(unfinished, body, carry)
    # Misfits that were re-evaluated away no longer count.
    worst = jnp.where(fits[:, None], last - nodes, 0)
    return states, repaired, largest(worst)
