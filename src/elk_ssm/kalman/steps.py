r"""The steps of a linear-Gaussian model: what every recursion over it reads of them.

With F_0 = 0, c_0 = m and Q_0 = P, step 0 is a step like the others. An entry of a
recursion is the position of a step; its parameters are read where they are used, so
that those that do not change over time are not held T times.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.runs import Run, combine_runs, compress, condition_run, no_run
from elk_ssm.kalman.scalar_updates import (
    Rows,
    WhitenedEmission,
    emission_rows,
    whiten_emission,
)
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import at_step, to_dense
from elk_ssm.parallel.recursion import Recursion

State = TypeVar("State")


class Transition(NamedTuple):
    """F `(D, D)`, c `(D,)` and Q `(D, D)` into one step."""

    weights: Array
    offset: Array
    noise: Array


@dataclass(frozen=True)
class Steps(Recursion[State, Run]):
    """A recursion whose elements are the runs of a model's steps, forwards in time.

    Attributes:
        entries: Positions of the steps, `(T,)`.
        initial: The state before the first of them.
        problem: The model and its data, one group of dimensions.
        whole: Its decorrelated emission, if static.
    """

    entries: Array
    initial: State
    problem: Problem
    whole: WhitenedEmission | None

    def rows(self, step: Array) -> Rows:
        """Return the emission of one step as independent scalars."""
        problem = self.problem
        weights = at_step(problem.emission_weights, step)
        if problem.exists is not None:
            weights = weights.where(problem.exists[step], 0.0)
        covariance = at_step(problem.emission_covariance, step)
        data = problem.values[step], problem.observed[step]
        return emission_rows(weights, covariance, *data, self.whole)

    def conditioned(self, step: Array) -> tuple[tuple[Array, Array, Array], Array]:
        """Return the transition into a step given its emission; see `condition_run`."""
        transition = transition_into(self.problem, step)
        # The largest variance of the initial state and of the step's noise.
        prior = to_dense(self.problem.initial_covariance)
        scale = jnp.max(jnp.abs(jnp.stack([prior, transition.noise])))
        return condition_run(*transition, self.rows(step), scale)

    def element(self, entry: Array) -> Run:
        """Return one step and what its emission says."""
        run, seen = self.conditioned(entry)
        size = run[1].shape[0]
        padding = jnp.zeros((max(0, size - seen.shape[0]), seen.shape[1]), seen.dtype)
        return Run(*run, compress(jnp.concatenate([seen, padding])))

    def combine(self, earlier: Run, later: Run) -> Run:
        """Join two runs of steps."""
        return combine_runs(earlier, later)

    def nothing(self) -> Run:
        """Return the run of no steps."""
        return no_run(self.problem.initial_mean)


def steps_of(problem: Problem, initial: Any) -> dict[str, Any]:
    """Return what `Steps` is made of; a static emission is decorrelated only once."""
    H, R = problem.emission_weights, problem.emission_covariance
    static = R.mixes and not R.varies and not H.varies
    whole = whiten_emission(to_dense(H), to_dense(R)) if static else None
    entries = jnp.arange(problem.num_steps)
    return {"entries": entries, "initial": initial, "problem": problem, "whole": whole}


def transition_into(problem: Problem, step: Array) -> Transition:
    """Return the transition into a step; into step 0 it is the initial distribution."""
    weights = to_dense(at_step(problem.weights, step))
    noise = to_dense(at_step(problem.covariance, step))
    first = (step == 0) & problem.begins
    into = Transition(
        jnp.where(first, 0.0, weights),
        jnp.where(first, problem.initial_mean, problem.offsets[step]),
        jnp.where(first, to_dense(problem.initial_covariance), noise),
    )
    if problem.exists is None:
        return into
    # Past the end the state is zero for sure, which says nothing about those before.
    return Transition(*(jnp.where(problem.exists[step], x, 0.0) for x in into))


def propagate(transition: Transition, mean: Array, cov: Array) -> tuple[Array, Array]:
    """Return the mean and covariance of F z + c + N(0, Q) for z ~ N(mean, cov)."""
    F, c, Q = transition
    return matvec(F, mean) + c, symmetrize(matmul(F, matmul(cov, transpose(F)))) + Q
