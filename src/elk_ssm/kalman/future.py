r"""The two-filter smoother: the filtered moments, conditioned on the future.

What y_{t+1:T-1} say about z_t is a likelihood that no prior enters, held as D scalar
observations (see `runs`). Backwards,

    p(z_t | z_{t-1}, y_{t:T-1}) = N(A_t z_{t-1} + b_t, C_t)

comes from conditioning the dynamics into t on y_t and on the future of t, and leaves
the future as seen from z_{t-1}. The smoothed moments are N(m_t, P_t) conditioned on the
future of t, and Cov(z_{t-1}, z_t | y) = P^s_{t-1} A_t'.

Nothing is divided by a predicted covariance, which the smoother of Rauch, Tung and
Striebel inverts: F and Q may be singular, a gap may be long, and a state that forgets
its past exponentially fast is not reconstructed from its successor.

Exact emissions of a state that is known already are constraints on states before, with
weights that may grow by a factor each step until their roundings are more than all
else that is known. So beside exact emissions no row says more of a state than 1 / eps
of what its own noise says of it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.delicate import has_noiseless_emissions
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.runs import Run, as_emission, compress, condition_run, no_rows
from elk_ssm.kalman.scalar_updates import condition_carefully
from elk_ssm.kalman.steps import Entry, RunsOfSteps, steps_of
from elk_ssm.linalg.small import matvec
from elk_ssm.linalg.structure import to_dense, variances_of
from elk_ssm.parallel.recursion import Recursion


class Link(NamedTuple):
    """p(z_t | z_{t-1}, y_{t:T-1}) = N(z_t; A z_{t-1} + b, C)."""

    A: Array
    b: Array
    C: Array


@dataclass(frozen=True)
class Future(RunsOfSteps[Array]):
    """Backwards in time; the state is what y_{t+1:T-1} say about z_t, as rows.

    The output of a step is the link into it.

    Attributes:
        sizes: Variances `(D,)` of which rows say no more than 1 / eps; zero: no bound.
    """

    sizes: Array

    def step(self, state: Array, entry: Entry) -> tuple[Array, Any]:
        """Go one step back."""
        run, own = self.conditioned(entry)
        run, later = condition_run(*run, as_emission(state))
        rows = compress(jnp.concatenate([own, later]))
        return _bounded(rows, self.sizes), Link(*run)

    def combine(self, earlier: Run, later: Run) -> Run:
        """Join two runs, of which `earlier` is the later one in time."""
        return super().combine(later, earlier)

    def known(self, state: Array) -> Run:
        """Return the run with these rows."""
        zero = jnp.zeros_like(state[:, :-1])
        return Run(zero, zero[0], zero, state)

    def state(self, element: Run) -> Array:
        """Return the rows."""
        return element.rows


@dataclass(frozen=True)
class _TwoFilters(Future):
    """The output is the smoothed mean and covariance, and A of the link into a step."""

    means: Array
    covs: Array
    rare: bool = False

    def step(self, state: Array, entry: Entry) -> tuple[Array, Any]:
        filtered = self.means[entry.step], self.covs[entry.step]
        emission = as_emission(state)
        smoothed = condition_carefully(*filtered, emission, unrolled=False)[:2]
        before, link = super().step(state, entry)
        return before, (*smoothed, link.A)


def future_of(problem: Problem) -> Recursion:
    """Return the links into every step; that into step 0 has A = 0."""
    return Future(**future_steps(problem))


def two_filters(
    problem: Problem, filtered: tuple[Array, ...], *, rare: bool = False
) -> Recursion:
    """Return the smoother, from the filtered means and covariances; see `Recursion`."""
    means, covs, _ = filtered
    return _TwoFilters(**future_steps(problem), means=means, covs=covs, rare=rare)


def future_steps(problem: Problem) -> dict[str, Any]:
    """Return what a `Future` is made of."""
    steps = steps_of(problem, no_rows(problem.initial_mean))
    return {**steps, "sizes": _sizes(problem)}


def _sizes(problem: Problem) -> Array:
    """Return how much every dimension varies by its own noise, if there is need."""
    F = to_dense(problem.weights) ** 2
    noise = variances_of(problem.covariance)
    F = jnp.min(F, axis=0) if F.ndim > 2 else F
    own = jnp.min(noise, axis=0) if noise.ndim > 1 else noise
    for _ in range(len(own)):
        # What has none moves by that of others.
        own = jnp.where(own > 0, own, matvec(F, own))
    start = variances_of(problem.initial_covariance)
    start = jnp.where(jnp.isfinite(start), start, 0.0)
    sizes = jnp.where(own > 0, own, start)
    return lax.stop_gradient(jnp.where(has_noiseless_emissions(problem), sizes, 0.0))


def _bounded(rows: Array, sizes: Array) -> Array:
    most = 1 / jnp.finfo(rows.dtype).eps
    known = lax.stop_gradient(matvec(rows[:, :-1] ** 2, sizes))
    share = jnp.sqrt(most / jnp.where(known > most, known, most))
    return rows * share[:, None]
