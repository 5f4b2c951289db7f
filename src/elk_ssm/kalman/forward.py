r"""The Kalman filter as a recursion: predict, then condition on one emission."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.runs import Run, no_rows
from elk_ssm.kalman.scalar_updates import condition_carefully
from elk_ssm.kalman.steps import (
    Entry,
    RunsOfSteps,
    propagate,
    steps_of,
    transition_into,
)
from elk_ssm.kalman.whitening import Emission
from elk_ssm.parallel.driver import run

Moments: TypeAlias = tuple[Array, Array]
# Filtered means and covariances, and what every step adds to the log likelihood.
Filtered: TypeAlias = tuple[Array, Array, Array]


def filter_by_steps(problem: Problem, update: Callable) -> Filtered:
    """Filter by one scan."""
    return run(filter_of(problem, update), backend="sequential")


def carefully(mean: Array, cov: Array, emission: Emission) -> tuple:
    """Condition N(mean, cov) on an emission; see `condition_carefully`."""
    return condition_carefully(mean, cov, emission.rows())


def filter_of(problem: Problem, update: Callable = carefully) -> "_Filter":
    """Return the filter of a problem of one group, or of a device's piece of it."""
    mean = jnp.zeros_like(problem.initial_mean)
    # What stands before step 0 does not matter, as F_0 is zero.
    initial = mean, jnp.diag(mean)
    return _Filter(**steps_of(problem, initial), update=update)


@dataclass(frozen=True)
class _Filter(RunsOfSteps[Moments]):
    """The state is the mean and covariance; `update` conditions them on an emission."""

    update: Callable

    def step(self, state: Moments, entry: Entry) -> tuple[Moments, Filtered]:
        predicted = propagate(transition_into(self.problem, entry), *state)
        mean, cov, term = self.update(*predicted, self.emission(entry))
        return (mean, cov), (mean, cov, term)

    def known(self, state: Moments) -> Run:
        mean, cov = state
        return Run(jnp.zeros_like(cov), mean, cov, no_rows(mean))

    def state(self, element: Run) -> Moments:
        return element.b, element.C
