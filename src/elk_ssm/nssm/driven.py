r"""A trajectory and the noise that drives it, where some directions have no noise.

    z_0 = m + G_0 w_0        z_t = f(z_{t-1}, u_t) + G_t w_t        w_t ~ N(0, I), (r,)

with G_0 G_0' = P and G_t G_t' = Q_t. Every w leads to a trajectory that the model can
take, and the mode is a maximum over w without constraints. The density is that of z on
the set of such trajectories, with respect to its volume for the noise at each step,

    log p(z, y) = sum_t [ -w_t'w_t / 2 - log pdet(2 pi G_t G_t') / 2 ] + log p(y | z)

pdet the product of the eigenvalues that are not zero. For regular covariances it is the
density on R^(T D). All arrays have T entries; unused columns of G are zero.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.roundings import LOG_TWO_PI, reciprocal
from elk_ssm.kalman.whitening import whiten
from elk_ssm.linalg.small import matmul, matvec, transpose
from elk_ssm.nssm.densities import emission_term, log_joint
from elk_ssm.nssm.posed import Posed


class Driven(NamedTuple):
    """States `(T, D)` and the noise `(T, r)` that leads from each to the next."""

    states: Array
    noise: Array


def noise_width(posed: Posed) -> int:
    """Return r, the largest number of noises of a step, at least one."""
    assert posed.roots is not None
    widths = [posed.roots.initial.shape[-1], 1]
    if posed.roots.process is not None:
        widths.append(posed.roots.process.shape[-1])
    else:
        widths.append(posed.shape[1])
    return max(widths)


def padded(root: Array, width: int) -> Array:
    """Return `(..., D, r)` with columns of zeros up to a width."""
    missing = width - root.shape[-1]
    return jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, missing)])


def initial_root(posed: Posed) -> Array:
    """Return G_0, `(D, r)`."""
    assert posed.roots is not None
    return padded(posed.roots.initial, noise_width(posed))


def process_roots(posed: Posed) -> tuple[Array | None, int | None]:
    """Return G of the transitions and its time axis, if no state is in it."""
    assert posed.roots is not None
    root = posed.roots.process
    if root is None:
        return None, None
    root = padded(root, noise_width(posed))
    return (root, None) if root.ndim == 2 else (root[1:], 0)


def root_at(posed: Posed, before: Array, entry: PyTree, root: Array | None) -> Array:
    """Return G of one transition."""
    if root is not None:
        return root
    found = posed.call("dynamics_root", before, entry)
    return padded(found, noise_width(posed))


def move(posed: Posed, before: Array, noise: Array, entry: PyTree, root) -> Array:
    """Return f(before, u) + G noise."""
    G = root_at(posed, before, entry, root)
    return posed.call("dynamics", before, entry) + matvec(G, noise)


def each_root(posed: Posed, states: Array) -> Array:
    """Return G along a trajectory, `(T, D, r)`."""
    root, axis = process_roots(posed)
    first = initial_root(posed)[None]
    one = partial(root_at, posed)
    found = jax.vmap(one, (0, 0, axis))(states[:-1], posed.inputs_into, root)
    if root is not None and axis is None:
        found = jnp.broadcast_to(root, (states.shape[0] - 1, *root.shape))
    return jnp.concatenate([first, found])


def roll(posed: Posed, noise: Array, respond=lambda t, state, w: w) -> Driven:
    """Follow the noise `(T, r)`, or what `respond` makes of it at each state."""
    root, axis = process_roots(posed)
    w = respond(0, posed.initial_mean, noise[0])
    first = posed.initial_mean + matvec(initial_root(posed), w)

    def step(state: Array, entry: tuple) -> tuple[Array, Driven]:
        t, w, user_input, own = entry
        w = respond(t, state, w)
        state = move(posed, state, w, user_input, root if own is None else own)
        return state, Driven(state, w)

    steps = jnp.arange(1, noise.shape[0])
    entries = steps, noise[1:], posed.inputs_into, None if axis is None else root
    rest = jax.lax.scan(step, first, entries)[1]
    return Driven(*(jnp.concatenate([a[None], b]) for a, b in zip((first, w), rest)))


def log_volume(root: Array) -> Array:
    """Return log pdet(2 pi G G') / 2 of one step."""
    variances = whiten(matmul(transpose(root), root)).variances
    there = variances > 0
    logs = jnp.log(jnp.where(there, variances, 1)) + LOG_TWO_PI
    return 0.5 * jnp.sum(jnp.where(there, logs, 0))


def volumes(posed: Posed, states: Array) -> Array:
    """Return the sum of `log_volume` over the steps of a trajectory."""
    root, axis = process_roots(posed)
    first = log_volume(initial_root(posed))
    if root is not None and axis is None:
        return first + (states.shape[0] - 1) * log_volume(root)
    return first + jnp.sum(jax.vmap(log_volume)(each_root(posed, states)[1:]))


def log_emissions(posed: Posed, states: Array) -> Array:
    """Return log p(y | z)."""
    return jnp.sum(posed.over_emissions(partial(emission_term, posed), states))


def log_driven(posed: Posed, path: Driven) -> Array:
    """Return log p(z, y) of a trajectory that its noise leads to."""
    noise = -0.5 * jnp.sum(path.noise**2) - volumes(posed, path.states)
    return noise + log_emissions(posed, path.states)


def noise_between(posed: Posed, states: Array) -> tuple[Array, Array]:
    """Return the noise `(T, r)` that explains a trajectory best, and what it leaves."""
    roots = each_root(posed, states)
    moved = jax.vmap(lambda x, u: posed.call("dynamics", x, u))(
        states[:-1], posed.inputs_into
    )
    expected = jnp.concatenate([posed.initial_mean[None], moved])

    def one(root: Array, residual: Array) -> tuple[Array, Array]:
        W, v = whiten(matmul(transpose(root), root))
        turned = matvec(W, matvec(transpose(root), residual))
        w = matvec(transpose(W), turned * reciprocal(v, v > 0))
        return w, residual - matvec(root, w)

    return jax.vmap(one)(roots, states - expected)


def log_joint_on(posed: Posed, states: Array) -> Array:
    """Return log p(z, y), `()`; of a singular model -inf where no noise leads to z.

    What the noise cannot explain counts as rounding up to sqrt(eps) of the largest
    state in each dimension.
    """
    if posed.roots is None:
        return log_joint(posed, states)
    noise, left = noise_between(posed, states)
    sizes = jnp.maximum(jnp.max(jnp.abs(states), axis=0), jnp.abs(posed.initial_mean))
    slack = jax.lax.stop_gradient(jnp.finfo(states.dtype).eps ** 0.5 * sizes)
    reached = jnp.all(jnp.abs(left) <= slack)
    return jnp.where(reached, log_driven(posed, Driven(states, noise)), -jnp.inf)
