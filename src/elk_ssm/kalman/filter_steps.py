r"""The steps of the Kalman filter, and the two ways to run through them.

With F_0 = 0, c_0 = m and Q_0 = P, step 0 is a step like the others. See `filtering`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.anywhere import anywhere
from elk_ssm.kalman.delicate import has_exact_emissions
from elk_ssm.kalman.diagonal_updates import (
    condition_diagonal,
    condition_element_diagonal,
)
from elk_ssm.kalman.elements import FilterElement, combine_filter_diagonal
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.runs import Run, combine_runs, compress, condition_run
from elk_ssm.kalman.scalar_updates import (
    Rows,
    WhitenedEmission,
    condition,
    condition_carefully,
    emission_rows,
    whiten_emission,
)
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import (
    Operator,
    at_step,
    to_dense,
)
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
    problem: Problem,
    start: tuple[Array, Array] | None = None,
    update: Callable = condition_carefully,
) -> tuple[Array, Array, Array]:
    """Return means, covariances and likelihood terms by one scan from `start`."""
    whole = static_emission(problem)

    def step(carry, index):
        before, spread = carry
        mean, cov, term = filter_step(problem, whole, index, before, spread, update)
        return (mean, cov), (mean, cov, term)

    start = nothing_before(problem) if start is None else start
    return lax.scan(step, start, jnp.arange(problem.num_steps))[1]


def filter_quickly(problem: Problem) -> tuple[Array, Array, Array]:
    """Return what `filter_sequential` does, taking care only where it is called for.

    Most models never meet an innovation whose variance is lost in rounding, and the
    scan that looks for none is up to a fifth faster, or several times where XLA
    compiles its whole loop at once.
    """
    if problem.is_diagonal:
        return filter_sequential(problem)
    return _unless_exact(problem, filter_sequential(problem, update=condition))


def _unless_exact(
    problem: Problem, found: tuple, ahead: bool = False
) -> tuple[Array, Array, Array]:
    return lax.cond(
        anywhere(has_exact_emissions(problem, found[1], ahead=ahead)),
        lambda problem, _: filter_carefully(problem),
        lambda _, found: found,
        problem,
        found,
    )


def filter_carefully(problem: Problem) -> tuple[Array, Array, Array]:
    """Return what `filter_sequential` does, by a program that is small."""
    update = partial(condition_carefully, unrolled=False)
    return filter_sequential(problem, update=update)


def filter_associative(problem: Problem) -> tuple[Array, Array, Array]:
    """Return the same by combining elements, then one step from every posterior.

    Where an emission has next to no noise, the order in which evidence is taken in
    decides on how much of it is left, and a dense model is filtered step after step.
    """
    combined = prefix_scan(combine_of(problem), filter_elements(problem))
    before = (
        jnp.concatenate([zero[None], leaf[:-1]])
        for zero, leaf in zip(nothing_before(problem), (combined.b, combined.C))
    )
    found = refine(problem, *before)
    return found if problem.is_diagonal else _unless_exact(problem, found, ahead=True)


def combine_of(problem: Problem) -> Callable:
    """Return what joins two neighbouring elements, the earlier one first."""
    return combine_filter_diagonal if problem.is_diagonal else combine_runs


def filter_elements(problem: Problem) -> FilterElement | Run:
    """Return the elements of all steps, leading axis T."""
    build = partial(filter_element, problem, static_emission(problem))
    return jax.vmap(build)(jnp.arange(problem.num_steps))


def refine(problem: Problem, means: Array, covs: Array) -> tuple[Array, Array, Array]:
    """Do every step at once from the moments before it, `(T, D)` and T matrices."""
    step = partial(filter_step, problem, static_emission(problem))
    return jax.vmap(step)(jnp.arange(problem.num_steps), means, covs)


def filter_step(
    problem: Problem,
    whole: WhitenedEmission | None,
    step: Array,
    mean: Array,
    cov: Array,
    update: Callable = condition_carefully,
) -> tuple[Array, Array, Array]:
    """Predict into `step` and condition on its emission."""
    predicted = propagate(transition_into(problem, step), mean, cov)
    update = condition_diagonal if problem.is_diagonal else update
    return update(*predicted, rows_of(problem, whole, step))


def filter_element(problem: Problem, whole: WhitenedEmission | None, step):
    """Return the associative element of one step."""
    transition, scale = transition_into(problem, step), scale_of(problem, step)
    emission = rows_of(problem, whole, step)
    if problem.is_diagonal:
        return condition_element_diagonal(*transition, emission, scale)
    (A, b, C), seen = condition_run(*transition, emission, scale)
    padding = jnp.zeros((max(0, b.shape[0] - seen.shape[0]), seen.shape[1]), b.dtype)
    return Run(A, b, C, compress(jnp.concatenate([seen, padding])))


def scale_of(problem: Problem, step: Array) -> Array:
    """Return the largest variance of the initial state and of the step's noise."""
    noise = transition_into(problem, step).noise
    variances = [problem.initial_covariance.array, noise]
    return jnp.max(jnp.abs(jnp.stack(variances)))


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
