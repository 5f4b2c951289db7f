r"""The tangent system of a trajectory, and the recursions that solve it.

    d_t - J_t d_{t-1} = g_t,       t = 1, ..., T,      d_0 = 0            forwards
    w_t = J_{t+1}^T w_{t+1} + v_t, t = T, ..., 1,      w_{T+1} = 0        transposed

Nothing of size T x D x D is formed unless the dense recursion is asked for: the others
push tangents or pull cotangents through f, step by step or in blocks. Shards over
devices, each recursion is one affine pass over what the devices hold: one all-gather of
a D x D map and a vector from each, and a halo of one row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.kalman.affine import affine_exclusive, affine_scan
from elk_ssm.linalg.structure import Dense
from elk_ssm.parallel.time_axis import TimeAxis
from elk_ssm.solve.nodes import near_divisor
from elk_ssm.solve.options import Adjoint

Recursion: TypeAlias = str


class Path(NamedTuple):
    """A step along a known trajectory: what it is linearised at.

    Attributes:
        step: `step(state, input) -> state`.
        before: State before every step of this device, `(T, D)`.
        inputs: Inputs of these steps.
        axis: Where time lives.
        chunk: How many steps are differentiated side by side.
    """

    step: FlatStep
    before: Array
    inputs: PyTree
    axis: TimeAxis
    chunk: int

    def over_time(self, before: Array) -> Array:
        """Evaluate f in chunks, recomputing it when differentiated in reverse."""
        step, chunk = jax.checkpoint(self.step), self.chunk
        if before.shape[0] <= chunk:
            return jax.vmap(step)(before, self.inputs)
        chunk, entries = near_divisor(before.shape[0], chunk), (before, self.inputs)
        return jax.lax.map(lambda xu: step(*xu), entries, batch_size=chunk)

    def push(self, x: Array, u: PyTree, tangent: Array) -> Array:
        """J d."""
        return jax.jvp(lambda x: self.step(x, u), (x,), (tangent,))[1]

    def pull(self, x: Array, u: PyTree, cotangent: Array) -> Array:
        """J^T w."""
        return jax.vjp(lambda x: self.step(x, u), x)[1](cotangent)[0]


def solve_tangents(path: Path, source: Array, recursion: Recursion) -> Array:
    """Solve the tangent system for `source`, differentiably."""

    def system(d: Array) -> Array:
        shifted = path.axis.shift(jnp.zeros_like(d[0]), d)
        return d - jax.jvp(path.over_time, (path.before,), (shifted,))[1]

    def solve(*, reverse: bool) -> Callable:
        def by(kind: Recursion) -> Callable:
            return lambda source: _RECURSIONS[kind](path, source, reverse=reverse)

        def run(_: Any, source: Array) -> Array:
            if recursion.startswith("cpu-sequential-else-"):
                other = by(recursion.removeprefix("cpu-sequential-else-"))
                return jax.lax.platform_dependent(
                    source, cpu=by("sequential"), default=other
                )
            return by(recursion)(source)

        return run

    return jax.lax.custom_linear_solve(
        system, source, solve(reverse=False), solve(reverse=True)
    )


def _sequential(path: Path, source: Array, *, reverse: bool) -> Array:
    """One tangent or cotangent through f, step by step; on one device."""
    assert not path.axis.is_sharded

    def forward(d: Array, entry: tuple) -> tuple[Array, Array]:
        x, u, g = entry
        d = path.push(x, u, d) + g
        return d, d

    def backward(pulled: Array, entry: tuple) -> tuple[Array, Array]:
        x, u, v = entry
        w = pulled + v
        return path.pull(x, u, w), w

    body, zero = backward if reverse else forward, jnp.zeros_like(source[0])
    entries = path.before, path.inputs, source
    return jax.lax.scan(body, zero, entries, reverse=reverse)[1]


def _dense(path: Path, source: Array, *, reverse: bool) -> Array:
    """All Jacobians, `(T, D, D)`, and an affine scan over them."""
    jacobians = jax.vmap(jax.jacfwd(path.step))(path.before, path.inputs)
    how: Any = {"reverse": reverse, "backend": "auto", "axis": path.axis}
    return affine_scan(Dense(jacobians), source, **how)


def _blocks(path: Path, source: Array, *, reverse: bool) -> Array:
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
    laid_out = jax.tree.map(lay_out, (path.before, path.inputs))
    entries = (*laid_out, real, jnp.swapaxes(sources, 0, 1))

    def through(entry: tuple, d: Array) -> tuple[Array, Array]:
        x, u, ok, g = entry
        if reverse:
            return jnp.where(ok, path.pull(x, u, d + g), d), d + g
        d = jnp.where(ok, path.push(x, u, d) + g, d)
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
    how: Any = {"reverse": reverse, "backend": "auto", "axis": path.axis}
    begins = affine_exclusive(Dense(maps), own, **how)
    found = jax.lax.scan(collect, begins, entries, reverse=reverse)[1]
    return jnp.swapaxes(found, 0, 1).reshape(count * block, size)[:length]


_RECURSIONS: dict[str, Callable] = {
    "sequential": _sequential,
    "parallel": _dense,
    "blocks": _blocks,
}


def choose_recursion(
    adjoint: Adjoint, *, has_jacobians: bool, sharded: bool = False
) -> Recursion:
    """Resolve `"auto"`: sequential on a CPU, else dense for the dense methods.

    Args:
        adjoint: What the user asked for.
        has_jacobians: Whether the forward pass forms `(T, D, D)` Jacobians anyway.
        sharded: Whether time is sharded over devices, which then never take turns.
    """
    if adjoint != "auto":
        return adjoint
    parallel = "parallel" if has_jacobians else "blocks"
    return parallel if sharded else "cpu-sequential-else-" + parallel
