r"""Short blocks rolled out side by side until they fit: what accelerators try first.

Where every operation is a launch, one pass over all time costs as much as a few steps
one after the other, and nothing is cheaper than evaluating f. So time is cut into n
short blocks of C steps; every pass rolls all of them out from where the one before
ended,

    E_k = F_k(S_k),      S_{k+1} <- E_k,      S_1 = x_0,

and a recurrence that forgets its start within L steps fits together after about
L / C + 1 passes, with no Jacobian and no scan. What is left to do is

    M = sum_k max_d log(|E_k - S_{k+1}| / bound),      zero where below the bound;

`fitting_blocks` says when to give up, and Newton's method takes over: a few passes have
been lost.

Blocks that fit are believed once a twin has shown what the recurrence does to errors:
every block is rolled out once more, from a tolerance beside its start, and misfits are
added up with the gains that this shows: see `certify`. Most often the worst gain and
the worst misfit of all blocks say enough, and only these are looked for at first.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._jax import custom_vmap
from elk_ssm._types import Array, PyTree
from elk_ssm.parallel.backend import Backend
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.certify import is_accepted, is_plainly_accepted
from elk_ssm.solve.fitting_blocks import fit_blocks
from elk_ssm.solve.nodes import Blocks, cut, fill_up, in_order, shift
from elk_ssm.solve.options import Options
from elk_ssm.solve.plan import Plan, PlanKind, is_in_kernel, make_plan
from elk_ssm.solve.problem import Problem
from elk_ssm.solve.rollout import walk
from elk_ssm.solve.shooting import Twins, nudge, shot_of, units_of
from elk_ssm.solve.stopping import (
    Tolerance,
    differs_in_sign_of_zero,
    largest,
    per_block,
    rounding_floor,
    scale_of,
)

# A misfit that is not a number counts as so many digits (natural ones).
_LOST = 100.0


class Settled(NamedTuple):
    """What the passes over short blocks ended in.

    Attributes:
        states: `(T, D)`, or the block ends `(T // C, D)`.
        fits: Whether blocks fit together, `()`.
        certain: Whether they do, and the worst of all says that these are the states of
            the trajectory, and finite; else `is_the_trajectory` looks at each of them.
        trial: The last pass and what shows its errors.
        misfit: Largest disagreement between blocks, `()`.
        passes: Passes done, an integer `()`.
        plan: What was done.
    """

    states: Array
    fits: Array
    certain: Array
    trial: "Trial"
    misfit: Array
    passes: Array
    plan: Plan


class Trial(NamedTuple):
    """A pass over blocks and the twin of each.

    Attributes:
        started: Where they started, `(n, D)`.
        states: The states of every step, `(C, n, D)`, or the last ones, `(1, n, D)`.
        beside: Where they ended that started a tolerance beside, `(n, D)`.
    """

    started: Array
    states: Array
    beside: Array


class _Task(NamedTuple):
    """The static side of a plan.

    Attributes:
        block_size: C.
        keep_all: Whether all states are kept, or the ends of blocks.
        most_passes: Largest number of passes.
        backend: Which scans to use.
        kernel: Whether a pass is one kernel where the platform has Triton.
    """

    block_size: int
    keep_all: bool
    most_passes: int
    backend: Backend
    kernel: bool


def settle_short_blocks(problem: Problem, options: Options) -> Settled:
    """Roll short blocks out until they fit, as far as that pays.

    Under `vmap` the blocks of a whole batch are rolled out side by side, and C is
    chosen for all of them (of nested ones, for the batch of the inner `vmap`).
    """
    # A rule for batches outlives this trace: it must hold nothing that is traced.
    nothing: Any = None
    bare = problem._replace(consts=[], initial=nothing, inputs=nothing)
    choose = partial(_plan, _choices(options), problem.length, len(problem.initial))

    def planned(batch: int) -> Callable[[tuple, tuple], Settled]:
        task = choose(batch)

        def settle(primals: tuple, numbers: tuple) -> Settled:
            consts, initial, inputs = primals
            here = bare._replace(consts=consts, initial=initial, inputs=inputs)
            return _settle(task, here, *numbers)

        return settle

    primals = problem.consts, problem.initial, problem.inputs
    # No `None` among what a rule for batches takes: its derivative fails there.
    guess = () if options.guess is None else (options.guess,)
    numbers = options.tolerance, options.max_iters, guess
    return _knowing_batch(planned)(primals, numbers)


def is_the_trajectory(settled: Settled, problem: Problem, options: Options) -> Array:
    """Whether states are those, and finite, by what every block does to errors."""
    trial = settled.trial
    size = len(trial.states)
    if not options.keeps_all:
        size = min(options.every, problem.length)
    shot = shot_of(_twins(trial, options.tolerance, size))
    fits = settled.fits & jnp.all(jnp.isfinite(settled.states))
    return fits & is_accepted(shot, options.backend, problem.axis)


def _knowing_batch(planned: Callable[[int], Callable]) -> Callable:
    """Return `planned(1)`, and under `vmap` what is planned for that many."""

    @custom_vmap
    def run(*operands: PyTree) -> PyTree:
        return planned(1)(*operands)

    @run.def_vmap
    def _(axis_size: int, batched: Any, *operands: PyTree) -> tuple:
        if not any(jax.tree.leaves(batched)):
            found = planned(1)(*operands)
            return found, jax.tree.map(lambda _: False, found)
        axes = jax.tree.map(lambda moves: 0 if moves else None, tuple(batched))
        # A rule of its own for a further `vmap` would have a derivative without end.
        found = jax.vmap(planned(axis_size), axes, axis_size=axis_size)(*operands)
        return found, jax.tree.map(lambda _: True, found)

    return run


def _choices(options: Options) -> Options:
    """Return options without their numbers."""
    method = jax.tree.map(lambda _: None, options.method)
    free: Any = {"guess": None, "tolerance": None, "max_iters": None}
    return replace(options, method=method, **free)


def _plan(options: Options, length: int, dimension: int, batch: int) -> _Task:
    auto = options.method
    assert isinstance(auto, Auto)
    size = auto.short_block_size(length, batch * dimension)
    size = min(size if options.keeps_all else options.every, length)
    most = auto.most_short_passes(size)
    return _Task(size, options.keeps_all, most, options.backend, options.kernel)


@jax.named_scope("short_blocks")
def _settle(
    task: _Task,
    problem: Problem,
    tolerance: Tolerance,
    max_iters: Array,
    guess: tuple[Array, ...],
) -> Settled:
    blocks = _blocks(task, problem)
    tight = per_block(tolerance, blocks.number, problem.initial.dtype)
    most = jnp.minimum(task.most_passes, max_iters)

    def roll(starts: Array) -> Array:
        return walk(blocks, starts, keep_all=task.keep_all, kernel=task.kernel)

    def follow(states: Array) -> Array:
        return _starts(blocks, states[-1])

    def left(starts: Array, states: Array) -> Array:
        bound = tight.bound(scale_of(states[-1], blocks.size))
        return _digits(starts[1:], follow(states)[1:], bound[:-1])

    fitted = fit_blocks(roll, follow, left, _before(task, blocks, guess), most)
    ends = fitted.rolled[-1]
    unit = units_of(*_bounds(ends, tolerance, blocks.size))
    nudged = nudge(fitted.started, unit)
    beside = walk(blocks, nudged, keep_all=False, kernel=task.kernel)[0]
    trial = Trial(fitted.started, fitted.rolled, beside)
    # Bounds are asked anew: handed on, they would be two kernels more.
    twins = _twins(trial, tolerance, blocks.size)
    certain = fitted.fits & is_plainly_accepted(twins, fitted.rolled)
    states = ends
    if task.keep_all:
        states = in_order(fitted.rolled)[: problem.length]
    misfit = largest(follow(fitted.rolled) - fitted.started)
    forgotten = (fitted.passes - 1) * task.block_size
    numbers = PlanKind.forgetful_blocks, task.block_size, forgotten, fitted.passes, 0
    plan = make_plan(*numbers, in_kernel=is_in_kernel(task.kernel))
    fits, passes = fitted.fits, fitted.passes
    return Settled(states, fits, certain, trial, misfit, passes, plan)


def _blocks(task: _Task, problem: Problem) -> Blocks:
    """Cut into blocks; the last one is filled up where all states are kept."""
    size, length = task.block_size, problem.length
    if task.keep_all:
        length += -length % size
    inputs = jax.tree.map(lambda x: fill_up(x, length), problem.inputs)
    return cut(problem._replace(inputs=inputs, length=length), size)


def _before(task: _Task, blocks: Blocks, guess: tuple[Array, ...]) -> Array:
    """Before the first pass blocks end where the guess says, or all at x_0."""
    initial, number = blocks.initial, blocks.number
    steps = blocks.size if task.keep_all else 1
    states = jnp.broadcast_to(initial, (steps, number, len(initial)))
    if not guess:
        return states
    known = guess[0][task.block_size - 1 :: task.block_size][: number - 1]
    known = jnp.where(jnp.isfinite(known), known, initial)
    return states.at[-1, : len(known)].set(known)


def _starts(blocks: Blocks, ends: Array) -> Array:
    """Where the blocks start next: where the one before ended, as far as finite."""
    return shift(blocks.initial, jnp.where(jnp.isfinite(ends), ends, blocks.initial))


def _digits(started: Array, following: Array, bound: Array) -> Array:
    """Return M of the module docstring; a NaN counts as lost."""
    off = jnp.abs(following - started)
    fits = (off <= bound) & ~differs_in_sign_of_zero(following, started)
    tiny = jnp.finfo(off.dtype).tiny
    digits = jnp.clip(jnp.log(off / jnp.maximum(bound, tiny)), 1e-3, _LOST)
    digits = jnp.where(fits, 0, jnp.where(jnp.isnan(digits), _LOST, digits))
    return jnp.sum(jnp.max(digits, axis=1))


def _bounds(ends: Array, tolerance: Tolerance, size: int) -> tuple[Array, Array]:
    """Return the largest error of each end, and what rounding alone may leave."""
    scale = scale_of(ends, size)
    return tolerance.bound(scale), rounding_floor(scale)


def _twins(trial: Trial, tolerance: Tolerance, size: int) -> Twins:
    ends = trial.states[-1]
    bounds = _bounds(ends, tolerance, size)
    nodes = jnp.concatenate([trial.started[1:], ends[-1:]])
    return Twins(ends, trial.beside, nodes, units_of(*bounds), bounds[1])
