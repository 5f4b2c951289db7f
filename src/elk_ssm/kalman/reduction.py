r"""Many emissions of few dimensions: D numbers a step that say what E do.

Decorrelated and divided by their deviations, the emissions of a step are z = U x + e
with unit noise, U of `(E, D)`, and an orthogonal Q with Q'U = [T; 0] splits them

    Q1'z = T x + N(0, I)        D emissions
    |z - Q1 Q1'z|^2             which depends on no state, and is in the likelihood only

A static emission without gaps has one Q for all steps, and the products with it are one
for the whole series. Otherwise every step has its own.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm._jax import batched_alike
from elk_ssm.kalman.forward import Filtered, filter_of
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.roundings import LOG_TWO_PI, reciprocal, safe_sqrt
from elk_ssm.kalman.runs import compress_with_residual, triangular
from elk_ssm.kalman.scalar_updates import Rows
from elk_ssm.kalman.steps import Entry
from elk_ssm.linalg.small import matmul, transpose
from elk_ssm.linalg.structure import Dense, Diagonal
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.parallel.backend import by_backend

# Fewer emissions than this are quicker taken in as they are.
_FEWEST = 5


class Reduced(NamedTuple):
    """A problem of D emissions, and what the others add to the likelihood, `(T,)`."""

    problem: Problem
    terms: Array | float

    def completed(self, filtered: Filtered) -> Filtered:
        """Return what a filter found, the other terms added to its own."""
        means, covs, terms = filtered
        return means, covs, terms + self.terms


def reduced(problem: Problem) -> Reduced:
    """Reduce the emissions of a problem to as many as there are dimensions.

    Emissions without noise are not reduced but lost; whoever has some must look for
    them (see `delicate`) and take the problem as it was.
    """
    seen, size = problem.values.shape[1], problem.initial_mean.shape[0]
    if seen <= max(size, _FEWEST - 1):
        return Reduced(problem, 0.0)
    weights, values, terms = _rows_of_all(problem)
    noise = Diagonal(jnp.ones_like(problem.initial_mean))
    few = problem._replace(
        emission_weights=Dense(weights),
        emission_covariance=noise,
        values=values,
        observed=jnp.ones(values.shape, bool),
    )
    return Reduced(few, terms)


def _rows_of_all(problem: Problem) -> tuple[Array, Array, Array]:
    """Return `(T, D, D)` weights and `(T, D)` values with unit noise, and the terms."""
    H, R = problem.emission_weights, problem.emission_covariance
    if H.varies or R.varies or problem.exists is not None:
        return _by_step(problem)
    gaps = anywhere(~jnp.all(problem.observed))
    return lax.cond(gaps, _by_step, _at_once, problem)


def _by_step(problem: Problem) -> tuple[Array, Array, Array]:
    """Reduce the emission of every step by itself."""
    steps = filter_of(problem)

    def one(entry: Entry) -> tuple[Array, Array, Array]:
        return _reduce(steps.rows(entry))

    if steps.whole is None:
        return jax.vmap(one)(steps.entries)
    # Correlated noise is decorrelated anew only where there are gaps, which one step
    # after the other can tell and all steps at once cannot.
    return by_backend("auto", partial(lax.map, one), jax.vmap(one), steps.entries)


def _reduce(rows: Rows) -> tuple[Array, Array, Array]:
    """Reduce the emission of one step."""
    weights, values, log_terms = _unit_rows(rows)
    size = weights.shape[1]
    table, residual = compress_with_residual(jnp.append(weights, values[:, None], 1))
    spared = jnp.sum(rows.observed) - size
    return table[:, :size], table[:, size], -(residual + log_terms(spared)) / 2


@jax.custom_jvp
def _at_once(problem: Problem) -> tuple[Array, Array, Array]:
    """Reduce the emissions of all steps, which are the same and without gaps."""
    steps = filter_of(problem)
    entry = jax.tree.map(lambda x: x[0], steps.entries)
    first = steps.rows(entry)
    weights, _, log_terms = _unit_rows(first)
    seen, size = weights.shape
    eye = jnp.eye(seen, dtype=weights.dtype)
    table = triangular(jnp.append(weights, eye, axis=1), size)
    T, across = table[:size, :size], table[:size, size:]
    values = steps.values_like(entry, problem.values) * _deviations(first)
    few = matmul(values, transpose(across))
    residual = jnp.sum((values - matmul(few, across)) ** 2, axis=1)
    terms = -(residual + log_terms(seen - size)) / 2
    found = jnp.broadcast_to(T, (len(values), *T.shape)), few, terms
    return batched_alike(found, problem)


@_at_once.defjvp
def _at_once_jvp(primals: tuple, tangents: tuple) -> tuple:
    # Q depends on a column of zeros as no function with a derivative does; together
    # with the values of a step it is one (see `triangular`).
    found, moved = jax.jvp(_by_step, primals, tangents)
    return batched_alike(found, primals), moved


def _unit_rows(rows: Rows):
    """Return weights and values of unit noise, and what they add but for the residual.

    The last is a function of how many rows more were observed than are kept.
    """
    scale = _deviations(rows)
    noisy = rows.observed & (rows.variances > 0)
    logs = jnp.sum(jnp.log(jnp.where(noisy, rows.variances, 1)))
    weights, values = rows.weights * scale[:, None], rows.values * scale
    return weights, values, lambda spared: logs + LOG_TWO_PI * spared


def _deviations(rows: Rows) -> Array:
    """Return one over the standard deviations, zero for what is not observed."""
    noisy = rows.observed & (rows.variances > 0)
    return reciprocal(safe_sqrt(rows.variances), noisy)
