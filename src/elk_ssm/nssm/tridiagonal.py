r"""Symmetric block tridiagonal systems over time, on one device or on many.

For blocks B_t and couplings C_t of steps t - 1 and t, elimination over time is

    S_t = B_t - C_t S_{t-1}^-1 C_t'      y_t = v_t - C_t S_{t-1}^-1 y_{t-1}
    x_t = S_t^-1 (y_t - C_{t+1}' x_{t+1})

Sharded over devices, each eliminates its steps but the last. That leaves a system of
the states x_0 (the last of the device before) and x_n (its own last),

    [ K00  Kn0' ] [x_0]   [h0]
    [ Kn0  Knn  ] [x_n] = [hn]

of which all devices are gathered (3 D^2 and 2 D numbers each): their sum is a block
tridiagonal system of the P last states, which every device solves for itself.

`definite_solve` also says whether the matrix is positive definite: it is if all its
pivots are (Sylvester's law of inertia), whatever the order of elimination. On one
device pivots that are not positive may be replaced, max(|d|, floor), which solves for
the matrix plus a diagonal of just those entries (Gill & Murray; Nocedal & Wright 2006,
section 3.4).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax, vmap

from elk_ssm._types import Array
from elk_ssm.linalg.small import matmul, matvec, over_pivots, solve, transpose
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis


def block_solve(blocks: Array, couplings: Array, rhs: Array) -> Array:
    """Solve a symmetric block tridiagonal system, `(T, D, D)` and `(T, D)`."""
    eye = jnp.eye(rhs.shape[1], dtype=rhs.dtype)
    pivots = (lambda S, _: (S, None)), solve, eye
    return _solve(blocks, couplings, rhs, None, pivots)[0]


def _solve(
    blocks: Array, couplings: Array, rhs: Array, floors: Array | None, pivots: tuple
) -> tuple[Array, Any]:
    """Return the solution, and what else the first of `pivots` says of every S_t.

    That takes S_t apart, the second multiplies a matrix by the inverse of such parts,
    and the third are those of an identity.
    """
    take_apart, apply, identity = pivots

    def forward(carry, entry):
        B, C, v, floor = entry
        gain = apply(carry[0], transpose(C))
        S, said = take_apart(B - matmul(C, gain), floor)
        after = S, v - matvec(transpose(gain), carry[1])
        return after, (*after, said)

    zero = jnp.zeros_like(rhs[0])
    entries = (blocks, couplings, rhs, floors)
    parts, reduced, said = lax.scan(forward, (identity, zero), entries)[1]

    def backward(carry, entry):
        S, y, C_next = entry
        x = apply(S, (y - matvec(transpose(C_next), carry))[:, None])[:, 0]
        return x, x

    following = jnp.concatenate([couplings[1:], jnp.zeros_like(couplings[:1])])
    solved = lax.scan(backward, zero, (parts, reduced, following), reverse=True)[1]
    return solved, said


def definite_solve(
    axis: TimeAxis,
    blocks: Array,
    couplings: Array,
    rhs: Array,
    floors: Array | None = None,
) -> tuple[Array, Array]:
    """Solve a system that is hoped to be positive definite, and say whether it is.

    Args:
        axis: Where time lives.
        blocks: B, `(T, D, D)`.
        couplings: C, `(T, D, D)`.
        rhs: v, `(T, D)`.
        floors: Least pivots where one is not positive, `(T, D)`, on one device.

    Returns:
        The solution `(T, D)`, of no use if neither the matrix is definite nor pivots
        were replaced, and whether it is, `()` boolean.
    """
    if axis.is_sharded:
        return _sharded_definite_solve(axis, blocks, couplings, rhs)

    ones = jnp.ones_like(rhs[0])

    def take_apart(S: Array, floor: Array | None) -> tuple[tuple, Array]:
        *factor, definite = unit_factor(S, floor)
        return tuple(factor), definite

    pivots = take_apart, apply_inverse, (jnp.diag(ones), ones)
    solution, definite = _solve(blocks, couplings, rhs, floors, pivots)
    return solution, jnp.all(definite)


def unit_factor(
    matrix: Array, floors: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return a unit lower triangular W and d with W M W' = diag(d), M symmetric.

    The third is whether M is positive definite. If not, d may be anything, or with
    floors `(D,)` positive, and M then has another diagonal.
    """
    size = matrix.shape[-1]
    rows = jnp.arange(size)

    def clear(k, carry):
        table, definite = carry
        pivot = table[k, k]
        if floors is not None:
            raised = jnp.maximum(jnp.abs(pivot), floors[k])
            raised = jnp.where(pivot > 0, pivot, raised)
            table = table.at[k, k].set(raised)
        factors = jnp.where(rows > k, table[:, k] / table[k, k], 0)
        return table - factors[:, None] * table[k][None], definite & (pivot > 0)

    table = jnp.concatenate([matrix, jnp.eye(size, dtype=matrix.dtype)], axis=-1)
    table, definite = over_pivots(size, clear, (table, jnp.asarray(True)))
    return table[:, size:], jnp.diagonal(table), definite


