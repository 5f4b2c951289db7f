"""What runs on a device: a method, or one of the strategies of `auto`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._jax import cpu_or_later
from elk_ssm._types import Array
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.solution import History, Status, int_status
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.carry import empty_history, record
from elk_ssm.solve.failure import fall_back, hold_at_break, settle_failure
from elk_ssm.solve.forgetful import (
    Evaluated,
    evaluate_forgetful,
    evaluate_in_turn,
)
from elk_ssm.solve.loop import iterate
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import Blocks, cut, fill_up
from elk_ssm.solve.options import Options
from elk_ssm.solve.plan import Plan, method_plan, newton_plan
from elk_ssm.solve.problem import Primals, Problem
from elk_ssm.solve.rollout import roll_out
from elk_ssm.solve.short_blocks import is_the_trajectory, settle_short_blocks


class Report(NamedTuple):
    """A `Solution` without its states."""

    status: Array
    num_iters: Array
    residual_norm: Array
    step_norm: Array
    failed_step: Array
    history: History | None
    plan: Plan | None


def newton_method(options: Options, initial: Array) -> Method:
    """The Newton strategy, its blocks ending where states are kept."""
    assert isinstance(options.method, Auto)
    size = None if options.keeps_all else options.every
    return options.method.newton(options.length, len(initial), size)


def solve_here(
    problem: Problem, options: Options, policy: Any = None
) -> tuple[Array, Report]:
    """Find what this device holds of the trajectory.

    Args:
        problem: The recurrence.
        options: How to solve it.
        policy: First state of the noise policy, or None if it is to be made here.
    """
    method = options.method
    if isinstance(method, Method):
        return _settle(problem, options, *_iterate(problem, options, policy))
    if method.strategy != "auto":
        return _STRATEGIES[method.strategy](problem, options)
    function, *primals, length, axis = problem
    static = function, length, axis
    return cpu_or_later(_forgetful_of, _short_blocks_of, static, primals, options)


def _settle(
    problem: Problem,
    options: Options,
    states: Array,
    report: Report,
    bad: Array | None = None,
) -> tuple[Array, Report]:
    """See to what did not converge; `bad`: whether a state is not finite, if known."""
    if options.fall_back:
        states, status = fall_back(problem, states, report.status)
        return states, report._replace(status=status)
    states, status, failed_step = settle_failure(
        problem, states, report.status, options.every, bad
    )
    # What was followed to its end has no residual, whatever the iteration saw.
    followed = (status == Status.converged) & (report.status != Status.converged)
    return states, report._replace(
        status=status,
        failed_step=failed_step,
        residual_norm=jnp.where(followed, 0, report.residual_norm),
        step_norm=jnp.where(followed, 0, report.step_norm),
    )


def _forgetful(problem: Problem, options: Options) -> tuple[Array, Report]:
    return _without_passes(evaluate_forgetful(problem, options), problem, options)


def _sequential(problem: Problem, options: Options) -> tuple[Array, Report]:
    return _without_passes(evaluate_in_turn(problem, options), problem, options)


def _without_passes(
    found: Evaluated, problem: Problem, options: Options
) -> tuple[Array, Report]:
    states, misfit, plan, breaks = found
    failed = jnp.asarray(-1, jnp.int32)
    status = int_status(Status.converged)
    history = _outcome(options, plan.passes, misfit)
    report = Report(status, plan.passes, misfit, misfit, failed, history, plan)
    if options.fall_back:
        return states, report
    if breaks is None:
        return _settle(problem, options, states, report)
    states, failed = hold_at_break(problem.initial, states, breaks)
    status = jnp.where(failed < 0, status, int_status(Status.nonfinite))
    return states, report._replace(status=status, failed_step=failed)


def _newton_blocks(problem: Problem, options: Options) -> tuple[Array, Report]:
    return _settle(problem, options, *_pass_newton(problem, options))


def _pass_newton(problem: Problem, options: Options) -> tuple[Array, Report]:
    concrete = newton_method(options, problem.initial)
    states, report = _iterate(problem, replace(options, method=concrete), None)
    plan = newton_plan(concrete.block_size, report.num_iters)
    return states, report._replace(plan=plan)


def _short_blocks(problem: Problem, options: Options) -> tuple[Array, Report]:
    """Try short blocks, and go on with Newton's method where they do not fit."""
    settled = settle_short_blocks(problem, options)
    certain, nowhere = settled.certain, jnp.asarray(-1, jnp.int32)
    history = _outcome(options, settled.passes, settled.misfit)
    size = settled.misfit, settled.misfit
    done = int_status(Status.converged)
    report = Report(done, settled.passes, *size, nowhere, history, settled.plan)

    def go_on(fits: Array) -> tuple[Array, Report]:
        left = jnp.maximum(options.max_iters - settled.passes, 0)
        guess = settled.states if options.keeps_all else options.guess
        on = replace(options, guess=guess, max_iters=left)
        states, after = _pass_newton(problem, on)
        total = settled.passes + after.num_iters
        found = states, after._replace(num_iters=total)
        return jax.tree.map(lambda x, y: jnp.where(fits, x, y), so_far, found)

    def look_closer() -> tuple[Array, Report, Array]:
        fits = certain | is_the_trajectory(settled, problem, options)
        onward = anywhere(~fits)
        found = jax.lax.cond(onward, partial(go_on, fits), lambda: so_far)
        return *found, ~jnp.all(jnp.isfinite(found[0]))

    def stay() -> tuple[Array, Report, Array]:
        return *so_far, jnp.asarray(False)

    so_far = settled.states, report
    with jax.named_scope("newton"):
        found = jax.lax.cond(anywhere(~certain), look_closer, stay)
    return _settle(problem, options, *found)


