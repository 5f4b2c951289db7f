"""A trajectory and its derivatives: the loop wrapped as one differentiable function."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction
from elk_ssm._trees import is_float
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.kalman.backend import Backend
from elk_ssm.solution import History, Status, int_status
from elk_ssm.solve.adjoint import Adjoint, choose_recursion, trajectory_tangent
from elk_ssm.solve.auto import Auto, Plan, newton_plan
from elk_ssm.solve.forgetful import evaluate_forgetful
from elk_ssm.solve.loop import Carry, empty_history, iterate, one_pass, start
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import Blocks, cut, roll_out, roll_out_sequentially, starts
from elk_ssm.surrogate.linearization import DenseJacobian

_CHUNK = 512


@dataclass(frozen=True)
class Settings:
    """The static choices of a solve."""

    length: int
    history: int
    backend: Backend
    adjoint: Adjoint
    fall_back: bool


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
    """Find the flat trajectory `(T, D)`."""
    consts, initial, inputs = primals

    def step(state: Array, inputs: PyTree) -> Array:
        return function(consts, state, inputs)

    states, report = _find(function, step, settings, primals, options)
    if settings.fall_back:
        states, status = _fall_back(step, primals, settings, states, report.status)
        return states, report._replace(status=status)
    states, status, failed_step = _find_failure(
        step, initial, inputs, states, report.status
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
        )
        nowhere = jnp.asarray(-1, jnp.int32)
        done = int_status(Status.converged)
        history = empty_history(settings.history, initial.dtype)
        report = Report(done, plan.passes, misfit, misfit, nowhere, history, plan)
        return states, report

    def newton() -> tuple[Array, Report]:
        concrete = method.newton(settings.length, initial.shape[0])
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
    block_size = min(method.block_size, settings.length)
    blocks = cut(initial, inputs, settings.length, block_size)
    carry = iterate(
        method,
        step,
        blocks,
        _first_nodes(blocks, options.guess, block_size),
        options.tolerance,
        options.max_iters,
        history=settings.history,
        backend=settings.backend,
    )
    states = roll_out(step, blocks, carry.nodes)
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


@_solve.defjvp
def _solve_jvp(
    function: HoistedFunction, settings: Settings, primals: tuple, tangents: tuple
) -> tuple:
    problem, options = primals
    states, report = _solve(function, settings, problem, options)
    method = options.method
    dense = isinstance(method, Method) and method.block_size == 1
    dense = dense and isinstance(method.linearization, DenseJacobian)
    recursion = choose_recursion(settings.adjoint, has_jacobians=dense)
    tangent = trajectory_tangent(function, recursion, problem, tangents[0], states)
    return (states, report), (tangent, jax.tree.map(_zero_tangent, report))


def _zero_tangent(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


solve_trajectory = jax.jit(_solve, static_argnums=(0, 1))


def _first_nodes(blocks: Blocks, guess: Array | None, block_size: int) -> Array:
    count = blocks.times.shape[1]
    everywhere = jnp.broadcast_to(blocks.initial, (count, blocks.initial.shape[0]))
    if guess is None:
        return everywhere
    nodes = guess[block_size - 1 :: block_size][:count]
    return jnp.where(jnp.isfinite(nodes), nodes, everywhere)


def _fall_back(
    step: Any, primals: tuple, settings: Settings, states: Array, status: Array
) -> tuple[Array, Array]:
    """Evaluate sequentially what the iteration did not bring to convergence."""
    _, initial, inputs = primals
    undecided = status != Status.converged

    def evaluate(_: tuple) -> tuple:
        states = roll_out_sequentially(step, initial, inputs, settings.length)
        return jnp.zeros_like(undecided), states

    # A loop and no `cond`, of which `vmap` would run both branches for every batch.
    _, states = jax.lax.while_loop(
        lambda carry: carry[0], evaluate, (undecided, states)
    )
    return states, jnp.where(undecided, int_status(Status.converged), status)


def _find_failure(
    step: FlatStep, initial: Array, inputs: PyTree, states: Array, status: Array
) -> tuple[Array, Array, Array]:
    """Locate the first non-finite value that f returns along the trajectory.

    Returns:
        The states with non-finite rows replaced by the last finite one before them,
        the status, and the failed step or -1.
    """
    suspect = (status == Status.nonfinite) | ~jnp.all(jnp.isfinite(states))

    def locate(carry: tuple) -> tuple:
        _, states, _ = carry
        finite = jax.lax.map(
            lambda entry: jnp.all(jnp.isfinite(step(*entry))),
            (starts(initial, states), inputs),
            batch_size=_CHUNK,
        )
        failed = jnp.argmin(finite)
        last = jnp.where(failed > 0, states[jnp.maximum(failed - 1, 0)], initial)
        broken = ~jnp.all(jnp.isfinite(states), axis=1, keepdims=True)
        mended = jnp.where(broken, last, states)
        return jnp.zeros_like(suspect), mended, failed.astype(jnp.int32)

    # A loop and no `cond`, of which `vmap` runs both branches; chunks, because what
    # does not change in a loop is hoisted out of it and then always evaluated.
    nowhere = jnp.asarray(-1, jnp.int32)
    _, states, failed_step = jax.lax.while_loop(
        lambda carry: carry[0], locate, (suspect, states, nowhere)
    )
    return states, jnp.where(suspect, int_status(Status.nonfinite), status), failed_step


@partial(jax.jit, static_argnums=(0, 1))
def solve_sequentially(
    function: HoistedFunction,
    length: int,
    consts: list,
    initial_state: PyTree,
    inputs: PyTree,
) -> tuple[PyTree, Array]:
    """Return the states by `lax.scan`, and where a float leaf first failed or -1."""

    def body(state: PyTree, entry: PyTree) -> tuple[PyTree, PyTree]:
        state = function(consts, state, entry)
        return state, state

    states = jax.lax.scan(body, initial_state, inputs, length=length)[1]
    finite = jnp.ones(length, bool)
    for leaf in jax.tree.leaves(states):
        if is_float(leaf):
            finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
    first = jnp.argmin(finite).astype(jnp.int32)
    return states, jnp.where(jnp.all(finite), -1, first)


@partial(jax.jit, static_argnums=(0, 1, 2))
def all_iterates(
    function: HoistedFunction,
    settings: Settings,
    num_iters: int,
    method: Method,
    primals: tuple,
    options: Options,
) -> Array:
    """Return the guess and every iterate after it, `(num_iters + 1, T, D)`."""
    consts, initial, inputs = primals
    step = partial(function, consts)
    block_size = min(method.block_size, settings.length)
    blocks = cut(initial, inputs, settings.length, block_size)
    nodes = _first_nodes(blocks, options.guess, block_size)
    never = jnp.zeros_like(options.tolerance)

    def body(carry: Carry, _: None) -> tuple[Carry, Array]:
        carry = one_pass(method, step, blocks, never, settings.backend, carry)
        return carry, roll_out(step, blocks, carry.nodes)

    first = roll_out(step, blocks, nodes)
    rest = jax.lax.scan(body, start(method, nodes, 0), None, length=num_iters)[1]
    return jnp.concatenate([first[None], rest])