def apply_inverse(factor: tuple[Array, Array], rhs: Array) -> Array:
    """Multiply `(D, K)` by the inverse of a matrix that `unit_factor` took apart."""
    inverse, pivots = factor
    return matmul(transpose(inverse), matmul(inverse, rhs) / pivots[:, None])


class Ends(NamedTuple):
    """What is left of a run of steps: a system of the state before it and its last."""

    K00: Array
    Kn0: Array
    Knn: Array
    h0: Array
    hn: Array


def sharded_block_solve(
    axis: TimeAxis, blocks: Array, couplings: Array, rhs: Array
) -> Array:
    """Solve a system of which this device holds `(n, D, D)` and `(n, D)`.

    The first coupling of a device is that to the device before; zero on the first.
    """
    return _sharded_elimination(axis, blocks, couplings, rhs)[0]


def _sharded_definite_solve(
    axis: TimeAxis, blocks: Array, couplings: Array, rhs: Array
) -> tuple[Array, Array]:
    solution, pivots, last_system = _sharded_elimination(axis, blocks, couplings, rhs)
    definite = axis.all(vmap(unit_factor)(pivots)[2])
    return solution, definite & definite_solve(LOCAL, *last_system)[1]


def _sharded_elimination(
    axis: TimeAxis, blocks: Array, couplings: Array, rhs: Array
) -> tuple[Array, Array, tuple[Array, Array, Array]]:
    """Return the solution, what was divided by, and the system of the last states."""
    zero, none = jnp.zeros_like(blocks[0]), jnp.zeros_like(rhs[0])
    first = Ends(zero, couplings[0], blocks[0], none, rhs[0])

    def eliminate(run: Ends, entry: tuple) -> tuple[Ends, Ends]:
        B, C, v = entry
        couplings = jnp.concatenate([run.Kn0, transpose(C)], axis=1)
        back, on = jnp.split(solve(run.Knn, couplings), 2, axis=1)
        # Apart from the matrices, so that the solution stays linear in what is solved
        # for, which is how it is transposed.
        own = solve(run.Knn, run.hn[:, None])[:, 0]
        after = Ends(
            run.K00 - matmul(transpose(run.Kn0), back),
            -matmul(C, back),
            B - matmul(C, on),
            run.h0 - matvec(transpose(run.Kn0), own),
            v - matvec(C, own),
        )
        return after, run

    rest = (blocks[1:], couplings[1:], rhs[1:])
    whole, runs = lax.scan(eliminate, first, rest)
    # What is solved for travels apart from the matrices, in which it is not linear.
    every = Ends(*axis.gather(whole[:3]), *axis.gather(whole[3:]))
    last_system = _system_of_lasts(every)
    lasts = block_solve(*last_system)
    before = jnp.where(
        axis.axis_index == 0, 0, lasts[jnp.maximum(axis.axis_index - 1, 0)]
    )
    last = lasts[axis.axis_index]

    def substitute(after: Array, entry: tuple) -> tuple[Array, Array]:
        run, C_next = entry
        known = matvec(run.Kn0, before) + matvec(transpose(C_next), after)
        x = solve(run.Knn, (run.hn - known)[:, None])[:, 0]
        return x, x

    earlier = lax.scan(substitute, last, (runs, couplings[1:]), reverse=True)[1]
    return jnp.concatenate([earlier, last[None]]), runs.Knn, last_system


def _system_of_lasts(every: Ends) -> tuple[Array, Array, Array]:
    """Return blocks, couplings and right side of the last states of all devices."""

    def from_next(x: Array) -> Array:
        return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])

    blocks = every.Knn + from_next(every.K00)
    return blocks, every.Kn0, every.hn + from_next(every.h0)
