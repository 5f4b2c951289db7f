r"""The Gaussian around a mode: its evidence, and covariances that are definite.

Where the expansion at the mode x has its mode there too, log p(y) is that of the
expansion. Else only its spread is used, which is Laplace's approximation: with q the
posterior of the expansion without data, log p(y) = log p(x, y) - log q(x).

An expansion has a block tridiagonal precision. With the pivots S_t of its elimination
and the couplings C_t, the diagonal blocks of its inverse are (Takahashi, Fagan & Chin
1973; Rue & Martino 2007, J. Stat. Plan. Inference 137)

    P_t = S_t^-1 + G_t P_{t+1} G_t',        G_t = S_t^-1 C_{t+1}'

a sum of positive definite matrices. Where dynamics expand and little is observed, the
filtered covariances of a Kalman smoother span more than the mantissa has digits, and
what it subtracts from them leaves nothing right; there this form takes over.
"""

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._types import Array
from elk_ssm.kalman.observations import Factor, factor_of
from elk_ssm.linalg.small import matmul, symmetrize, transpose
from elk_ssm.linalg.structure import Dense, to_dense
from elk_ssm.nssm.densities import log_joint
from elk_ssm.nssm.expansion import Expansion, expand, posterior_of
from elk_ssm.nssm.options import Choices
from elk_ssm.nssm.posed import Posed, time_axis
from elk_ssm.nssm.tridiagonal import apply_inverse, unit_factor


def gaussian_around(
    posed: Posed, states: Array, covariances: Array | None, choices: Choices
) -> dict[str, Array]:
    """Return what `Smoothed` holds of the Gaussian around a mode `(T, D)`.

    `covariances`, `(T, D, D)`, are those over which sigma points regress.
    """
    density = log_joint(posed, states)
    expansion = expand(posed, states, covariances, choices.linearization, kind="exact")
    exact = posed.is_gaussian and not posed.has_varying_noise
    if not exact:
        expansion = expansion.without_data()
    posterior = posterior_of(posed, expansion, choices.backend)
    evidence = posterior.log_likelihood
    if not exact:
        evidence = evidence + density - expansion.log_joint_at_zero(posed)
    smoothed = to_dense(posterior.smoothed_covariances)
    return {
        "covariances": definite_covariances(posed, expansion, smoothed),
        "log_likelihood": evidence,
        "log_posterior": density,
        "filtered_means": states + posterior.filtered_means,
        "filtered_covariances": to_dense(posterior.filtered_covariances),
    }


def definite_covariances(
    posed: Posed, expansion: Expansion, covariances: Array
) -> Array:
    """Return covariances `(T, D, D)`, from the precision unless all are definite."""
    if posed.axis.is_sharded:
        return covariances

    def anew() -> Array:
        found = information_covariances(expansion)
        return jnp.where(_all_definite(found), found, covariances)

    return lax.cond(_all_definite(covariances), lambda: covariances, anew)


def _all_definite(matrices: Array) -> Array:
    finite = jnp.all(jnp.isfinite(matrices))
    return finite & jnp.all(jax.vmap(unit_factor)(matrices)[2])


def information_covariances(expansion: Expansion) -> Array:
    """Return the smoothed covariances of an expansion, `(T, D, D)`."""
    blocks, couplings = _precision(expansion)

    def forward(carry, entry):
        B, C = entry
        S = B - matmul(C, apply_inverse(carry, transpose(C)))
        factor = unit_factor(S)[:2]
        return factor, factor

    eye = jnp.eye(blocks.shape[1], dtype=blocks.dtype)
    start = (eye, jnp.diagonal(eye))
    factors = lax.scan(forward, start, (blocks, couplings))[1]

    def backward(P, entry):
        factor, C_next = entry
        gain = apply_inverse(factor, transpose(C_next))
        spread = matmul(gain, matmul(P, transpose(gain)))
        P = symmetrize(apply_inverse(factor, eye) + spread)
        return P, P

    following = jnp.concatenate([couplings[1:], jnp.zeros_like(couplings[:1])])
    entries = (factors, following)
    return lax.scan(backward, jnp.zeros_like(eye), entries, reverse=True)[1]


def _precision(expansion: Expansion) -> tuple[Array, Array]:
    """Return the blocks and couplings of the precision of the increments."""
    F, rows = expansion.weights, expansion.rows
    steps, size = F.shape[:2]
    axis = time_axis(expansion.covariance)
    Q = expansion.covariance
    if axis is None:
        one = _inverse(factor_of(Q), size)
        inverse_Q = jnp.broadcast_to(one, (steps, size, size))
    else:
        inverse_Q = jax.vmap(lambda Q: _inverse(factor_of(Q), size))(Q)
    first = _inverse(factor_of(Dense(expansion.initial_covariance)), size)
    back = matmul(transpose(F), inverse_Q)
    moved = matmul(back, F)
    weights = jnp.where(rows.observed, 1 / rows.variances, 0)[..., None] * rows.weights
    blocks = matmul(transpose(rows.weights), weights)
    blocks = blocks.at[1:].add(inverse_Q[1:]).at[:-1].add(moved[1:]).at[0].add(first)
    return blocks, -transpose(back).at[0].set(0)


def _inverse(factor: Factor, size: int) -> Array:
    W = jnp.eye(size, dtype=factor.variances.dtype)
    W = W if factor.inverse is None else factor.inverse
    return matmul(transpose(W), W / factor.variances[:, None])
