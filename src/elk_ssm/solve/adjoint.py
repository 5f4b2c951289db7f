r"""Derivatives of a trajectory: differentiate the equation, not the loop.

The trajectory satisfies x_t = f(c, x_{t-1}, u_t). Its tangent solves the linear system

    d_t - J_t d_{t-1} = g_t,      J_t = df/dx at (x_{t-1}, u_t),      d_0 = 0,
    g_t = df/dc . c' + df/du . u_t'  (+ J_1 x_0' for t = 1),

with the true Jacobian, whichever method found x. `custom_linear_solve` makes the solve
differentiable to any order, and transposes it into the adjoint recursion: `recursions`.
Of states at the ends of blocks of C steps it is the same with the block map, so nothing
but these states is kept: a block is stepped through again where needed.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._jax import is_zero_tangent
from elk_ssm._types import Array, PyTree
from elk_ssm.parallel.mesh import on_mesh
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.solve.nodes import block_map, in_blocks
from elk_ssm.solve.options import Adjoint, Options
from elk_ssm.solve.path import Path
from elk_ssm.solve.problem import Primals, StepWithConsts
from elk_ssm.solve.recursions import Recursion, choose_recursion, solve_tangents

# How many steps, or blocks of so many steps, are differentiated side by side.
_CHUNK, _BLOCK_CHUNK, _LEAST_CHUNK = 512, 32_768, 8
# Tangents of the leaves of (consts, x_0, inputs), None for what does not move.
Tangents: TypeAlias = list[Array | None]


class Along(NamedTuple):
    """Steps between the states of a path, whether sweeps are a kernel, where it is."""

    every: int = 1
    kernel: bool = False
    axis: TimeAxis = LOCAL


def trajectory_tangent(
    function: StepWithConsts,
    recursion: Recursion,
    primals: Primals,
    tangents: PyTree,
    states: Array,
    options: Options,
) -> Array:
    """Tangent of the states `(T, D)` along tangents of (consts, x_0, inputs).

    Args:
        function: The flat step `function(consts, state, input)`.
        recursion: Which recursion solves the linear system.
        primals: Constants, initial state and inputs.
        tangents: Their tangents (`float0` for what is not floating point), or
            `SymbolicZero` for what does not move and then costs nothing.
        states: The trajectory at the primals.
        options: Says how many steps there are between states, and where time lives.
    """
    leaves = jax.tree.leaves(tangents, is_leaf=is_zero_tangent)
    along = [None if is_zero_tangent(leaf) else leaf for leaf in leaves]
    shards = options.shards
    how = Along(options.every, options.kernel)
    if shards is None:
        return _tangent(function, recursion, primals, along, states, how)
    axis, common = shards.axis, len(primals[0]) + 1

    def shard(timed: tuple, whole: tuple) -> tuple[Array, tuple]:
        inputs, of_inputs, states = timed
        consts, initial, of_whole = whole
        step, along = function, [*of_whole, *of_inputs]
        if (exists := axis.exists(options.length)) is not None:
            inputs, along = (exists, inputs), [*of_whole, None, *of_inputs]
            step = _defined_past_the_end(function, jax.lax.stop_gradient(initial))
        primals = consts, initial, inputs
        sharded = how._replace(axis=axis)
        return _tangent(step, recursion, primals, along, states, sharded), ()

    timed = primals[2], along[common:], states
    whole = (*primals[:2], along[:common])
    return on_mesh(shards, shard, timed, whole, states.shape[0])[0]


def follow_path(
    function: StepWithConsts,
    adjoint: Adjoint,
    primals: Primals,
    tangents: PyTree,
    states: Array,
) -> Array:
    """As `trajectory_tangent`, of states that were followed step by step elsewhere."""
    leaves = jax.tree.leaves(tangents, is_leaf=is_zero_tangent)
    along = [None if is_zero_tangent(leaf) else leaf for leaf in leaves]
    recursion = choose_recursion(adjoint, has_jacobians=False)
    return _tangent(function, recursion, primals, along, states, Along())


def path_chunk(block_size: int) -> int:
    """How many blocks of C steps are differentiated side by side on a CPU."""
    return min(_CHUNK, max(_BLOCK_CHUNK // block_size, _LEAST_CHUNK))


def _tangent(
    function: StepWithConsts,
    recursion: Recursion,
    primals: Primals,
    tangents: Tangents,
    states: Array,
    how: Along,
) -> Array:
    """Tangent of the states that this device holds."""
    block_size, kernel, axis = how
    if block_size > 1:
        (consts, initial, inputs), common = primals, len(primals[0]) + 1
        fold = partial(in_blocks, count=states.shape[0], block_size=block_size)
        primals = consts, initial, fold(inputs)
        tangents = [*tangents[:common], *fold(tangents[common:])]
        function = _ByBlocks(function, block_size)
    chunk = path_chunk(block_size)
    leaves, tree = jax.tree.flatten(primals)

    def along_path(consts: list, initial: Array, inputs: PyTree) -> Path:
        before = axis.shift(initial, states)
        return Path(function, consts, before, inputs, axis, chunk, kernel)

    def one_step(moved: list[Array]) -> Array:
        new = iter(moved)
        pairs = zip(leaves, tangents, strict=True)
        merged = [x if t is None else next(new) for x, t in pairs]
        path = along_path(*jax.tree.unflatten(tree, merged))
        return path.over_time(path.before)

    moving = [x for x, t in zip(leaves, tangents, strict=True) if t is not None]
    along = [t for t in tangents if t is not None]
    source = jax.jvp(one_step, (moving,), (along,))[1]
    return solve_tangents(along_path(*primals), source, recursion)


@dataclass(frozen=True)
class _ByBlocks:
    """C steps of a function as one; equal when the functions are."""

    function: StepWithConsts
    block_size: int

    def __call__(self, consts: list, state: Array, inputs: PyTree) -> Array:
        return block_map(partial(self.function, consts), self.block_size)(state, inputs)


def _defined_past_the_end(function: StepWithConsts, initial: Array) -> StepWithConsts:
    """Return a step on `(exists, input)` that can be differentiated past the end.

    There f is evaluated at x_0 and the input u_1, with which `on_mesh` pads, a pair at
    which it is known to be defined: a derivative of zero times NaN would not be zero.
    """

    def step_or_stay(consts: list, state: Array, entry: tuple) -> Array:
        real, inputs = entry
        found = function(consts, jnp.where(real, state, initial), inputs)
        return jnp.where(real, found, state)

    return step_or_stay
