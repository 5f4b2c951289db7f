r"""The steps of a linear-Gaussian model: what every recursion over it reads of them.

With F_0 = 0, c_0 = m and Q_0 = P, step 0 is a step like the others. An entry of a
recursion is the position of a step, and what of the model changes over time; with it
the model is one of a single step.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.roundings import scales_of
from elk_ssm.kalman.runs import Run, combine_runs, compress, condition_run, no_run
from elk_ssm.kalman.scalar_updates import Rows
from elk_ssm.kalman.whitening import Emission, WhitenedEmission, whiten_emission
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import to_dense, variances_of
from elk_ssm.parallel.recursion import Element, Recursion, State


class Transition(NamedTuple):
    """F `(D, D)`, c `(D,)` and Q `(D, D)` into one step."""

    weights: Array
    offset: Array
    noise: Array


class Entry(NamedTuple):
    """The position of a step, and the fields of a `Problem` that vary, at that step."""

    step: Array
    varying: dict[str, Any]


@dataclass(frozen=True)
class Steps(Recursion[State, Element]):
    """A recursion over the steps of a model.

    Attributes:
        entries: The steps.
        initial: The state before the first of them.
        problem: The model and its data, one group of dimensions.
        whole: Its decorrelated emission, if static.
        seen: A variance of a state that is seen as large as the noise of an emission,
            `()`: the scale of a state that nothing moves.
    """

    entries: Entry
    initial: State
    problem: Problem
    whole: WhitenedEmission | None
    seen: Array

    def emission(self, entry: Entry) -> Emission:
        """Return the emission of one step."""
        here = self.problem._replace(**entry.varying)
        weights, covariance = here.emission_weights, here.emission_covariance
        if here.exists is not None:
            weights = weights.where(here.exists, 0.0)
        return Emission(weights, covariance, here.values, here.observed, self.whole)

    def rows(self, entry: Entry) -> Rows:
        """Return the emission of one step as independent scalars."""
        return self.emission(entry).rows()

    def values_like(self, entry: Entry, values: Array) -> Array:
        """Return the decorrelated values of many steps, which are `entry` but for them.

        Args:
            entry: The step; its emission is decorrelated once.
            values: `(n, E)`.
        """

        def one(values: Array) -> Array:
            varying = entry.varying | {"values": values}
            return self.rows(entry._replace(varying=varying)).values

        return jax.vmap(one)(values)

    def conditioned(self, entry: Entry) -> tuple[tuple[Array, Array, Array], Array]:
        """Return the transition into a step given its emission; see `condition_run`."""
        transition = transition_into(self.problem, entry)
        # Of the initial state and of the step's noise.
        prior = to_dense(self.problem.initial_covariance)
        scales = scales_of(transition.weights, prior, transition.noise)
        scales = jnp.where(jnp.max(scales) > 0, scales, self.seen)
        return condition_run(*transition, self.rows(entry), scales)


@dataclass(frozen=True)
class RunsOfSteps(Steps[State, Run]):
    """A recursion whose elements are the runs of a model's steps, forwards in time."""

    def element(self, entry: Entry) -> Run:
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
    return {
        "entries": entries_of(problem),
        "initial": initial,
        "problem": problem,
        "whole": whole,
        "seen": _seen(problem),
    }


def _seen(problem: Problem) -> Array:
    squares = jnp.max(to_dense(problem.emission_weights) ** 2, initial=0)
    noise = jnp.max(variances_of(problem.emission_covariance), initial=0)
    ok = (squares > 0) & (noise > 0) & jnp.isfinite(noise)
    ratio = jnp.where(ok, noise, 1) / jnp.where(ok, squares, 1)
    return lax.stop_gradient(ratio)


def entries_of(problem: Problem) -> Entry:
    """Return the steps of a problem."""
    return Entry(jnp.arange(problem.num_steps), problem.varying)


def entry_at(problem: Problem, t: Array) -> Entry:
    """Return one of them."""
    return Entry(t, jax.tree.map(lambda x: x[t], problem.varying))


def transition_into(problem: Problem, entry: Entry) -> Transition:
    """Return the transition into a step; into step 0 it is the initial distribution."""
    here, first = problem._replace(**entry.varying), (entry.step == 0) & problem.begins
    into = Transition(
        jnp.where(first, 0.0, to_dense(here.weights)),
        jnp.where(first, here.initial_mean, here.offsets),
        jnp.where(first, to_dense(here.initial_covariance), to_dense(here.covariance)),
    )
    if here.exists is None:
        return into
    # Past the end the state is zero for sure, which says nothing about those before.
    return Transition(*(jnp.where(here.exists, x, 0.0) for x in into))


def propagate(transition: Transition, mean: Array, cov: Array) -> tuple[Array, Array]:
    """Return the mean and covariance of F z + c + N(0, Q) for z ~ N(mean, cov)."""
    F, c, Q = transition
    return matvec(F, mean) + c, symmetrize(matmul(F, matmul(cov, transpose(F)))) + Q
