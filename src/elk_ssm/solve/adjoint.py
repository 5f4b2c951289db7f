r"""Derivatives of a trajectory: differentiate the equation, not the loop.

The trajectory satisfies x_t = f(c, x_{t-1}, u_t). Its tangent solves the linear system

    d_t - J_t d_{t-1} = g_t,      J_t = df/dx at (x_{t-1}, u_t),      d_0 = 0,
    g_t = df/dc . c' + df/du . u_t'  (+ J_1 x_0' for t = 1),

with the true Jacobian, whichever method found x. `custom_linear_solve` makes the solve
differentiable to any order, and transposes it into the adjoint recursion

    w_t = J_{t+1}^T w_{t+1} + v_t,      t = T, ..., 1,      w_{T+1} = 0.

Nothing of size T x D x D is formed unless the parallel dense adjoint is asked for: the
recursions push tangents or cotangents through f, step by step or in blocks. Spread over
devices, each recursion is one affine pass over what the devices hold: one all-gather of
a D x D map and a vector from each, and a halo of one row.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._jax import is_still
from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.affine import affine_entering, affine_scan
from elk_ssm.linalg.structure import Dense
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.solve.nodes import block_map, in_blocks, near_divisor

Adjoint: TypeAlias = Literal["auto", "sequential", "parallel", "blocks"]
Recursion: TypeAlias = str
# How many steps, or blocks of so many steps, are differentiated side by side.
_CHUNK, _BLOCK_CHUNK, _LEAST_CHUNK = 512, 32_768, 8


def trajectory_tangent(
    function: Callable[[list, Array, PyTree], Array],
    adjoint: Recursion,
    primals: tuple[list, Array, PyTree],
    tangents: tuple[list, Array, PyTree],
    states: Array,
    block_size: int = 1,
    axis: TimeAxis = LOCAL,
) -> Array:
    """Tangent of the states `(T, D)` along tangents of (consts, x_0, inputs).

    Of states at the ends of blocks of C steps it is the same with the block map, so
    nothing but these states is kept: a block is stepped through again where needed.

    Args:
        function: The flat step `function(consts, state, input)`.
        adjoint: Which recursion solves the linear system.
        primals: Constants, initial state and inputs.
        tangents: Their tangents (`float0` for what is not floating point), or
            `SymbolicZero` for what does not move and then costs nothing.
        states: The trajectory at the primals.
        block_size: C, the number of steps between the given states.
        axis: Where time lives; T is then what this device holds.
    """
    if block_size > 1:
        consts, initial, inputs = primals
        primals = consts, initial, in_blocks(inputs, states.shape[0], block_size)
        tangents = (*tangents[:2], _fold(tangents[2], states.shape[0], block_size))
        function = _by_blocks(function, block_size)
    chunk = min(_CHUNK, max(_BLOCK_CHUNK // block_size, _LEAST_CHUNK))
    leaves, tree = jax.tree.flatten(primals)
    along = jax.tree.leaves(tangents, is_leaf=is_still)
    moving = [not is_still(t) for t in along]

    def one_step(moved: list[Array]) -> Array:
        new = iter(moved)
        merged = [next(new) if m else x for m, x in zip(moving, leaves, strict=True)]
        consts, initial, inputs = jax.tree.unflatten(tree, merged)
        before = axis.before(initial, states)
        return _over_time(lambda x, u: function(consts, x, u), before, inputs, chunk)

    def chosen(x: list) -> list:
        return [entry for m, entry in zip(moving, x, strict=True) if m]

    source = jax.jvp(one_step, (chosen(leaves),), (chosen(along),))[1]
    consts, initial, inputs = primals
    before = axis.before(initial, states)

    def step_at(x: Array, u: PyTree) -> Array:
        return function(consts, x, u)

    return _solve(step_at, before, inputs, source, adjoint, chunk, axis)


def _fold(tangents: PyTree, count: int, block_size: int) -> PyTree:
    """`in_blocks` for tangents, of which some may be symbolic zeros."""

    def fold(x: Any) -> Any:
        return x if is_still(x) else in_blocks(x, count, block_size)

    return jax.tree.map(fold, tangents, is_leaf=is_still)


def _by_blocks(function: Callable, block_size: int) -> Callable:
    def block(consts: list, state: Array, inputs: PyTree) -> Array:
        return block_map(partial(function, consts), block_size)(state, inputs)

    return block


def _over_time(step: Callable, before: Array, inputs: PyTree, chunk: int) -> Array:
    """Map f over time in chunks, recomputing it when differentiated in reverse."""
    step = jax.checkpoint(step)
    if before.shape[0] <= chunk:
        return jax.vmap(step)(before, inputs)
    chunk = near_divisor(before.shape[0], chunk)
    return jax.lax.map(lambda xu: step(*xu), (before, inputs), batch_size=chunk)


def _solve(
    step: Callable,
    before: Array,
    inputs: PyTree,
    source: Array,
    adjoint: Recursion,
    chunk: int,
    axis: TimeAxis,
) -> Array:
    """Solve the tangent system for `source`, differentiably."""

    def system(d: Array) -> Array:
        shifted = axis.before(jnp.zeros_like(d[0]), d)
        pushed = jax.jvp(
            lambda x: _over_time(step, x, inputs, chunk), (before,), (shifted,)
        )
        return d - pushed[1]

    def recursion(*, reverse: bool) -> Callable:
        def by(kind: Recursion) -> Callable:
            solve = _RECURSIONS[kind]
            return partial(solve, step, before, inputs, axis=axis, reverse=reverse)

        def run(_: Any, source: Array) -> Array:
            if adjoint.startswith("cpu-sequential-else-"):
                other = by(adjoint.removeprefix("cpu-sequential-else-"))
                return jax.lax.platform_dependent(
                    source, cpu=by("sequential"), default=other
                )
            return by(adjoint)(source)

        return run

    return jax.lax.custom_linear_solve(
        system, source, recursion(reverse=False), recursion(reverse=True)
    )


def _push(step: Callable, x: Array, u: PyTree, tangent: Array) -> Array:
    """J d."""
    return jax.jvp(lambda x: step(x, u), (x,), (tangent,))[1]


def _pull(step: Callable, x: Array, u: PyTree, cotangent: Array) -> Array:
    """J^T w."""
    return jax.vjp(lambda x: step(x, u), x)[1](cotangent)[0]


def _sequential(
    step: Callable,
    before: Array,
    inputs: PyTree,
    source: Array,
    *,
    axis: TimeAxis,
    reverse: bool,
) -> Array:
    """One tangent or cotangent through f, step by step; on one device."""
    assert not axis.is_spread

    def forward(d: Array, entry: tuple) -> tuple[Array, Array]:
        x, u, g = entry
        d = _push(step, x, u, d) + g
        return d, d

    def backward(pulled: Array, entry: tuple) -> tuple[Array, Array]:
        x, u, v = entry
        w = pulled + v
        return _pull(step, x, u, w), w

    body = backward if reverse else forward
    zero = jnp.zeros_like(source[0])
    return jax.lax.scan(body, zero, (before, inputs, source), reverse=reverse)[1]


def _dense(
    step: Callable,
    before: Array,
    inputs: PyTree,
    source: Array,
    *,
    axis: TimeAxis,
    reverse: bool,
) -> Array:
    """All Jacobians, `(T, D, D)`, and an affine scan over them."""
    jacobians = jax.vmap(jax.jacfwd(step))(before, inputs)
    how: Any = {"reverse": reverse, "backend": "auto", "axis": axis}
    return affine_scan(Dense(jacobians), source, **how)


def _blocks(
    step: Callable,
    before: Array,
    inputs: PyTree,
    source: Array,
    *,
    axis: TimeAxis,
    reverse: bool,
) -> Array:
    """Blocks side by side: memory T x D and (T / C) x D x D, depth 2 C + 2 log2(T / C).

    A first sweep finds what each block adds on its own and how it maps its boundary, by
    pushing (pulling) the D unit vectors through it; an affine scan joins the blocks;
    a second sweep starts from the right boundaries. The last block is filled up with
    steps that pass on what they are given.
    """
    length, size = source.shape
    block = max(int(length**0.5), 1)
    count = -(-length // block)

    def lay_out(x: Array) -> Array:
        filled = jnp.concatenate([x, jnp.repeat(x[-1:], count * block - length, 0)])
        return jnp.swapaxes(filled.reshape(count, block, *x.shape[1:]), 0, 1)

    quiet = jnp.zeros((count * block - length, size), source.dtype)
    sources = jnp.concatenate([source, quiet]).reshape(count, block, size)
    real = jnp.swapaxes(jnp.arange(count * block).reshape(count, block) < length, 0, 1)
    laid_out = jax.tree.map(lay_out, (before, inputs))
    entries = (*laid_out, real, jnp.swapaxes(sources, 0, 1))

    def through(entry: tuple, d: Array) -> tuple[Array, Array]:
        x, u, ok, g = entry
        if reverse:
            return jnp.where(ok, _pull(step, x, u, d + g), d), d + g
        d = jnp.where(ok, _push(step, x, u, d) + g, d)
        return d, d

    def columns(entry: tuple, m: Array) -> Array:
        quiet = (*entry[:3], jnp.zeros_like(entry[3]))
        return jax.vmap(lambda d: through(quiet, d)[0], -1, -1)(m)

    def sweep(carry: tuple, entry: tuple) -> tuple[tuple, None]:
        d, m = carry
        d = jax.vmap(through)(entry, d)[0]
        return (d, jax.vmap(columns)(entry, m)), None

    def collect(d: Array, entry: tuple) -> tuple[Array, Array]:
        return jax.vmap(through)(entry, d)

    nothing = jnp.zeros((count, size), source.dtype)
    unit = jnp.broadcast_to(jnp.eye(size, dtype=source.dtype), (count, size, size))
    (own, maps), _ = jax.lax.scan(sweep, (nothing, unit), entries, reverse=reverse)
    how: Any = {"reverse": reverse, "backend": "auto", "axis": axis}
    begins = affine_entering(Dense(maps), own, **how)
    found = jax.lax.scan(collect, begins, entries, reverse=reverse)[1]
    return jnp.swapaxes(found, 0, 1).reshape(count * block, size)[:length]


_RECURSIONS: dict[str, Callable] = {
    "sequential": _sequential,
    "parallel": _dense,
    "blocks": _blocks,
}


def choose_recursion(
    adjoint: Adjoint, *, has_jacobians: bool, spread: bool = False
) -> Recursion:
    """Resolve `"auto"`: sequential on a CPU, else dense for the dense methods.

    Args:
        adjoint: What the user asked for.
        has_jacobians: Whether the forward pass forms `(T, D, D)` Jacobians anyway.
        spread: Whether time is spread over devices, which then never take turns.
    """
    if adjoint != "auto":
        return adjoint
    parallel = "parallel" if has_jacobians else "blocks"
    return parallel if spread else "cpu-sequential-else-" + parallel
