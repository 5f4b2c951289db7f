r"""Blocks side by side for recurrences that forget their past.

Where scans are sequential (a CPU), many blocks stepped side by side fill the vector
unit, and one step after the other does not. Let a start be forgotten after L steps:

    probe     two trajectories under the first inputs, one from x_0, one from where the
              first ends, merge after L steps
    burn-in   every block of C steps is entered B = 1.5 L + C / 16 steps before its
              start, from a typical state, to find where it starts
    collect   every block is stepped through and its states are kept
    check     every block must end where the next one was started, so closely that all
              blocks together stay below a tenth of the tolerance (or to rounding)
    repair    blocks that do not fit are evaluated again, one after the other, from the
              last one that is right until the trajectory has merged with what is there

Cost: T + B T / C steps of all lanes, plus the probe. When L is too long for that to
pay, or is not seen within the probe, the recurrence is evaluated step by step. When a
part forgets more slowly than the probe, repair degrades smoothly to that.

Under `vmap` the lanes are there already: a batch is stepped through one step after the
other, which is what the vector unit wants; only a very small batch is evaluated in
blocks, one element after the other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._jax import custom_vmap
from elk_ssm._types import Array, PyTree
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.nodes import Blocks, block_map, cut, in_blocks, shift
from elk_ssm.solve.options import Options
from elk_ssm.solve.plan import (
    ASKED_FOR,
    BATCHED,
    NO_PROBE,
    Plan,
    PlanKind,
    is_in_kernel,
    make_plan,
)
from elk_ssm.solve.problem import Problem
from elk_ssm.solve.repair import repair
from elk_ssm.solve.rollout import (
    roll_out_sequentially,
    roll_out_whole,
    roll_to_ends,
    walk,
)
from elk_ssm.solve.stopping import Tolerance, per_block, scale_of

_SAFETY, _SLACK = 1.5, 16
_LONGEST_STRETCH = 4


class Evaluated(NamedTuple):
    """A trajectory and how it was found.

    Attributes:
        states: `(T, D)`, or the block ends `(T // C, D)`.
        misfit: Largest disagreement between blocks that was left standing.
        plan: What was done.
        breaks: Whether there is a state that is not finite, of the trajectory itself;
            None where that has to be looked for.
    """

    states: Array
    misfit: Array
    plan: Plan
    breaks: Array | None


class Task(NamedTuple):
    """The static side: C, longest burn-in in blocks, whether to try, all kept?"""

    block_size: int
    burn_in_blocks: int
    pays: bool
    keep_all: bool


class Probe(NamedTuple):
    """What the first steps show: L or -1, and a state they lead to."""

    length: Array
    typical: Array


def evaluate_forgetful(problem: Problem, options: Options) -> Evaluated:
    """Evaluate by the forgetful strategy; batches are stepped through as they are."""
    auto, length, dimension = options.method, problem.length, len(problem.initial)
    assert isinstance(auto, Auto)
    task = Task(
        min(auto.forgetful_block_size(length, dimension), length),
        auto.most_passes(dimension) - 1,
        auto.forgetful_pays(length, dimension),
        options.keeps_all,
    )

    # A rule for batches outlives this trace: it must hold nothing that is traced.
    nothing: Any = None
    bare = problem._replace(consts=[], initial=nothing, inputs=nothing)
    largest_batch = auto.largest_batch_in_blocks(dimension)

    @custom_vmap
    def run(primals: tuple, tolerance: Tolerance) -> Evaluated:
        return _evaluate(task, _with(bare, primals), tolerance)

    @run.def_vmap
    def _(axis_size: int, batched: Any, primals: tuple, tolerance: Tolerance) -> tuple:
        if not any(jax.tree.leaves(batched)):
            found = _evaluate(task, _with(bare, primals), tolerance)
            return found, jax.tree.map(lambda _: False, found)
        if axis_size <= largest_batch:
            found = _map_batched(run, batched, (primals, tolerance))
        else:
            axes = jax.tree.map(lambda moves: 0 if moves else None, tuple(batched))
            through = jax.vmap(in_batch, axes, axis_size=axis_size)
            found = through(primals, tolerance)
        return found, jax.tree.map(lambda _: True, found)

    def in_batch(primals: tuple, _: Tolerance) -> Evaluated:
        return _step_by_step(task, _with(bare, primals), BATCHED)

    primals = problem.consts, problem.initial, problem.inputs
    return run(primals, options.tolerance)


def evaluate_in_turn(problem: Problem, options: Options) -> Evaluated:
    """Evaluate step by step, as was asked for; in one kernel if that was too."""
    length = problem.length
    size = 1 if options.keeps_all else options.every
    if not options.kernel:
        task = Task(size, 0, False, options.keeps_all)
        return _step_by_step(task, problem, ASKED_FOR)
    blocks = cut(problem, length)
    states = walk(blocks, problem.initial[None], keep_all=True, kernel=True)[:, 0]
    in_kernel = is_in_kernel(True)
    numbers = PlanKind.sequential, size, ASKED_FOR, 1, length
    plan = make_plan(*numbers, in_kernel=in_kernel)
    states = states[size - 1 :: size]
    breaks = None if size > 1 else _has_broken(states)
    return Evaluated(states, jnp.zeros((), states.dtype), plan, breaks)


def _has_broken(states: Array) -> Array:
    return ~jnp.all(jnp.isfinite(states))


def _with(problem: Problem, primals: tuple) -> Problem:
    consts, initial, inputs = primals
    return problem._replace(consts=consts, initial=initial, inputs=inputs)


def _map_batched(run: Callable, batched: tuple, operands: tuple) -> PyTree:
    """Run the elements of a batch one after the other."""
    leaves, tree = jax.tree.flatten(operands)
    moving = jax.tree.leaves(tuple(batched))

    def one(entries: list) -> PyTree:
        entry = iter(entries)
        merged = [next(entry) if m else x for m, x in zip(moving, leaves, strict=True)]
        return run(*jax.tree.unflatten(tree, merged))

    return jax.lax.map(one, [x for m, x in zip(moving, leaves, strict=True) if m])


def _step_by_step(task: Task, problem: Problem, reason: int) -> Evaluated:
    step, initial, inputs = problem.step, problem.initial, problem.inputs
    size, length = task.block_size, problem.length
    if task.keep_all:
        states = roll_out_sequentially(step, initial, inputs, length)
    else:
        count = length // size
        block, folded = block_map(step, size), in_blocks(inputs, count, size)
        states = roll_out_sequentially(block, initial, folded, count)
    plan = make_plan(PlanKind.sequential, size, reason, 1, length)
    breaks = _has_broken(states) if task.keep_all else None
    return Evaluated(states, jnp.zeros((), initial.dtype), plan, breaks)


def _evaluate(task: Task, problem: Problem, tolerance: Tolerance) -> Evaluated:
    if not task.pays:
        return _step_by_step(task, problem, NO_PROBE)
    initial, length = problem.initial, problem.length
    size, keep_all = task.block_size, task.keep_all
    reach = size * task.burn_in_blocks
    tight = per_block(tolerance, length // size, initial.dtype)
    probe = _probe(problem, reach, tight)
    burn_in = burn_in_steps(probe.length, size)
    pays = (probe.length >= 0) & (burn_in <= reach)

    count, dimension = length // size, initial.shape[0]
    kept = (count * size if keep_all else count, dimension)

    def side_by_side() -> tuple[Array, Array]:
        # Cut here: as an operand of the branch the inputs would be copied once more.
        blocks = cut(problem, size, lay_out=keep_all)
        nodes = _burn_in(blocks, probe.typical, burn_in)
        if keep_all:
            return roll_out_whole(blocks, nodes), nodes
        return roll_to_ends(blocks, shift(initial, nodes)), nodes

    def nothing() -> tuple[Array, Array]:
        unknown = jnp.full((count, dimension), jnp.nan, initial.dtype)
        return jnp.zeros(kept, initial.dtype), unknown

    states, nodes = jax.lax.cond(pays, side_by_side, nothing)
    # Block ends stand for all states: the scale needs no further pass over them.
    ends = states[size - 1 :: size] if keep_all else states
    bound = tight.bound(scale_of(ends, size))
    found = repair(problem, size, states, nodes, bound, ~pays)
    states, repaired, worst, breaks = found
    tail = length - count * size if keep_all else 0
    if tail:
        left = jax.tree.map(lambda x: x[-tail:], problem.inputs)
        rest = roll_out_sequentially(problem.step, states[-1], left, tail)
        states = jnp.concatenate([states, rest])
    passes = jnp.where(pays, 1 + -(-burn_in // size), 1)
    kind = jnp.where(pays, PlanKind.forgetful_blocks, PlanKind.sequential)
    plan = make_plan(kind, size, probe.length, passes, repaired * size + tail)
    return Evaluated(states, worst, plan, None if tail or not keep_all else breaks)


def burn_in_steps(forgetting: Array | int, block_size: int) -> Array:
    """Steps B by which a block is entered early, from the forgetting length L."""
    return jnp.ceil(_SAFETY * forgetting + block_size / _SLACK).astype(jnp.int32)


def _probe(problem: Problem, reach: int, tight: Tolerance) -> Probe:
    """Follow two trajectories under the same inputs until they merge."""
    step, initial = problem.step, problem.initial
    head = jax.tree.map(lambda x: x[:reach], problem.inputs)

    def follow(start: Array, _: None) -> tuple[Array, Array]:
        states = roll_out_sequentially(step, start, head, reach)
        return states[-1], states

    # The second from where the first ends; a loop, so that f is compiled once.
    true, other = jax.lax.scan(follow, initial, None, length=2)[1]
    typical = true[-1]
    # The start may be far out, and does not say how large the states are.
    settled = true[reach // 2 :]
    settled = jnp.where(jnp.isfinite(settled), jnp.abs(settled), 0)
    bound = tight.bound(jnp.max(settled, axis=0))
    apart = ~jnp.all(jnp.abs(true - other) <= bound, axis=1)
    merged = reach - jnp.argmax(apart[::-1])
    merged = jnp.where(jnp.any(apart), merged, 0)
    # Starts that were close to each other by chance had less to forget.
    gap = jnp.max(jnp.where(initial == typical, 0, jnp.abs(typical - initial) / bound))
    usual = jnp.log(1 / tight.relative) / jnp.log(jnp.maximum(gap, 2))
    merged = jnp.ceil(merged * jnp.clip(usual, 1, _LONGEST_STRETCH)).astype(jnp.int32)
    # A start that happens to be where the trajectory ends says nothing.
    distinct = ~jnp.all(jnp.abs(typical - initial) <= bound)
    length = jnp.where(apart[-1] | ~distinct, -1, merged)
    usable = jnp.all(jnp.isfinite(typical))
    return Probe(jnp.where(usable, length, -1), jnp.where(usable, typical, initial))


def _burn_in(blocks: Blocks, typical: Array, burn_in: Array) -> Array:
    """Where each block ends, found by entering it `burn_in` steps before that end.

    Burn-ins longer than a block begin in a block before: a part of it, then whole ones.
    """

    def through(k: int, nodes: Array) -> Array:
        begins = jnp.where(k == 0, nodes, shift(blocks.initial, nodes))
        first = jnp.where(k == 0, blocks.size - burn_in % blocks.size, 0)
        return roll_to_ends(blocks, begins, first)

    everywhere = jnp.broadcast_to(typical, (blocks.number, typical.shape[0]))
    return jax.lax.fori_loop(0, 1 + burn_in // blocks.size, through, everywhere)
