r"""The Rauch-Tung-Striebel smoother of dense models, sequential or parallel in time.

Given the filter, p(z_t | z_{t+1}, y_{0:t}) = N(m_t + E_t (z_{t+1} - m^p_{t+1}), L_t),
where m^p is the predicted mean. z_{t+1} = F z_t + c + N(0, Q) is a set of D scalar
observations of z_t, so E_t, L_t come from conditioning N(m_t, P_t) on them by D small
steps (see `scalar_updates`), and no difference of two nearly equal smoothed and
predicted covariances is formed (P + E (P^s - P^p) E' loses definiteness that way).
With E_{T-1} = 0 and L_{T-1} = P_{T-1},

    m^s_t = m_t + E_t (m^s_{t+1} - m^p_{t+1})
    P^s_t = E_t P^s_{t+1} E_t' + L_t
    Cov(z_t, z_{t+1} | y) = E_t P^s_{t+1}

a sum of PSD terms at every step. In terms of the distance d_t = m^s_t - m_t from the
filter, d_t = E_t d_{t+1} + E_t (m_{t+1} - m^p_{t+1}): what is added up is a
correction, so a large mean costs no digits, and the three recursions are one
associative scan over (E, g, L).

E_t = P_t F' (F P_t F' + Q)^{-1} is accurate only where there is process noise in every
direction; `delicate` says where, and `future` holds the way round it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.elements import SmootherElement, combine_smoother_dense
from elk_ssm.kalman.filter_steps import transition_into
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.scalar_updates import (
    Whitener,
    condition_row,
    over_rows,
    project,
    whitener_of,
)
from elk_ssm.linalg.small import matmul, matvec, symmetrize
from elk_ssm.linalg.structure import Dense
from elk_ssm.parallel.prefix import prefix_scan

Smoothed = tuple[Array, Array, Array | None]


def rauch_tung_striebel(
    problem: Problem, means: Array, covs: Array, cross: bool
) -> Smoothed:
    """Smooth by one scan backwards through the filtered moments.

    Returns:
        Means, covariances, and if `cross`, Cov(z_t, z_{t+1} | y) of all but the last.
    """
    backward = partial(_backward, problem, _static_whitener(problem))

    def step(carry, filtered):
        mean_next, cov_next = carry
        index, mean, cov = filtered
        E, predicted, L = backward(index, mean, cov)
        smoothed = mean + matvec(E, mean_next - predicted)
        lagged = matmul(E, cov_next)
        spread = symmetrize(matmul(lagged, E.T)) + L
        return (smoothed, spread), (smoothed, spread, lagged if cross else None)

    start = (means[-1], covs[-1])
    entries = (jnp.arange(problem.num_steps), means, covs)
    smoothed, spreads, lagged = lax.scan(step, start, entries, reverse=True)[1]
    return smoothed, spreads, lagged[:-1] if cross else None


def rauch_tung_striebel_everywhere(
    problem: Problem, means: Array, covs: Array, cross: bool
) -> Smoothed:
    """Return the same by an associative scan."""
    backward = partial(_backward, problem, _static_whitener(problem))
    E, predicted, L = jax.vmap(backward)(jnp.arange(problem.num_steps), means, covs)
    gap = matvec(E, _following(means) - predicted)
    elements = SmootherElement(E, gap, L)
    combined = prefix_scan(combine_smoother_dense, elements, reverse=True)
    lagged = matmul(E, _following(combined.L))[:-1] if cross else None
    return means + combined.g, combined.L, lagged


def _backward(
    problem: Problem, whitener: Whitener | None, step: Array, mean: Array, cov: Array
) -> tuple[Array, Array, Array]:
    """Return E, the predicted mean of the next step, and L; at the end, 0 and P."""
    last = step == problem.num_steps - 1
    F, c, Q = transition_into(problem, jnp.minimum(step + 1, problem.num_steps - 1))
    E, L = _condition_backward(cov, F, whitener or whitener_of(Dense(Q)))
    predicted = matvec(F, mean) + c
    return jnp.where(last, 0.0, E), predicted, jnp.where(last, cov, L)


def _condition_backward(
    cov: Array, weights: Array, whitener: Whitener
) -> tuple[Array, Array]:
    """Return E and L of p(z_t | z_{t+1}) = N(m + E (z_{t+1} - F m - c), L).

    Args:
        cov: the filtered covariance at t, `(D, D)`.
        weights: F into t + 1, `(D, D)`.
        whitener: that of Q into t + 1.
    """

    def take_in(carry, row):
        E, L = carry
        h, q, target = row
        L, K, _ = condition_row(L, h, *project(L, h), q, True)
        return E + K[:, None] * (target - jnp.sum(E * h[:, None], axis=0)), L

    inverse = whitener.inverse
    rows = (matmul(inverse, weights), whitener.variances, inverse)
    E, L = over_rows(take_in, (jnp.zeros_like(cov), cov), rows)
    return E, symmetrize(L)


def _static_whitener(problem: Problem) -> Whitener | None:
    """Decorrelate a static Q once for all steps."""
    Q = problem.covariance
    return None if Q.varies else whitener_of(Q)


def _following(moments: Array) -> Array:
    """Shift by one step; the last entry is repeated, and met by E = 0."""
    return jnp.concatenate([moments[1:], moments[-1:]])
