r"""Which models the quick arithmetic is not accurate for, by their filtered moments.

*Filter.* The variance h'Ph + r of an innovation has a relative error of about
eps sum_i h_i^2 P_ii / (h'Ph + r). Where r alone is above the rounding of the sum, all
is well.

*Smoother.* Rauch, Tung and Striebel condition on the successor, D scalars of variance
h'Ph + q with h a row of the decorrelated F, and multiply by its relative error whatever
comes from later. Where q is above a multiple of sqrt(eps) of the sum, half the digits
are kept.

Both are questions to all steps at once; the scans themselves look for nothing. Noise
that is correlated and varies has to be decorrelated anew at every step for that, which
is the dearest part of a filter of many dimensions. So one factor a step is asked first
whether there surely is enough noise everywhere.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.roundings import rounding_of
from elk_ssm.kalman.vector_updates import alone_on_cpu, is_large, unit_rows
from elk_ssm.kalman.whitening import whiten_emission, whitener_of
from elk_ssm.linalg.small import matmul, matvec, raised
from elk_ssm.linalg.structure import Operator, to_dense, variances_of

# Of the square root of the rounding: how little noise the quick smoother bears.
_LEAST = 3.0


def has_exact_emissions(problem: Problem, covs: Array, *, ahead: bool = False) -> Array:
    """Whether an emission has next to no noise beside the variance that is left.

    Args:
        problem: a dense model and its data.
        covs: the filtered covariances, `(T, D, D)`.
        ahead: whether to compare it with what was left one step before, too.
    """
    H, R = to_dense(problem.emission_weights), problem.emission_covariance
    left = jnp.diagonal(covs, axis1=-2, axis2=-1)

    def asked() -> Array:
        H, variances = _scalars(problem)
        sizes = matvec(H * H, left)
        if ahead:
            before = jnp.concatenate([sizes[:1], sizes[:-1]])
            sizes = jnp.maximum(sizes, before)
        enough = raised(variances, sizes.ndim) > jnp.abs(rounding_of(sizes))
        return jnp.any(problem.observed & ~enough)

    # What was left before is not in the short answer.
    return asked() if ahead else _unless_sure(H, R, left, asked)


def has_noiseless_emissions(problem: Problem) -> Array:
    """Whether an emission has no noise at all; one of correlated noise, by rounding."""
    variances = _scalars(problem)[1]
    return jnp.any(problem.observed & (raised(variances, 2) <= 0))


def _scalars(problem: Problem) -> tuple[Array, Array]:
    """Return decorrelated weights and variances of the emission; varying or not."""
    H, R = to_dense(problem.emission_weights), problem.emission_covariance
    if not R.mixes:
        return H, variances_of(R)
    varies = problem.emission_weights.varies, R.varies
    axes = tuple(0 if so else None for so in varies)
    each = jax.vmap(whiten_emission, axes) if any(varies) else whiten_emission
    H, (_, variances) = each(H, to_dense(R))
    return H, variances


def has_exact_dynamics(problem: Problem, covs: Array) -> Array:
    """Whether a transition has next to no noise beside the variance that enters it."""
    after = slice(1, None)
    F, Q = to_dense(problem.weights.at(after)), problem.covariance.at(after)
    left = jnp.diagonal(covs, axis1=-2, axis2=-1)[:-1]

    def asked() -> Array:
        rows, variances = F, variances_of(Q)
        if Q.mixes:
            each = jax.vmap(whitener_of) if Q.varies else whitener_of
            inverse, variances = each(Q)
            rows = matmul(inverse, F)
        sizes = matvec(rows * rows, left)
        least = _LEAST * jnp.finfo(sizes.dtype).eps ** 0.5 * jnp.abs(sizes)
        return jnp.any(~(raised(variances, least.ndim) > least))

    return _unless_sure(F, Q, left, asked)


def _unless_sure(
    weights: Array, noise: Operator, left: Array, asked: Callable[[], Array]
) -> Array:
    """Return what is asked, which is no where there surely is enough noise.

    Args:
        weights: `(E, D)`, or with a leading axis of time.
        noise: of `(E, E)`.
        left: variances of the states that are seen, `(T, D)`.
        asked: the whole question.
    """
    if not (noise.mixes and noise.varies and is_large(left, weights.shape[-2])):
        return asked()
    operands = lax.stop_gradient((weights, to_dense(noise), left))
    return lax.cond(_is_sure(*operands), lambda: jnp.zeros((), bool), asked)


def _by_factors(weights: Array, noise: Array, left: Array) -> Array:
    """Whether all scalars have more noise than even the smoother asks for."""

    def one(step: Array) -> Array:
        rows = weights[step] if weights.ndim > 2 else weights
        sizes = matvec(unit_rows(rows, noise[step]) ** 2, jnp.abs(left[step]))
        return jnp.all(_LEAST * jnp.finfo(sizes.dtype).eps ** 0.5 * sizes < 1)

    return jnp.all(lax.map(one, jnp.arange(left.shape[0])))


_is_sure = alone_on_cpu(_by_factors, lambda *_: jnp.zeros((), bool))
