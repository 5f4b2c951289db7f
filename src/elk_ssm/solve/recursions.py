r"""The tangent system of a trajectory, and the recursions that solve it.

    d_t - J_t d_{t-1} = g_t,       t = 1, ..., T,      d_0 = 0            forwards
    w_t = J_{t+1}^T w_{t+1} + v_t, t = T, ..., 1,      w_{T+1} = 0        transposed

Nothing of size T x D x D is formed unless the dense recursion is asked for: the others
push tangents or pull cotangents through f, step by step or in blocks (`sweeps`). Shards
over devices, each recursion is one affine pass over what the devices hold: one
all-gather of a D x D map and a vector from each, and a halo of one row.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._jax import cpu_or_later
from elk_ssm._types import Array
from elk_ssm.kalman.affine import affine_scan
from elk_ssm.linalg.structure import Dense
from elk_ssm.solve.options import Adjoint
from elk_ssm.solve.path import Path
from elk_ssm.solve.sweeps import sweep_blocks, sweep_short_blocks

Recursion: TypeAlias = str
_ELSEWHERE = "cpu-sequential-else-"


def solve_tangents(path: Path, source: Array, recursion: Recursion) -> Array:
    """Solve the tangent system for `source`, differentiably."""

    def system(d: Array) -> Array:
        shifted = path.axis.shift(jnp.zeros_like(d[0]), d)
        return d - jax.jvp(path.over_time, (path.before,), (shifted,))[1]

    def solve(*, reverse: bool) -> Callable:
        def run(_: Any, source: Array) -> Array:
            if not recursion.startswith(_ELSEWHERE):
                return _RECURSIONS[recursion](path, source, reverse=reverse)
            arrays, static = path.apart()
            how = recursion.removeprefix(_ELSEWHERE), reverse, static
            return cpu_or_later(_on_cpu, _elsewhere, how, arrays, source)

        return run

    return jax.lax.custom_linear_solve(
        system, source, solve(reverse=False), solve(reverse=True)
    )


def _on_cpu(how: tuple, arrays: tuple, source: Array) -> Array:
    _, reverse, static = how
    return _sequential(Path.joined(arrays, static), source, reverse=reverse)


def _elsewhere(how: tuple, arrays: tuple, source: Array) -> Array:
    kind, reverse, static = how
    path = Path.joined(arrays, static)
    return _RECURSIONS[kind](path, source, reverse=reverse)


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


_RECURSIONS: dict[str, Callable] = {
    "sequential": _sequential,
    "parallel": _dense,
    "blocks": sweep_blocks,
    "short_blocks": sweep_short_blocks,
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
    if has_jacobians:
        parallel = "parallel"
    else:
        parallel = "blocks" if sharded else "short_blocks"
    return parallel if sharded else _ELSEWHERE + parallel
