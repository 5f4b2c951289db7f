r"""Filters and smoothers of models with exact emissions, step by step.

What is known for sure is told from rounding by a root of every covariance, and what a
diffuse prior leaves open is kept beside it: see `belief`. The smoother conditions what
is believed of a state on its future, as `future` does.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.belief import (
    Belief,
    as_square,
    condition_exactly,
    moments_of,
    product,
    root_of,
    valued,
)
from elk_ssm.kalman.forward import Filtered, Moments
from elk_ssm.kalman.future import Future, Link, future_steps
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.prior import proper_part
from elk_ssm.kalman.roundings import rounding_of
from elk_ssm.kalman.runs import Run, as_emission, no_rows
from elk_ssm.kalman.scalar_updates import condition_carefully
from elk_ssm.kalman.steps import (
    Entry,
    RunsOfSteps,
    propagate,
    steps_of,
    transition_into,
)
from elk_ssm.linalg.small import matmul, matvec, transpose
from elk_ssm.linalg.structure import Dense, to_dense
from elk_ssm.parallel.driver import run


@dataclass(frozen=True)
class _Exactly(RunsOfSteps[Belief]):
    """The output of a step is what is believed then, and what it adds to log p(y).

    Attributes:
        first: A root of the prior, `(D, D)`, and what it leaves unknown, `(D, d)`.
        noise: A root of Q, `(D, D)`; `None` where it varies.
    """

    first: tuple[Array, Array]
    noise: Array | None

    def step(self, state: Belief, entry: Entry) -> tuple[Belief, Any]:
        into = transition_into(self.problem, entry)
        begins = entry.step == 0
        F = into.weights
        mean, cov = propagate(into, state.mean, state.cov)
        noise = root_of(into.noise) if self.noise is None else self.noise
        own = jnp.where(begins, self.first[0], noise)
        root = product(lax.stop_gradient(F), state.root)
        root = lax.stop_gradient(as_square(jnp.append(root, own, axis=1)))
        cov = valued(cov, matmul(root, transpose(root)))
        unknown = jnp.where(begins, self.first[1], product(F, state.unknown))
        sizes = matvec(jnp.abs(F), jnp.abs(state.mean)) + jnp.abs(into.offset)
        own = rounding_of(sizes) / 4
        own = jnp.where((jnp.arange(len(mean)) + entry.step) % 2 > 0, own, -own)
        rounded = matvec(F, state.error) + own
        belief = Belief(mean, cov, root, unknown, lax.stop_gradient(rounded))
        after, term = condition_exactly(belief, self.rows(entry))
        return after, (after, term)

    def known(self, state: Belief) -> Run:
        """Return the run that ends in what is believed, where nothing is unknown."""
        zero = jnp.zeros_like(state.cov)
        return Run(zero, state.mean, state.cov, no_rows(state.mean))

    def state(self, element: Run) -> Belief:
        """Return what is believed at the end of a run."""
        zero = jnp.zeros_like(self.first[1])
        root = root_of(element.C)
        return Belief(element.b, element.C, root, zero, jnp.zeros_like(element.b))


def believe(problem: Problem, *, diffuse: bool) -> tuple[Belief, Array]:
    """Filter step by step; return every belief, and what every step adds to log p(y).

    Args:
        problem: The model and its data, one group of dimensions.
        diffuse: Whether a variance of the first state may be infinite.
    """
    finite, known = proper_part(problem)
    problem = problem._replace(initial_covariance=Dense(finite))
    unknown = jnp.diag(1 - known)[:, : None if diffuse else 0]
    prior = root_of(finite)
    Q = problem.covariance
    noise = None if Q.varies else lax.stop_gradient(root_of(to_dense(Q)))
    mean = jnp.zeros_like(problem.initial_mean)
    none = jnp.diag(mean)
    start = Belief(mean, none, none, jnp.zeros_like(unknown), mean)
    first = lax.stop_gradient(prior), unknown
    steps = _Exactly(**steps_of(problem, start), first=first, noise=noise)
    return run(steps, backend="sequential")


def filter_exactly(problem: Problem, *, diffuse: bool = False) -> Filtered:
    """Filter by one scan."""
    beliefs, terms = believe(problem, diffuse=diffuse)
    return *jax.vmap(moments_of)(beliefs), terms


def _without_garbage(rows: Array) -> Array:
    """Clear what roundings left in rows: it would settle what is unknown."""
    U = jnp.abs(rows[:, :-1])
    sizes = jnp.sqrt(jnp.sum(U * U, axis=0))
    least = 32 * len(sizes) * jnp.finfo(rows.dtype).eps * sizes
    known = jnp.where(least[None, :] >= U, 0.0, rows[:, :-1])
    said = jnp.where(jnp.any(known != 0, axis=1), rows[:, -1], 0.0)
    return jnp.append(known, said[:, None], axis=1)


@dataclass(frozen=True)
class _Given(Future):
    """The output is the smoothed mean and covariance, and the link into a step."""

    beliefs: Belief

    def step(self, state: Array, entry: Entry) -> tuple[Array, Any]:
        belief = jax.tree.map(lambda x: x[entry.step], self.beliefs)
        emission = as_emission(state)
        if belief.unknown.shape[1]:
            emission = as_emission(_without_garbage(state))
            smoothed = moments_of(condition_exactly(belief, emission)[0])
        else:
            smoothed = condition_carefully(
                belief.mean, belief.cov, emission, unrolled=False
            )[:2]
        before, link = super().step(state, entry)
        return before, (smoothed, link)


def smooth_exactly(
    problem: Problem, *, diffuse: bool = False
) -> tuple[Filtered, tuple[Array, Array, Array]]:
    """Filter and smooth by two scans.

    Returns:
        What `filter_exactly` does; smoothed means, covariances, and A of the link into
        every step.
    """
    beliefs, terms = believe(problem, diffuse=diffuse)
    (means, covs), links = _look_back(problem, beliefs)
    return (*jax.vmap(moments_of)(beliefs), terms), (means, covs, links.A)


def links_exactly(problem: Problem) -> Link:
    """Return p(z_t | z_{t-1}, y_{t:T-1}) for all steps; of step 0 given all data."""
    (means, covs), links = _look_back(problem, believe(problem, diffuse=True)[0])
    first = Link(jnp.zeros_like(covs[0]), means[0], covs[0])
    return jax.tree.map(lambda x, y: x.at[0].set(y), links, first)


def _look_back(problem: Problem, beliefs: Belief) -> tuple[Moments, Link]:
    finite = Dense(proper_part(problem)[0])
    problem = problem._replace(initial_covariance=finite)
    given = _Given(**future_steps(problem), beliefs=beliefs)
    return run(given, backend="sequential", reverse=True)
