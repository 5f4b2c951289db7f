r"""The Rauch-Tung-Striebel smoother with time spread over the devices of a mesh axis.

In terms of the distance d_k = m^s_k - m_k from the filter, the backward transition into
the state before step k is (see `smoothing`)

    d_{k-1} = E_k d_k + E_k (m_k - m^p_k),      P^s_{k-1} = E_k P^s_k E_k' + L_k,

with E_k and L_k from conditioning N(m_{k-1}, P_{k-1}) on x_k. All of it is known on the
device that has step k, once the moments that enter its first step are.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.elements import SmootherElement
from elk_ssm.kalman.filter_spread import filter_piece, run_pieces
from elk_ssm.kalman.filter_steps import transition_into
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.scalar_updates import (
    Whitener,
    condition_backward,
    condition_backward_diagonal,
    whitener_of,
)
from elk_ssm.kalman.spread import previous, smooth_associative, smooth_sequential
from elk_ssm.linalg.small import matmul, matvec
from elk_ssm.linalg.structure import Dense
from elk_ssm.parallel.backend import Backend, by_backend
from elk_ssm.parallel.mesh import Spread
from elk_ssm.parallel.time_axis import TimeAxis


def smooth_on_mesh(
    problem: Problem, backend: Backend, spread: Spread, cross: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Filter and smooth.

    Returns:
        The log likelihood, and over time: filtered means and covariances, smoothed
        means and covariances, and if `cross`, Cov(z_{t-1}, z_t | y) at entry t.
    """

    def piece(problem: Problem) -> tuple[tuple[Array, ...], Array]:
        return smooth_pieces(spread.axis, problem, backend, cross)

    found, evidence = run_pieces(spread, piece, problem)
    return evidence, found


def smooth_pieces(
    axis: TimeAxis, problem: Problem, backend: Backend, cross: bool
) -> tuple[tuple[Array, ...], Array]:
    """Return of this device's piece what `smooth_on_mesh` does, the likelihood last."""
    entered, (means, covs, terms) = filter_piece(axis, problem, backend)
    before = previous(entered, (means, covs))
    moments, E = _smooth_piece(axis, problem, before, means, covs, backend)
    product = jnp.multiply if problem.is_diagonal else matmul
    lagged = (product(E, moments.L),) if cross else ()
    smoothed = means + moments.g, moments.L
    return (means, covs, *smoothed, *lagged), axis.total(jnp.sum(terms))


def _smooth_piece(
    axis: TimeAxis,
    problem: Problem,
    before: tuple[Array, Array],
    means: Array,
    covs: Array,
    backend: Backend,
) -> tuple[SmootherElement, Array]:
    """Return d and P^s of every step as elements, and E into the state before it."""
    transition = partial(_transition, problem, static_whitener(problem))
    zero = jnp.zeros_like(means[-1])
    end = SmootherElement(jnp.zeros_like(covs[-1]), zero, covs[-1])
    entries = (jnp.arange(problem.num_steps), *before, means)

    def sequential(entries: tuple) -> tuple[SmootherElement, Array]:
        moments, elements = smooth_sequential(axis, transition, entries, end)
        return moments, elements.E

    def associative(entries: tuple) -> tuple[SmootherElement, Array]:
        elements = jax.vmap(transition)(entries)
        return smooth_associative(axis, elements, end), elements.E

    return by_backend(backend, sequential, associative, entries)


def _transition(
    problem: Problem, whitener: Whitener | None, entry: tuple
) -> SmootherElement:
    """Backward transition into the state before one step."""
    step, mean, cov, mean_after = entry
    F, c, Q = transition_into(problem, step)
    if problem.is_diagonal:
        E, L = condition_backward_diagonal(cov, F, Q)
        return SmootherElement(E, E * (mean_after - F * mean - c), L)
    E, L = condition_backward(cov, F, whitener or whitener_of(Dense(Q)))
    return SmootherElement(E, matvec(E, mean_after - matvec(F, mean) - c), L)


def static_whitener(problem: Problem) -> Whitener | None:
    """Decorrelate a static Q once for all steps."""
    Q = problem.covariance
    return None if Q.varies or problem.is_diagonal else whitener_of(Q)
