r"""The Rauch-Tung-Striebel smoother.

Given the filter, p(z_t | z_{t+1}, y_{0:t}) = N(m_t + E_t (z_{t+1} - m^p_{t+1}), L_t),
where m^p is the predicted mean. z_{t+1} = F z_t + c + N(0, Q) is a set of D scalar
observations of z_t, so E_t, L_t come from conditioning N(m_t, P_t) on them, by D small
steps (see `scalar_updates`) or as one vector (see `vector_updates`), and no difference
of two nearly equal smoothed and predicted covariances is formed (P + E (P^s - P^p) E'
loses definiteness that way).
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

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.backward import Backward, Marginals
from elk_ssm.kalman.elements import SmootherElement
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.scalar_updates import (
    condition_row,
    has_plenty_of_noise,
    left_plainly,
    over_rows,
    project,
)
from elk_ssm.kalman.steps import Entry, entries_of, transition_into
from elk_ssm.kalman.vector_updates import (
    alone_on_cpu,
    by_root,
    by_share,
    gain_and_left,
    is_large,
    left_after,
    moments_of,
    shares_of_noise,
    solve_by_factor,
)
from elk_ssm.kalman.whitening import Whitener, whitener_of
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import Dense, Operator


def rauch_tung_striebel(
    problem: Problem,
    filtered: tuple[Array, ...],
    cross: bool,
    how: Literal["in turn", "at once", "quickly"] = "in turn",
) -> Backward:
    """Return the smoother, from the filtered means and covariances.

    The means of its states are distances from the filtered means. The output of a step
    is the state that it begins with, z_t, and if `cross`, Cov(z_{t-1}, z_t | y).
    Transitions are asked for in turn or all at once. `quickly` is in turn as well,
    by plain differences or as one vector where the noise allows, without derivatives.
    """
    means, covs, Q = *filtered[:2], problem.covariance
    static = None if Q.varies else whitener_of(Q)
    at_once = how == "at once"
    quickly = how == "quickly"
    look_back = _in_turn if quickly else partial(_by_scalars, unrolled=at_once)

    def moments(entry: Entry) -> tuple[Array, ...]:
        # What comes of step 0, whose F is zero, is about no state.
        before = jnp.maximum(entry.step - 1, 0)
        return covs[before], means[before], means[entry.step]

    def transition(entry: Entry, known: tuple[Array, ...]) -> tuple[Dense, Any, Dense]:
        cov, before, here = known
        F, c, _ = transition_into(problem, entry)
        noise = problem._replace(**entry.varying).covariance
        # A static Q is decorrelated once for all steps.
        E, L = look_back(cov, F, noise, static)
        return Dense(E), here - (matvec(F, before) + c), Dense(L)

    end = Marginals(jnp.zeros_like(means[-1]), Dense(covs[-1]))
    entries = entries_of(problem)
    if at_once:
        both = entries, jax.vmap(moments)(entries)
        return _RauchTungStriebel(both, end, lambda both: transition(*both), cross)
    one = lambda entry: transition(entry, moments(entry))  # noqa: E731
    return _RauchTungStriebel(entries, end, one, cross)


@dataclass(frozen=True)
class _RauchTungStriebel(Backward):
    """A transition is E, filtered less predicted mean, and L."""

    cross: bool

    def element(self, entry: Any) -> SmootherElement:
        E, gap, L = self.transition(entry)
        return SmootherElement(E, E.mv(gap), L)

    def step(self, state: Marginals, entry: Any) -> tuple[Marginals, Any]:
        E, gap, L = self.transition(entry)
        lagged = E.mm(state.covariances)
        covariances = lagged.mm(E.T).symmetrized().add(L)
        before = Marginals(E.mv(state.means + gap), covariances)
        return before, (state, lagged if self.cross else None)


def _by_scalars(
    cov: Array,
    weights: Array,
    noise: Operator,
    known: Whitener | None,
    unrolled: bool = False,
) -> tuple[Array, Array]:
    """Return E and L of p(z_t | z_{t+1}) = N(m + E (z_{t+1} - F m - c), L).

    Args:
        cov: the filtered covariance at t, `(D, D)`.
        weights: F into t + 1, `(D, D)`.
        noise: Q into t + 1.
        known: its whitener, where that is static.
        unrolled: As for `over_rows`.
    """
    inverse, variances = known or whitener_of(noise)

    def take_in(carry, row):
        E, L = carry
        h, q, target = row
        L, K, _ = condition_row(L, h, *project(L, h), q, True)
        left = target - jnp.sum(E * h[:, None], axis=0)
        return E + K[:, None] * left[None, :], L

    rows = (matmul(inverse, weights), variances, inverse)
    E, L = over_rows(take_in, (jnp.zeros_like(cov), cov), rows, unrolled=unrolled)
    return E, symmetrize(L)


def _by_factor(
    cov: Array, weights: Array, noise: Operator, known: Whitener | None
) -> tuple[Array, Array]:
    """Return the same by one factor, where that costs no digits."""
    across, total = moments_of(cov, weights, noise)

    def carefully() -> tuple[Array, Array]:
        E = solve_by_factor(total, across)[0]
        return E, left_after(cov, weights, noise, E)

    pivots = None if known is None else known.variances
    shares = shares_of_noise(cov, weights, noise, total, pivots)
    plainly = partial(gain_and_left, cov, across, total)
    scalars = partial(_by_scalars, cov, weights, noise, known)
    return by_share(shares, plainly, carefully, scalars)


def _quickly(
    cov: Array, weights: Array, noise: Operator, known: Whitener | None
) -> tuple[Array, Array]:
    size = cov.shape[-1]
    if by_root(cov, size, known is None and noise.mixes):
        return _by_factor(cov, weights, noise, known)
    inverse, variances = known or whitener_of(noise)
    rows = matmul(inverse, weights) if noise.mixes else weights

    def plainly() -> tuple[Array, Array]:
        # E = L F' Q^{-1}
        left = left_plainly(cov, rows, variances)
        back = transpose(rows / variances[:, None])
        back = matmul(back, inverse) if noise.mixes else back
        return matmul(left, back), left

    plenty = jnp.all(has_plenty_of_noise(cov, rows, variances))
    otherwise = _by_factor if is_large(cov, size) else _by_scalars
    return lax.cond(plenty, plainly, partial(otherwise, cov, weights, noise, known))


_in_turn = alone_on_cpu(_quickly, _by_scalars)
