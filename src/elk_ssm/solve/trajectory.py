"""A trajectory and its derivatives: the loop wrapped as one differentiable function."""

from dataclasses import replace
from functools import partial

import jax

from elk_ssm._closures import HoistedFunction
from elk_ssm._forward_mode import forward_mode
from elk_ssm._jax import zero_tangent
from elk_ssm._types import Array
from elk_ssm.parallel.mesh import on_mesh
from elk_ssm.solve.adjoint import trajectory_tangent
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method
from elk_ssm.solve.options import Options
from elk_ssm.solve.plan import newton_plan
from elk_ssm.solve.problem import Primals, Problem, StepWithConsts
from elk_ssm.solve.recursions import choose_recursion
from elk_ssm.solve.replay import replay_states
from elk_ssm.solve.strategies import Report, newton_method, solve_here
from elk_ssm.surrogate.linearization import forms_dense
from elk_ssm.surrogate.noise import unknowns_apart


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
        return solve_here(Problem(function, *primals, options.length), options)
    consts, initial, inputs = primals
    asked, length, policy, of_unknowns = options.method, options.length, None, None
    method = newton_method(options, initial) if isinstance(asked, Auto) else asked
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
        return solve_here(problem, replace(options, guess=guess), state)

    timed = inputs, options.guess, of_unknowns
    common = consts, initial, replace(options, method=method, guess=None), policy
    states, report = on_mesh(shards, shard, timed, common, length // options.every)
    if isinstance(asked, Auto):
        plan = newton_plan(method.block_size, report.num_iters)
        report = report._replace(plan=plan)
    return states, report
