r"""The steps of the Kalman filter, and the two ways to run through them.

With F_0 = 0, c_0 = m and Q_0 = P, step 0 is a step like the others. See `filtering`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.elements import (
    FilterElement,
    combine_filter_dense,
    combine_filter_diagonal,
)
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.scalar_updates import (
    Rows,
    WhitenedEmission,
    condition,
    condition_diagonal,
    condition_element,
    condition_element_diagonal,
    emission_rows,
    whiten_emission,
)
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import Operator, at_step, to_dense
from elk_ssm.parallel.prefix import prefix_scan


class Transition(NamedTuple):
    """F, c and Q into one step: matrices, or vectors for a diagonal model."""

    weights: Array
    offset: Array
    noise: Array


def transition_into(problem: Problem, step: Array) -> Transition:
    """Return the transition into a step; into step 0 it is the initial distribution."""
    read = _diagonal_of if problem.is_diagonal else to_dense
    weights = read(at_step(problem.weights, step))
    noise = read(at_step(problem.covariance, step))
    first = (step == 0) & problem.begins
    into = Transition(
        jnp.where(first, 0.0, weights),
        jnp.where(first, problem.initial_mean, problem.offsets[step]),
        jnp.where(first, read(problem.initial_covariance), noise),
    )
    if problem.exists is None:
        return into
    # Past the end the state is zero for sure, which says nothing about those before.
    return Transition(*(jnp.where(problem.exists[step], x, 0.0) for x in into))


def propagate(transition: Transition, mean: Array, cov: Array) -> tuple[Array, Array]:
    """Return the mean and covariance of F z + c + N(0, Q) for z ~ N(mean, cov)."""
    F, c, Q = transition
    if F.ndim == 1:
        return F * mean + c, F * cov * F + Q
    spread = matmul(F, matmul(cov, transpose(F)))
    return matvec(F, mean) + c, symmetrize(spread) + Q


def filter_sequential(
    problem: Problem, start: tuple[Array, Array] | None = None
) -> tuple[Array, Array, Array]:
    """Return means, covariances and likelihood terms by one scan from `start`."""
    whole = static_emission(problem)

    def step(carry, index):
        mean, cov, term = filter_step(problem, whole, index, *carry)
        return (mean, cov), (mean, cov, term)

    start = nothing_before(problem) if start is None else start
    return lax.scan(step, start, jnp.arange(problem.num_steps))[1]


def filter_associative(problem: Problem) -> tuple[Array, Array, Array]:
    """Return the same by combining elements, then one step from every posterior."""
    combine = combine_filter_diagonal if problem.is_diagonal else combine_filter_dense
    combined = prefix_scan(combine, filter_elements(problem))
    before = (
        jnp.concatenate([zero[None], leaf[:-1]])
        for zero, leaf in zip(nothing_before(problem), (combined.b, combined.C))
    )
    return refine(problem, *before)


def filter_elements(problem: Problem) -> FilterElement:
    """Return the elements of all steps, leading axis T."""
    build = partial(filter_element, problem, static_emission(problem))
    return jax.vmap(build)(jnp.arange(problem.num_steps))


def refine(problem: Problem, means: Array, covs: Array) -> tuple[Array, Array, Array]:
    """Do every step at once from the moments before it, `(T, D)` and T matrices."""
    step = partial(filter_step, problem, static_emission(problem))
    return jax.vmap(step)(jnp.arange(problem.num_steps), means, covs)


def filter_step(problem: Problem, whole: WhitenedEmission | None, step, mean, cov):
    """Predict into `step` and condition on its emission."""
    predicted = propagate(transition_into(problem, step), mean, cov)
    update = condition_diagonal if problem.is_diagonal else condition
    return update(*predicted, rows_of(problem, whole, step))


def filter_element(problem: Problem, whole: WhitenedEmission | None, step):
    """Return the associative element of one step."""
    build = condition_element_diagonal if problem.is_diagonal else condition_element
    return build(*transition_into(problem, step), rows_of(problem, whole, step))


def rows_of(problem: Problem, whole: WhitenedEmission | None, step) -> Rows:
    """Return the emission of one step as independent scalars."""
    values, observed = problem.values[step], problem.observed[step]
    weights = at_step(problem.emission_weights, step)
    if problem.exists is not None:
        weights = weights.where(problem.exists[step], 0.0)
    covariance = at_step(problem.emission_covariance, step)
    if problem.is_diagonal:
        variances = jnp.where(observed, _diagonal_of(covariance), 1.0)
        return Rows(_diagonal_of(weights), variances, values, observed)
    return emission_rows(weights, covariance, values, observed, whole)


def static_emission(problem: Problem) -> WhitenedEmission | None:
    """Decorrelate a static dense R once for all steps that have no gaps."""
    H, R = to_dense(problem.emission_weights), problem.emission_covariance
    if not R.mixes or R.varies or H.ndim > 2:
        return None
    return whiten_emission(H, to_dense(R))


def nothing_before(problem: Problem) -> tuple[Array, Array]:
    """Return what stands before step 0, whose F is zero."""
    mean = jnp.zeros_like(problem.initial_mean)
    return mean, jnp.zeros_like(problem.initial_covariance.array)


def _diagonal_of(operator: Operator) -> Array:
    return operator.variances()
