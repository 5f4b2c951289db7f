r"""Gains and covariances of a step, without its data, by one factor.

Covariances are in Joseph's form; see `vector_updates` for how much noise that takes.
"""

import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.vector_updates import (
    is_enough,
    left_after,
    moments_of,
    shares_of_noise,
    solve_by_factor,
    times,
)
from elk_ssm.linalg.small import matmul, transpose
from elk_ssm.linalg.structure import Operator


def gain_by_factor(
    cov: Array, weights: Array, noise: Operator, seen: Array
) -> tuple[Array, Array, Array]:
    """Return K, P after an emission of which `(E,)` is seen, and whether they are good.

    That is whether there is noise enough for them to keep their digits, `()`.
    """
    across, total = moments_of(cov, weights, noise, seen)
    gain, _ = solve_by_factor(total, across)
    good = _have_enough(cov, weights, noise, seen, total)
    return gain, left_after(cov, weights, noise, gain), good


def refined_gains(
    cov: Array, weights: Array, noise: Operator, seen: Array
) -> tuple[Array, Array, Array, tuple[Array, Array]]:
    """Return the same, and besides S^{-1} and the diagonal of its factor.

    Those are zero and one where nothing is seen. K and S^{-1} are refined once.
    """
    size = cov.shape[0]
    across, total = moments_of(cov, weights, noise, seen)
    unit = jnp.diag(seen.astype(cov.dtype))
    found, scales = solve_by_factor(total, jnp.concatenate([across, unit]))
    gain, precision = found[:size], found[size:]
    own = transpose(times(transpose(precision), noise))
    left = unit - matmul(weights, gain) - own
    better = found + matmul(found, jnp.where(seen[:, None], left, 0.0))
    good = _have_enough(cov, weights, noise, seen, total)
    left_over = left_after(cov, weights, noise, gain)
    beside = better[size:], jnp.where(seen, scales, 1.0)
    return better[:size], left_over, good, beside


def _have_enough(
    cov: Array, weights: Array, noise: Operator, seen: Array, total: Array
) -> Array:
    shares = shares_of_noise(cov, weights, noise, total, None)
    return jnp.all(is_enough(shares) | ~seen)
