r"""Quadratic models of a driven trajectory, solved by elimination backwards in time.

Around states z and noise w (see `driven`), with increments d_t = A_t d_{t-1} + G_t e_t
+ c_t, c_t a gap between f(z_{t-1}) + G_t w_t and z_t, and V_t, v_t the curvature and
the slope of -log p of all that follows in z_t, V_T-1 = -H of the last emission,

    v+ = v_t + V_t c_t
    M = I + G'V_t G + L_ww     N = G'V_t A + L_wz     m = w + G'v+
    e = k + K d_{t-1},         K = -M^-1 N            k = -M^-1 m
    V_{t-1} = -H_{t-1} + A'V_t A + L_zz + N'K         v_{t-1} = -g_{t-1} + A'v+ + N'k

L is the curvature of v_t . (f(z) + G(z) w), of the second derivatives of the dynamics
(Jacobson & Mayne 1970, Differential Dynamic Programming), left out by Gauss-Newton.
The Hessian in the noise is positive definite if and only if all M are, its determinant
is the product of theirs, and its inverse gives d ~ N(0, ...) by

    d_t = (A + G K) d_{t-1} + G e,         e ~ N(0, M^-1)

whose covariances are sums of PSD matrices. No covariance is inverted anywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._types import Array
from elk_ssm.linalg.small import matmul, matvec, solve, symmetrize, transpose
from elk_ssm.nssm.driven import Driven, log_volume, move, process_roots
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.tridiagonal import apply_inverse, unit_factor


class Linear(NamedTuple):
    """First derivatives along a path, and the curvature of its emissions.

    `A: (T, D, D)` with A_0 zero, `G: (T, D, r)`, `gaps: (T, D)`, and of -log p(y | z)
    the `slopes: (T, D)` and `bends: (T, D, D)`.
    """

    A: Array
    G: Array
    gaps: Array
    slopes: Array
    bends: Array


class Feedback(NamedTuple):
    """How the noise of a step answers the increment before it, e = k + K d.

    Attributes:
        gains: K, `(T, r, D)`.
        steps: k, `(T, r)`.
        slopes: m, `(T, r)`.
        parts: M taken apart.
        pivots: Of M, `(T, r)`, before any was replaced.
        sizes: The largest entry of the diagonal of M, `(T,)`.
        after: v+, `(T, D)`, the slope of what follows.
        bends: V, `(T, D, D)`.
    """

    gains: Array
    steps: Array
    slopes: Array
    parts: Any
    pivots: Array
    sizes: Array
    after: Array
    bends: Array


def transition_slopes(posed: Posed, path: Driven) -> tuple[Array, Array]:
    """Return d/dz of the transitions along a path, `(T, D, D)`, and their values."""
    root, axis = process_roots(posed)

    def one(before, w, entry, root):
        def step(z):
            moved = move(posed, z, w, entry, root)
            return moved, moved

        return jax.jacfwd(step, has_aux=True)(before)

    entries = path.states[:-1], path.noise[1:], posed.inputs_into
    A, moved = jax.vmap(one, (0, 0, 0, axis))(*entries, root)
    return jnp.concatenate([jnp.zeros_like(A[:1]), A]) if len(A) else _none(path), moved


def _none(path: Driven) -> Array:
    steps, size = path.states.shape
    return jnp.zeros((steps, size, size), path.states.dtype)


def tensors(posed: Posed, path: Driven) -> tuple[Callable, tuple, Any]:
    """Return what the elimination needs of second derivatives, and its entries in time.

    The function takes v+, an entry and a root; it returns L `(D + r, D + r)` and the
    slope in z of the volume of the noise, which only a state-dependent Q has.
    """
    root, axis = process_roots(posed)
    size, width = path.states.shape[1], path.noise.shape[1]

    def of_states(after: Array, entry: tuple, _: Any) -> tuple[Array, Array]:
        before, _, user_input = entry

        def along(z):
            return jnp.sum(after * posed.call("dynamics", z, user_input))

        bend = jax.hessian(along)(before)
        return jnp.pad(bend, (0, width)), jnp.zeros_like(before)

    def of_both(after: Array, entry: tuple, _: Any) -> tuple[Array, Array]:
        before, w, user_input = entry

        def volume(z):
            return log_volume(posed.call("dynamics_root", z, user_input))

        def along(pair):
            z, w = pair[:size], pair[size:]
            moved = move(posed, z, w, user_input, None)
            return jnp.sum(after * moved) + volume(z)

        bend = jax.hessian(along)(jnp.concatenate([before, w]))
        return bend, jax.grad(volume)(before)

    entries = path.states[:-1], path.noise[1:], posed.inputs_into
    own = None if axis is None else root
    return (of_both if root is None else of_states), entries, own


def take_apart(matrix: Array) -> tuple[tuple, Array]:
    """Return M as what `apply_repaired` takes, no pivot below one, and its pivots."""
    pivots = unit_factor(matrix)[1]
    ones = jnp.ones_like(pivots)
    return unit_factor(matrix, ones)[:2], pivots


def as_it_is(matrix: Array) -> tuple[Array, Array]:
    """Return M itself, for solutions that are differentiated, and its pivots."""
    return matrix, unit_factor(matrix)[1]


REPAIRED = take_apart, apply_inverse
EXACT = as_it_is, solve


def eliminate(
    noise: Array,
    linear: Linear,
    second: tuple[Callable, tuple, Any] | None,
    shift: Array | float = 0.0,
    solver: tuple[Callable, Callable] = REPAIRED,
) -> Feedback:
    """Run the elimination from the last step to the first.

    Args:
        noise: w, `(T, r)`.
        linear: First derivatives.
        second: What `tensors` returns; `None` leaves second derivatives out.
        shift: Added to the diagonal of every M, a narrower prior of the steps.
        solver: How M is taken apart, and how its inverse multiplies a matrix.
    """
    size, width = linear.A.shape[-1], noise.shape[1]
    step = partial(_eliminate_step, shift, solver)
    nothing = (
        jnp.zeros((size + width,) * 2, noise.dtype),
        jnp.zeros_like(linear.A[0, 0]),
    )
    tensor, entries, own = second or (lambda *_: nothing, (), None)

    def backward(carry: tuple, entry: tuple) -> tuple[tuple, Feedback]:
        (V, v), (w, A, G, gap, slope, bend, extra, own) = carry, entry
        v = v + matvec(V, gap)
        (Z, z), found = step((V, v), (w, A, G), tensor(v, extra, own))
        return (bend + Z, slope + z), found

    A, G, gaps, slopes, bends = linear
    last = bends[-1], slopes[-1]
    before = (noise[1:], A[1:], G[1:], gaps[1:], slopes[:-1], bends[:-1], entries, own)
    (V, v), rest = lax.scan(backward, last, before, reverse=True)
    v = v + matvec(V, gaps[0])
    first = step((V, v), (noise[0], A[0], G[0]), nothing)[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def _eliminate_step(shift, solver, following, here, second):
    factor, apply = solver
    (V, v), (w, A, G), (L, volume) = following, here, second
    size, width = A.shape[0], w.shape[0]
    VG = matmul(V, G)
    eye = jnp.eye(width, dtype=w.dtype)
    curved = symmetrize(matmul(transpose(G), VG))
    M = (1 + shift) * eye + curved + L[size:, size:]
    N = matmul(transpose(VG), A) + L[size:, :size]
    m = w + matvec(transpose(G), v)
    parts, pivots = factor(M)
    solved = -apply(parts, jnp.concatenate([N, m[:, None]], axis=1))
    K, k = solved[:, :size], solved[:, size]
    Z = matmul(transpose(A), matmul(V, A)) + L[:size, :size] + matmul(transpose(N), K)
    z = matvec(transpose(A), v) + volume + matvec(transpose(N), k)
    sizes = jnp.max(jnp.abs(jnp.diagonal(M)))
    return (symmetrize(Z), z), Feedback(K, k, m, parts, pivots, sizes, v, V)


def spread(linear: Linear, feedback: Feedback, solver=EXACT) -> Array:
    """Return the covariances of the increments, `(T, D, D)`, without their means."""
    apply = solver[1]

    def forward(P: Array, entry: tuple) -> tuple[Array, Array]:
        A, G, K, parts = entry
        closed = A + matmul(G, K)
        own = matmul(G, apply(parts, transpose(G)))
        P = matmul(closed, matmul(P, transpose(closed))) + own
        P = symmetrize(P)
        return P, P

    entries = linear.A, linear.G, feedback.gains, feedback.parts
    return lax.scan(forward, jnp.zeros_like(linear.A[0]), entries)[1]


def perturbed(
    linear: Linear, feedback: Feedback, noise: Array, before: Array, states: Array
) -> tuple[Array, Array]:
    """Return how states and noise give way, `(T, D)` and `(T, r)`, linearly.

    `feedback` is that of a mode, by `EXACT`. To -log p are added terms with slopes
    `noise` in w_t, `before` in z_{t-1} and `states` in z_t, and `linear.gaps` to the
    dynamics.
    """
    A, G, gaps, *_ = linear

    def backward(s: Array, entry: tuple) -> tuple[Array, Array]:
        A, G, gap, K, M, V, p_w, p_z, p_before = entry
        s = s + matvec(V, gap)
        m = p_w + matvec(transpose(G), s)
        k = -solve(M, m[:, None])[:, 0]
        return p_before + p_z + matvec(transpose(A), s) + matvec(transpose(K), m), k

    K, M, V = feedback.gains, feedback.parts, feedback.bends
    # What z_{t-1} is pushed by itself, beside what t says of it.
    own = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    entries = (A, G, gaps, K, M, V, noise, before, own)
    steps = lax.scan(backward, states[-1], entries, reverse=True)[1]

    def forward(d: Array, entry: tuple) -> tuple[Array, tuple]:
        A, G, gap, K, k = entry
        e = k + matvec(K, d)
        d = matvec(A, d) + matvec(G, e) + gap
        return d, (d, e)

    return lax.scan(forward, jnp.zeros_like(states[0]), (A, G, gaps, K, steps))[1]
