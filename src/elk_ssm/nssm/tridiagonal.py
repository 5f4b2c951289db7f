r"""Symmetric block tridiagonal systems over time, on one device or on many.

For blocks B_t and couplings C_t of steps t - 1 and t, elimination over time is

    S_t = B_t - C_t S_{t-1}^-1 C_t'      y_t = v_t - C_t S_{t-1}^-1 y_{t-1}
    x_t = S_t^-1 (y_t - C_{t+1}' x_{t+1})

Spread over devices, each eliminates its steps but the last. That leaves a system of the
states x_0 (the last of the device before) and x_n (its own last),

    [ K00  Kn0' ] [x_0]   [h0]
    [ Kn0  Knn  ] [x_n] = [hn]

of which all devices are gathered (3 D^2 and 2 D numbers each): their sum is a block
tridiagonal system of the P last states, which every device solves for itself.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from elk_ssm._types import Array
from elk_ssm.linalg.small import matmul, matvec, solve, transpose
from elk_ssm.parallel.time_axis import TimeAxis


def block_solve(blocks: Array, couplings: Array, rhs: Array) -> Array:
    """Solve a symmetric block tridiagonal system, `(T, D, D)` and `(T, D)`."""

    def forward(carry, entry):
        previous, y = carry
        B, C, v = entry
        gain = transpose(solve(transpose(previous), transpose(C)))
        S = B - matmul(gain, transpose(C))
        y = v - matvec(gain, y)
        return (S, y), (S, y)

    eye = jnp.eye(rhs.shape[1], dtype=rhs.dtype)
    start = (eye, jnp.zeros_like(rhs[0]))
    _, (pivots, reduced) = lax.scan(forward, start, (blocks, couplings, rhs))

    def backward(carry, entry):
        S, y, C_next = entry
        x = solve(S, (y - matvec(transpose(C_next), carry))[:, None])[:, 0]
        return x, x

    following = jnp.concatenate([couplings[1:], jnp.zeros_like(couplings[:1])])
    zero = jnp.zeros_like(rhs[0])
    return lax.scan(backward, zero, (pivots, reduced, following), reverse=True)[1]


class Ends(NamedTuple):
    """What is left of a run of steps: a system of the state before it and its last."""

    K00: Array
    Kn0: Array
    Knn: Array
    h0: Array
    hn: Array


def spread_block_solve(
    axis: TimeAxis, blocks: Array, couplings: Array, rhs: Array
) -> Array:
    """Solve a system of which this device holds `(n, D, D)` and `(n, D)`.

    The first coupling of a device is that to the device before; zero on the first.
    """
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
    lasts = _solve_lasts(Ends(*axis.gather(whole[:3]), *axis.gather(whole[3:])))
    before = jnp.where(axis.place == 0, 0, lasts[jnp.maximum(axis.place - 1, 0)])
    last = lasts[axis.place]

    def substitute(after: Array, entry: tuple) -> tuple[Array, Array]:
        run, C_next = entry
        known = matvec(run.Kn0, before) + matvec(transpose(C_next), after)
        x = solve(run.Knn, (run.hn - known)[:, None])[:, 0]
        return x, x

    earlier = lax.scan(substitute, last, (runs, couplings[1:]), reverse=True)[1]
    return jnp.concatenate([earlier, last[None]])


def _solve_lasts(every: Ends) -> Array:
    """Solve for the last states of all devices, `(P, D)`."""

    def from_next(x: Array) -> Array:
        return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])

    blocks = every.Knn + from_next(every.K00)
    return block_solve(blocks, every.Kn0, every.hn + from_next(every.h0))
