"""A trajectory and its derivatives: the loop wrapped as one differentiable function."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction
from elk_ssm._forward_mode import forward_mode
from elk_ssm._jax import zero_tangent
from elk_ssm._types import Array
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.parallel.mesh import on_mesh
from elk_ssm.solution import History, Status, int_status
from elk_ssm.solve.adjoint import trajectory_tangent
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.carry import empty_history, record
from elk_ssm.solve.failure import fall_back, settle_failure
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
from elk_ssm.solve.problem import Primals, Problem, StepWithConsts
from elk_ssm.solve.recursions import choose_recursion
from elk_ssm.solve.replay import replay_states
from elk_ssm.solve.rollout import roll_out
from elk_ssm.solve.short_blocks import settle_short_blocks
from elk_ssm.surrogate.linearization import forms_dense
from elk_ssm.surrogate.noise import unknowns_apart


class Report(NamedTuple):
    """A `Solution` without its states."""

    status: Array
    num_iters: Array
    residual_norm: Array
    step_norm: Array
    failed_step: Array
    history: History | None
    plan: Plan | None


@partial(jax.jit, static_argnums=0)
def solve_trajectory(
    function: HoistedFunction, primals: Primals, options: Options
) -> tuple[Array, Report]:
    """Find the flat trajectory, differentiably; compiled once for a program.

    Returns:
        States `(T, D)`, or every C-th one, `(T // C, D)`; and the report.
    """
    solve = _solve_and_replay if function.has_vjp_rules else _solve
    return solve(function, primals, options)


def _solve_and_replay(
    function: HoistedFunction, primals: Primals, options: Options
) -> tuple[Array, Report]:
    """Find the trajectory of a function with vector-Jacobian rules."""
    fixed = jax.lax.stop_gradient((primals, options))
    states, report = _solve_anywhere(forward_mode(function), *fixed)
    return replay_states(function, primals, states, options.every), report


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(
    function: HoistedFunction, primals: Primals, options: Options
) -> tuple[Array, Report]:
    return _solve_anywhere(function, primals, options)


@partial(_solve.defjvp, symbolic_zeros=True)
def _solve_jvp(function: HoistedFunction, primals: tuple, tangents: tuple) -> tuple:
    problem, options = primals
    states, report = _solve(function, problem, options)
    method = options.method
    dense = isinstance(method, Method) and method.block_size == 1
    dense = dense and forms_dense(method.linearization)
    recursion = choose_recursion(
        options.adjoint, has_jacobians=dense, sharded=options.shards is not None
    )
    tangent = trajectory_tangent(
        function, recursion, problem, tangents[0], states, options
    )
    return (states, report), (tangent, jax.tree.map(zero_tangent, report))


def _solve_anywhere(
    function: StepWithConsts, primals: Primals, options: Options
) -> tuple[Array, Report]:
    """Find the trajectory, on one device or with every device finding its shard."""
    shards = options.shards
    if shards is None:
        return _solve_here(Problem(function, *primals, options.length), options)
    consts, initial, inputs = primals
    asked, length, policy, of_unknowns = options.method, options.length, None, None
    method = _newton(options, initial) if isinstance(asked, Auto) else asked
    method = replace(method, block_size=min(method.block_size, shards.shard(length)))
    if method.noise is not None:
        shape = shards.unknowns(length, method.block_size), len(initial)
        noise, policy, of_unknowns = unknowns_apart(method.noise, shape, initial.dtype)
        method = replace(method, noise=noise)

    def shard(timed: tuple, common: tuple) -> tuple[Array, Report]:
        inputs, guess, of_unknowns = timed
        consts, initial, options, policy = common
        problem = Problem(function, consts, initial, inputs, length, shards.axis)
        state = policy if of_unknowns is None else of_unknowns
        return _solve_here(problem, replace(options, guess=guess), state)

    timed = inputs, options.guess, of_unknowns
    common = consts, initial, replace(options, method=method, guess=None), policy
    states, report = on_mesh(shards, shard, timed, common, length // options.every)
    if isinstance(asked, Auto):
        plan = newton_plan(method.block_size, report.num_iters)
        report = report._replace(plan=plan)
    return states, report


def _newton(options: Options, initial: Array) -> Method:
    """The Newton strategy, its blocks ending where states are kept."""
    assert isinstance(options.method, Auto)
    size = None if options.keeps_all else options.every
    return options.method.newton(options.length, len(initial), size)


def _solve_here(
    problem: Problem, options: Options, policy: Any = None
) -> tuple[Array, Report]:
    """Find what this device holds of the trajectory.

    Args:
        problem: The recurrence.
        options: How to solve it.
        policy: First state of the noise policy, or None if it is to be made here.
    """
    states, report = _find(problem, options, policy)
    if options.fall_back:
        states, status = fall_back(problem, states, report.status)
        return states, report._replace(status=status)
    states, status, failed_step = settle_failure(
        problem, states, report.status, options.every
    )
    # What was followed to its end has no residual, whatever the iteration saw.
    followed = (status == Status.converged) & (report.status != Status.converged)
    return states, report._replace(
        status=status,
        failed_step=failed_step,
        residual_norm=jnp.where(followed, 0, report.residual_norm),
        step_norm=jnp.where(followed, 0, report.step_norm),
    )


def _find(problem: Problem, options: Options, policy: Any) -> tuple[Array, Report]:
    """Run the method that was asked for."""
    method = options.method
    if isinstance(method, Method):
        return _iterate(problem, options, policy)

    def forgetful() -> tuple[Array, Report]:
        return without_passes(evaluate_forgetful(problem, options))

    def sequential() -> tuple[Array, Report]:
        return without_passes(evaluate_in_turn(problem, options))

    def without_passes(found: Evaluated) -> tuple[Array, Report]:
        states, misfit, plan = found
        nowhere = jnp.asarray(-1, jnp.int32)
        done = int_status(Status.converged)
        history = _outcome(options, plan.passes, misfit)
        report = Report(done, plan.passes, misfit, misfit, nowhere, history, plan)
        return states, report

    def newton(
        guess: Array | None = options.guess, limit: Array = options.max_iters
    ) -> tuple[Array, Report]:
        concrete = _newton(options, problem.initial)
        on = replace(options, method=concrete, guess=guess, max_iters=limit)
        states, report = _iterate(problem, on, None)
        plan = newton_plan(concrete.block_size, report.num_iters)
        return states, report._replace(plan=plan)

    def short_blocks() -> tuple[Array, Report]:
        return _short_blocks_or(newton, problem, options)

    if method.strategy == "auto":
        return jax.lax.platform_dependent(cpu=forgetful, default=short_blocks)
    chosen: dict[str, Callable[[], tuple[Array, Report]]] = {
        "forgetful": forgetful,
        "short_blocks": short_blocks,
        "newton": newton,
        "sequential": sequential,
    }
    return chosen[method.strategy]()


def _short_blocks_or(
    newton: Callable, problem: Problem, options: Options
) -> tuple[Array, Report]:
    """Try short blocks, and go on with Newton's method where they do not fit."""
    settled = settle_short_blocks(problem, options)
    fits, nowhere = settled.fits, jnp.asarray(-1, jnp.int32)
    history = _outcome(options, settled.passes, settled.misfit)
    size = settled.misfit, settled.misfit
    done = int_status(Status.converged)
    report = Report(done, settled.passes, *size, nowhere, history, settled.plan)

    def go_on() -> tuple[Array, Report]:
        left = jnp.maximum(options.max_iters - settled.passes, 0)
        guess = settled.states if options.keeps_all else options.guess
        states, after = newton(guess, left)
        total = settled.passes + after.num_iters
        found = states, after._replace(num_iters=total)
        return jax.tree.map(lambda x, y: jnp.where(fits, x, y), so_far, found)

    so_far = settled.states, report
    with jax.named_scope("newton"):
        return jax.lax.cond(anywhere(~fits), go_on, lambda: so_far)


def _outcome(options: Options, passes: Array, misfit: Array) -> History | None:
    """Record the last pass of what is no iteration; of those before nothing is seen."""
    history = empty_history(options.history, misfit.dtype)
    if history is None:
        return None
    undamped, nothing = jnp.full_like(misfit, jnp.inf), jnp.asarray(0, jnp.int32)
    now = History(misfit, misfit, undamped, passes, nothing)
    return record(history, now, passes - 1)


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
