"""A trajectory and its derivatives: the loop wrapped as one differentiable function."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction
from elk_ssm._forward_mode import forward_mode
from elk_ssm._jax import zero_tangent
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.mesh import Spread
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.solution import History, Status, int_status
from elk_ssm.solve.adjoint import Adjoint, choose_recursion, trajectory_tangent
from elk_ssm.solve.auto import Auto, Plan, newton_plan
from elk_ssm.solve.carry import empty_history
from elk_ssm.solve.failure import fall_back, settle_failure
from elk_ssm.solve.forgetful import evaluate_forgetful
from elk_ssm.solve.loop import iterate
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import Blocks, cut, cut_piece, roll_out
from elk_ssm.solve.replay import replay_states
from elk_ssm.solve.spread import solve_on_mesh, tangent_on_mesh
from elk_ssm.solve.stopping import Tolerance
from elk_ssm.surrogate.linearization import forms_dense

StepWithConsts: TypeAlias = Callable[[list, Array, PyTree], Array]
Keep: TypeAlias = Literal["all", "boundaries", "last"]


@dataclass(frozen=True)
class Settings:
    """The static choices of a solve.

    Attributes:
        length: Number of steps T.
        history: How many passes to record.
        backend: Which scans to use.
        adjoint: How derivatives solve their recursion.
        fall_back: Whether to evaluate sequentially what did not converge.
        keep: Which states are returned; for `"last"` the engine keeps the boundaries.
        block_size: Steps C between the states that are kept, 1 for all.
        spread: The mesh over which time is spread, None for one device.
    """

    length: int
    history: int
    backend: Backend
    adjoint: Adjoint
    fall_back: bool
    keep: Keep = "all"
    block_size: int = 1
    spread: Spread | None = None


class Options(NamedTuple):
    """The numbers of a solve, with respect to which derivatives are zero."""

    method: Method | Auto
    guess: Array | None
    tolerance: Tolerance
    max_iters: Array


class Report(NamedTuple):
    """A `Solution` without its states."""

    status: Array
    num_iters: Array
    residual_norm: Array
    step_norm: Array
    failed_step: Array
    history: History | None
    plan: Plan | None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _solve(
    function: HoistedFunction,
    settings: Settings,
    primals: tuple[list, Array, PyTree],
    options: Options,
) -> tuple[Array, Report]:
    """Find the flat trajectory, `(T, D)` or every C-th state, `(T // C, D)`."""
    return _solve_where_asked(function, settings, primals, options)


def _solve_where_asked(
    function: StepWithConsts,
    settings: Settings,
    primals: tuple[list, Array, PyTree],
    options: Options,
) -> tuple[Array, Report]:
    """Find the trajectory, on one device or on a mesh."""
    if settings.spread is None:
        return _solve_here(LOCAL, function, settings, primals, options)
    return _solve_spread(settings.spread, function, settings, primals, options)


def _solve_and_replay(
    function: HoistedFunction,
    settings: Settings,
    primals: tuple[list, Array, PyTree],
    options: Options,
) -> tuple[Array, Report]:
    """Find the trajectory of a function with vector-Jacobian rules."""
    fixed = jax.lax.stop_gradient((primals, options))
    states, report = _solve_where_asked(forward_mode(function), settings, *fixed)
    return replay_states(function, primals, states, settings.block_size), report


def _solve_spread(
    spread: Spread,
    function: StepWithConsts,
    settings: Settings,
    primals: tuple[list, Array, PyTree],
    options: Options,
) -> tuple[Array, Report]:
    """Find the trajectory with every device of a mesh finding its piece."""
    length, dimension = settings.length, primals[1].shape[0]
    method, is_auto = options.method, isinstance(options.method, Auto)
    if isinstance(method, Auto):
        method = _newton(method, settings, dimension)
    method = replace(method, block_size=min(method.block_size, spread.piece(length)))

    def piece(
        primals: tuple, method: Method, guess: Array | None, rest: tuple, policy: Any
    ) -> tuple[Array, Report]:
        options = Options(method, guess, *rest)
        return _solve_here(spread.axis, function, settings, primals, options, policy)

    rest = options.tolerance, options.max_iters
    rows = length // settings.block_size
    states, report = solve_on_mesh(
        spread, length, rows, primals, method, options.guess, rest, piece
    )
    if is_auto:
        plan = newton_plan(method.block_size, report.num_iters)
        report = report._replace(plan=plan)
    return states, report


def _newton(auto: Auto, settings: Settings, dimension: int) -> Method:
    """The Newton strategy, its blocks ending where states are kept."""
    size = None if settings.keep == "all" else settings.block_size
    return auto.newton(settings.length, dimension, size)


def _solve_here(
    axis: TimeAxis,
    function: StepWithConsts,
    settings: Settings,
    primals: tuple[list, Array, PyTree],
    options: Options,
    policy: Any = None,
) -> tuple[Array, Report]:
    """Find what this device holds of the trajectory."""
    consts, initial, inputs = primals

    def step(state: Array, inputs: PyTree) -> Array:
        return function(consts, state, inputs)

    states, report = _find(function, step, settings, primals, options, axis, policy)
    length = settings.length
    if settings.fall_back:
        states, status = fall_back(
            step, initial, inputs, length, states, report.status, axis
        )
        return states, report._replace(status=status)
    every = settings.block_size
    states, status, failed_step = settle_failure(
        step, initial, inputs, states, report.status, every, length, axis
    )
    # What was followed to its end has no residual, whatever the iteration saw.
    followed = (status == Status.converged) & (report.status != Status.converged)
    return states, report._replace(
        status=status,
        failed_step=failed_step,
        residual_norm=jnp.where(followed, 0, report.residual_norm),
        step_norm=jnp.where(followed, 0, report.step_norm),
    )


def _find(
    function: StepWithConsts,
    step: FlatStep,
    settings: Settings,
    primals: tuple[list, Array, PyTree],
    options: Options,
    axis: TimeAxis,
    policy: Any,
) -> tuple[Array, Report]:
    """Run the method that was asked for."""
    method = options.method
    consts, initial, inputs = primals
    if isinstance(method, Method):
        return _find_by_method(
            method, step, settings, initial, inputs, options, axis, policy
        )

    def forgetful() -> tuple[Array, Report]:
        states, misfit, plan = evaluate_forgetful(
            method,
            function,
            consts,
            initial,
            inputs,
            options.tolerance,
            settings.length,
            keep_all=settings.keep == "all",
        )
        nowhere = jnp.asarray(-1, jnp.int32)
        done = int_status(Status.converged)
        history = empty_history(settings.history, initial.dtype)
        report = Report(done, plan.passes, misfit, misfit, nowhere, history, plan)
        return states, report

    def newton() -> tuple[Array, Report]:
        concrete = _newton(method, settings, initial.shape[0])
        states, report = _find_by_method(
            concrete, step, settings, initial, inputs, options
        )
        plan = newton_plan(concrete.block_size, report.num_iters)
        return states, report._replace(plan=plan)

    if method.strategy == "auto":
        return jax.lax.platform_dependent(cpu=forgetful, default=newton)
    return forgetful() if method.strategy == "forgetful" else newton()


def _find_by_method(
    method: Method,
    step: FlatStep,
    settings: Settings,
    initial: Array,
    inputs: PyTree,
    options: Options,
    axis: TimeAxis = LOCAL,
    policy: Any = None,
) -> tuple[Array, Report]:
    step, blocks, nodes = lay_out(
        method, settings, step, initial, inputs, options.guess, axis
    )
    carry = iterate(
        method,
        step,
        blocks,
        nodes,
        options.tolerance,
        options.max_iters,
        history=settings.history,
        backend=settings.backend,
        policy=policy,
    )
    states = carry.nodes
    if settings.keep == "all":
        states = roll_out(step, blocks, states)
    if axis.is_spread and settings.keep == "all":
        # The last block of a device may be filled up.
        states = states[: -(-settings.length // axis.size)]
    nowhere = jnp.asarray(-1, jnp.int32)
    return states, Report(
        carry.status,
        carry.iteration,
        carry.residual_norm,
        carry.step_norm,
        nowhere,
        carry.history,
        None,
    )


@partial(_solve.defjvp, symbolic_zeros=True)
def _solve_jvp(
    function: HoistedFunction, settings: Settings, primals: tuple, tangents: tuple
) -> tuple:
    problem, options = primals
    states, report = _solve(function, settings, problem, options)
    method = options.method
    dense = isinstance(method, Method) and method.block_size == 1
    dense = dense and forms_dense(method.linearization)
    spread = settings.spread
    recursion = choose_recursion(
        settings.adjoint, has_jacobians=dense, spread=spread is not None
    )
    arguments = recursion, problem, tangents[0], states, settings.block_size
    if spread is None:
        tangent = trajectory_tangent(function, *arguments)
    else:
        tangent = tangent_on_mesh(spread, settings.length, function, *arguments)
    return (states, report), (tangent, jax.tree.map(zero_tangent, report))


@partial(jax.jit, static_argnums=(0, 1))
def solve_trajectory(
    function: HoistedFunction,
    settings: Settings,
    primals: tuple[list, Array, PyTree],
    options: Options,
) -> tuple[Array, Report]:
    """Find the flat trajectory, differentiably; compiled once for a program."""
    solve = _solve_and_replay if function.has_vjp_rules else _solve
    return solve(function, settings, primals, options)


def lay_out(
    method: Method,
    settings: Settings,
    step: FlatStep,
    initial: Array,
    inputs: PyTree,
    guess: Array | None,
    axis: TimeAxis = LOCAL,
) -> tuple[FlatStep, Blocks, Array]:
    """Return the step to use, the blocks of a method and its first nodes."""
    length, spacious = settings.length, settings.keep == "all"
    size = min(method.block_size, length)
    if axis.is_spread:
        step, blocks = cut_piece(
            step, initial, inputs, length, size, axis, lay_out=spacious
        )
    else:
        blocks = cut(initial, inputs, length, size, lay_out=spacious)
    everywhere = jnp.broadcast_to(initial, (blocks.number, initial.shape[0]))
    if guess is None:
        return step, blocks, everywhere
    missing = max(blocks.number * size - guess.shape[0], 0)
    if missing:
        guess = jnp.concatenate([guess, jnp.repeat(guess[-1:], missing, axis=0)])
    nodes = guess[size - 1 :: size][: blocks.number]
    return step, blocks, jnp.where(jnp.isfinite(nodes), nodes, everywhere)
