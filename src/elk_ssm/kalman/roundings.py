"""What counts as zero, and densities where a variance is.

A variance h'Ph is certain to a few eps times sum_i h_i^2 P_ii (`rounding_of`), and
exact observations may leave eps^(3/4) of it where nothing is left (`nothing_of`): six
parts in a million in float32, two in 1e12 in float64. A value without noise that has
less than that is known, and is compared with what is known of it (`slack_of`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.linalg.small import inverse_of, matvec

LOG_TWO_PI = 1.8378770664093453


@jax.jit
def safe_sqrt(value: Array) -> Array:
    """Return sqrt(value), and 0 with derivative 0 where the value is not positive."""
    return jnp.where(value > 0, jnp.sqrt(jnp.where(value > 0, value, 1.0)), 0.0)


def scales_of(weights: Array, *noises: Array) -> Array:
    """Return for every dimension a variance that its own rounds like, `(D,)`.

    One that no other moves has the noise that enters it and nothing else: that of a
    coefficient at rest is zero, and however large the input that it is seen through,
    none of h'Ph is its. For the others it is the largest of all.

    Args:
        weights: F, `(D, D)`, or `(T, D, D)` where it varies.
        *noises: Covariances `(D, D)`, or with leading axes.
    """
    size = weights.shape[-1]
    own_entry = jnp.broadcast_to(jnp.eye(size, dtype=bool), weights.shape)
    kept = (weights == 0) | own_entry
    alone = jnp.all(kept.reshape(-1, size, size), axis=(0, 2))
    variances = [jnp.diagonal(x, axis1=-2, axis2=-1) for x in noises]
    own = jnp.max(jnp.abs(jnp.concatenate([x.reshape(-1, size) for x in variances])), 0)
    return lax.stop_gradient(jnp.where(alone, own, jnp.max(own)))


@jax.jit
def floor_of(weights: Array, scales: Array, eps: Any) -> Array:
    """Return what scalars of variance h'Ph must have of it, `(...)`.

    Where no dimension that is seen has a scale, the largest stands in.

    Args:
        weights: h, `(..., D)`.
        scales: See `scales_of`, `(D,)`.
        eps: What counts as nothing of a variance, `()`.
    """
    squares = lax.stop_gradient(weights**2)
    size = matvec(squares, scales)
    whole = jnp.sum(squares, axis=-1) * jnp.max(scales)
    return eps * jnp.where(size > 0, size, whole)


@jax.jit
def reciprocal(value, ok):
    """1 / value where ok, else 0, with a derivative that is finite everywhere."""
    return jnp.where(ok, inverse_of(jnp.where(ok, value, 1.0)), 0.0)


def rounding_of(size: Array) -> Array:
    """Return what a sum of terms that add up to `size` is certain to."""
    return lax.stop_gradient(4 * jnp.finfo(size.dtype).eps * size)


def nothing_of(size: Array) -> Array:
    """Return what exact observations of ordinary condition may leave of a variance."""
    return lax.stop_gradient(jnp.finfo(size.dtype).eps ** 0.75 * size)


def slack_of(nothing: Array, size: Array) -> Array:
    """Return how far a known value may be off: by roundings of moments this large."""
    return lax.stop_gradient(safe_sqrt(nothing) + 64 * rounding_of(size))


@jax.jit
def regular_log_normal(error: Array, variance: Array, ok: Array) -> Array:
    """Return log N(error; 0, variance), and 0 for what is not observed."""
    safe = jnp.where(ok, variance, 1.0)
    density = -0.5 * (jnp.log(2 * jnp.pi * safe) + error * (error * inverse_of(safe)))
    return jnp.where(ok, density, 0.0)


@jax.jit
def log_normal(error: Array, variance: Array, ok: Array, slack: Array) -> Array:
    """Return log N(error; 0, variance), and 0 for what is not observed.

    Without variance it is the density on the observed subspace: 0 where the error is
    at most `slack`, and -inf where the value contradicts what is known. A variance
    that is NaN makes it NaN.
    """
    known = variance <= 0
    contradicts = ok & known & (jnp.abs(error) > slack)
    density = regular_log_normal(error, variance, ok & ~known)
    return jnp.where(contradicts, -jnp.inf, density)
