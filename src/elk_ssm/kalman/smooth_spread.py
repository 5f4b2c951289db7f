r"""The two-filter smoother with time spread over the devices of a mesh axis.

Every device has reduced its steps to one element for the filter. What the elements of
all later devices say together about this device's last state is the future it starts
from (see `future`); what comes of it in front of the first step conditions the moments
that entered, so no halo is needed.
"""

import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.filter_spread import filter_piece, run_pieces
from elk_ssm.kalman.future import (
    evidence_of,
    later_run,
    look_back,
    look_back_everywhere,
    see,
)
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.linalg.small import matmul, transpose
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
    whole, entered, (means, covs, terms) = filter_piece(axis, problem, backend)

    def sequential(means: Array, covs: Array) -> tuple:
        later = later_run(problem, axis, whole, "sequential")
        return look_back(problem, means, covs, evidence_of(later))

    def associative(means: Array, covs: Array) -> tuple:
        later = later_run(problem, axis, whole, "associative")
        return look_back_everywhere(problem, means, covs, later)

    run = by_backend(backend, sequential, associative, means, covs)
    before, (smoothed, spreads, links) = run
    first = see(problem, *entered, before)[1]
    previous = jnp.concatenate([first[None], spreads[:-1]])
    lagged = (_lagged(previous, links),) if cross else ()
    return (means, covs, smoothed, spreads, *lagged), axis.total(jnp.sum(terms))


def _lagged(covs: Array, links: Array) -> Array:
    if covs.ndim == 2:
        return covs * links
    return matmul(covs, transpose(links))
