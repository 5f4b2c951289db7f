"""A trajectory and its derivatives: the loop wrapped as one differentiable function."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.kalman.backend import Backend
from elk_ssm.solution import History, Status, int_status
from elk_ssm.solve.adjoint import Adjoint, choose_recursion, trajectory_tangent
from elk_ssm.solve.auto import Auto, Plan, newton_plan
from elk_ssm.solve.failure import fall_back, find_failure
from elk_ssm.solve.forgetful import evaluate_forgetful
from elk_ssm.solve.loop import empty_history, iterate
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import Blocks, cut, roll_out
from elk_ssm.surrogate.linearization import DenseJacobian

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
    """

    length: int
    history: int
    backend: Backend
    adjoint: Adjoint
    fall_back: bool
    keep: Keep = "all"
    block_size: int = 1


class Options(NamedTuple):
    """The numbers of a solve, with respect to which derivatives are zero."""

    method: Method | Auto
    guess: Array | None
    tolerance: Array
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
    consts, initial, inputs = primals

    def step(state: Array, inputs: PyTree) -> Array:
        return function(consts, state, inputs)

    states, report = _find(function, step, settings, primals, options)
    if settings.fall_back:
        states, status = fall_back(
            step, initial, inputs, settings.length, states, report.status
        )
        return states, report._replace(status=status)
    states, status, failed_step = find_failure(
        step, initial, inputs, states, report.status, settings.block_size
    )
    return states, report._replace(status=status, failed_step=failed_step)


def _find(
    function: HoistedFunction,
    step: FlatStep,
    settings: Settings,
    primals: tuple[list, Array, PyTree],
    options: Options,
) -> tuple[Array, Report]:
    """Run the method that was asked for."""
    method = options.method
    consts, initial, inputs = primals
    if isinstance(method, Method):
        return _find_by_method(method, step, settings, initial, inputs, options)

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
        size = None if settings.keep == "all" else settings.block_size
        concrete = method.newton(settings.length, initial.shape[0], size)
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
) -> tuple[Array, Report]:
    blocks, nodes = lay_out(method, settings, initial, inputs, options.guess)
    carry = iterate(
        method,
        step,
        blocks,
        nodes,
        options.tolerance,
        options.max_iters,
        history=settings.history,
        backend=settings.backend,
    )
    kept = carry.nodes
    states = roll_out(step, blocks, kept) if settings.keep == "all" else kept
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
    dense = dense and isinstance(method.linearization, DenseJacobian)
    recursion = choose_recursion(settings.adjoint, has_jacobians=dense)
    tangent = trajectory_tangent(
        function, recursion, problem, tangents[0], states, settings.block_size
    )
    return (states, report), (tangent, jax.tree.map(_zero_tangent, report))


def _zero_tangent(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


solve_trajectory = jax.jit(_solve, static_argnums=(0, 1))


def lay_out(
    method: Method,
    settings: Settings,
    initial: Array,
    inputs: PyTree,
    guess: Array | None,
) -> tuple[Blocks, Array]:
    """Return the blocks of a method and its first nodes."""
    size = min(method.block_size, settings.length)
    spacious = settings.keep == "all"
    blocks = cut(initial, inputs, settings.length, size, lay_out=spacious)
    everywhere = jnp.broadcast_to(initial, (blocks.number, initial.shape[0]))
    if guess is None:
        return blocks, everywhere
    nodes = guess[size - 1 :: size][: blocks.number]
    return blocks, jnp.where(jnp.isfinite(nodes), nodes, everywhere)