def _outcome(options: Options, passes: Array, misfit: Array) -> History | None:
    """Record the last pass of what is no iteration; of those before nothing is seen."""
    history = empty_history(options.history, misfit.dtype)
    if history is None:
        return None
    undamped, nothing = jnp.full_like(misfit, jnp.inf), jnp.asarray(0, jnp.int32)
    now = History(misfit, misfit, undamped, passes, nothing)
    return record(history, now, passes - 1)


_STRATEGIES: dict[str, Callable[[Problem, Options], tuple[Array, Report]]] = {
    "forgetful": _forgetful,
    "short_blocks": _short_blocks,
    "newton": _newton_blocks,
    "sequential": _sequential,
}


def _forgetful_of(
    static: tuple, primals: Primals, options: Options
) -> tuple[Array, Report]:
    function, length, axis = static
    return _forgetful(Problem(function, *primals, length, axis), options)


def _short_blocks_of(
    static: tuple, primals: Primals, options: Options
) -> tuple[Array, Report]:
    function, length, axis = static
    return _short_blocks(Problem(function, *primals, length, axis), options)


def _iterate(problem: Problem, options: Options, policy: Any) -> tuple[Array, Report]:
    blocks, nodes = lay_out(problem, options)
    carry = iterate(blocks, nodes, options, policy)
    states = carry.nodes
    if options.keeps_all:
        states = roll_out(blocks, states)
        if problem.axis.is_sharded:
            # The last block of a device may be filled up.
            states = states[: -(-options.length // problem.axis.size)]
    return states, Report(
        carry.status,
        carry.iteration,
        carry.residual_norm,
        carry.step_norm,
        jnp.asarray(-1, jnp.int32),
        carry.history,
        method_plan(options.concrete, carry.iteration, blocks.unknowns - carry.exact),
    )


def lay_out(problem: Problem, options: Options) -> tuple[Blocks, Array]:
    """Return the blocks of a method and its first nodes."""
    size, guess = min(options.concrete.block_size, options.length), options.guess
    blocks = cut(problem, size, lay_out=options.keeps_all)
    everywhere = jnp.broadcast_to(
        problem.initial, (blocks.number, *problem.initial.shape)
    )
    if guess is None:
        return blocks, everywhere
    guess = fill_up(guess, blocks.number * size)
    nodes = guess[size - 1 :: size][: blocks.number]
    return blocks, jnp.where(jnp.isfinite(nodes), nodes, everywhere)
