r"""Filters and smoothers that keep the initial state apart, right for diffuse priors.

A prior of variance 1e6 leaves float32 nothing of a posterior of variance 1. So the
recursion runs without the prior: with x_0 a variable, the steps 0, ..., t are the run

    x_t = A x_0 + b + N(0, C),      and rows:  U x_0 + N(0, I) = z  in the data's words

(see `runs`; de Jong, 1991, The diffuse Kalman filter, carries the same as an augmented
filter). The prior N(m, S S') is D more rows in units of itself, x_0 = m + S v, and an
orthogonal transformation makes all of them triangular,

    [U S | z - U m]        [T | w]
    [ I  |    0   ]  -->   [0 | e]          v | y_{0:t} ~ N(T^-1 w, T^-1 T^-T)

    mean  A m + b + Y w         covariance  Y Y' + C,         Y = A S T^-1
    -2 log p(y_{0:t}) = sum log 2 pi s  +  2 log |det T|  +  all residuals squared

which is a square-root information filter for x_0 only: nothing large is subtracted from
anything large, covariances are PSD by construction, and runs combine associatively
(Yaghoobi et al., arXiv 2207.00426, hold their elements by factors likewise). A smoothed
moment is that of the run to t with the future of t as one more emission. A diffuse
dimension of x_0 has no row of its own; T has no pivot for what no datum is about yet.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.future import Future, Link, future_steps
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.prior import Kept, Moments, moments, prior_of
from elk_ssm.kalman.roundings import LOG_TWO_PI, scales_of
from elk_ssm.kalman.runs import (
    Run,
    as_emission,
    compress_with_residual,
    condition_run,
    condition_run_with_evidence,
    no_run,
)
from elk_ssm.kalman.steps import (
    Entry,
    Steps,
    Transition,
    propagate,
    steps_of,
    transition_into,
)
from elk_ssm.linalg.small import matmul
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.recursion import Element, State
from elk_ssm.parallel.time_axis import TimeAxis

_KEPT = "(d,d),(d),(d,d),(d,n),()"


@dataclass(frozen=True)
class _Apart(Steps[State, Element]):
    """Steps of which the one into step 0 does nothing, as x_0 is a variable."""

    def transition(self, entry: Entry) -> Transition:
        """Return the transition into a step, from x_0 into itself for step 0."""
        F, c, Q = transition_into(self.problem, entry)
        first = (entry.step == 0) & self.problem.begins
        eye = jnp.eye(len(c), dtype=c.dtype)
        return Transition(
            jnp.where(first, eye, F), jnp.where(first, 0, c), jnp.where(first, 0, Q)
        )

    def conditioned(self, entry: Entry) -> tuple[tuple[Array, Array, Array], Array]:
        """Return the transition given the emission; a prior sets no scale of noise."""
        into = self.transition(entry)
        scales = scales_of(into.weights, into.noise)
        return condition_run(*into, self.rows(entry), scales)


@dataclass(frozen=True)
class _KeptFilter(_Apart[Kept, Kept]):
    """The state is the run so far; the output is itself."""

    def step(self, state: Kept, entry: Entry) -> tuple[Kept, Kept]:
        (A, b, C, rows), evidence = state
        into = self.transition(entry)
        through = matmul(into.weights, A), *propagate(into, b, C)
        emission = self.rows(entry)
        scales = scales_of(into.weights, into.noise)
        found, seen, logs = condition_run_with_evidence(*through, emission, scales)
        logs = logs + LOG_TWO_PI * jnp.sum(emission.observed, dtype=logs.dtype)
        rows, residual = compress_with_residual(jnp.concatenate([seen, rows]))
        state = Kept(Run(*found, rows), evidence + logs + residual)
        return state, state

    def element(self, entry: Entry) -> Kept:
        return self.step(self.nothing(), entry)[0]

    def combine(self, earlier: Kept, later: Kept) -> Kept:
        return _join(earlier, later)

    def known(self, state: Kept) -> Kept:
        return state

    def state(self, element: Kept) -> Kept:
        return element

    def nothing(self) -> Kept:
        return Kept(no_run(self.problem.initial_mean), self.initial.evidence)

    def outputs(self, before: Kept, entries: Entry, after: Kept) -> Kept:
        del before, entries
        return after


@dataclass(frozen=True)
class _ApartFuture(_Apart[Array, Run], Future):
    """The output is the future as seen from each state, and the link into it."""

    def step(self, state: Array, entry: Entry) -> tuple[Array, tuple[Array, Link]]:
        before, link = super().step(state, entry)
        return before, (state, link)


@partial(jnp.vectorize, signature=f"{_KEPT},{_KEPT}->{_KEPT}")
def _combine(*members: Array) -> tuple[Array, ...]:
    (A, b, C, rows, evidence), (F, c, Q, later, more) = members[:5], members[5:]
    (A, b, C), seen, logs = condition_run_with_evidence(A, b, C, as_emission(later))
    rows, residual = compress_with_residual(jnp.concatenate([seen, rows]))
    moved = propagate(Transition(F, c, Q), b, C)
    return matmul(F, A), *moved, rows, evidence + more + logs + residual


def _join(earlier: Kept, later: Kept) -> Kept:
    *found, evidence = _combine(
        *earlier.run, earlier.evidence, *later.run, later.evidence
    )
    return Kept(Run(*found), evidence)


def filter_apart(
    problem: Problem, axis: TimeAxis, backend: Backend
) -> tuple[Kept, Moments]:
    """Filter; return what was kept of every step, and the moments."""
    kept = run(_filter_of(problem), backend=backend, axis=axis)
    return kept, jax.vmap(moments, (None, 0))(prior_of(problem), kept)


def evidence_of(problem: Problem, axis: TimeAxis, log_likelihoods: Array) -> Array:
    """Return log p(y_{0:T-1}), from log p(y_{0:t}) at every step."""
    count = jnp.asarray(axis.size * problem.num_steps)
    if problem.exists is not None:
        count = axis.total(jnp.sum(problem.exists.astype(jnp.int32)))
    return axis.row(log_likelihoods, count - 1)


def smooth_apart(
    problem: Problem, kept: Kept, axis: TimeAxis, backend: Backend
) -> tuple[Array, Array, Array]:
    """Return the smoothed moments, and A of the link into every step (see `future`)."""
    rows, links = run(_future_of(problem), backend=backend, axis=axis, reverse=True)
    means, covs, _ = jax.vmap(partial(_given_all, problem))(kept, rows)
    return means, covs, links.A


def links_apart(problem: Problem, backend: Backend) -> Link:
    """Return p(z_t | z_{t-1}, y_{t:T-1}) for all steps; of step 0 given all data."""
    rows, links = run(_future_of(problem), backend=backend, reverse=True)
    begin = _filter_of(problem)
    entry = jax.tree.map(lambda x: x[0], begin.entries)
    mean, cov, _ = _given_all(problem, begin.element(entry), rows[0])
    first = Link(jnp.zeros_like(cov), mean, cov)
    return jax.tree.map(lambda x, y: x.at[0].set(y), links, first)


def _filter_of(problem: Problem) -> _KeptFilter:
    nothing = Kept(no_run(problem.initial_mean), jnp.zeros((), problem.values.dtype))
    return _KeptFilter(**steps_of(problem, nothing))


def _future_of(problem: Problem) -> _ApartFuture:
    return _ApartFuture(**future_steps(problem))


def _given_all(problem: Problem, kept: Kept, rows: Array) -> Moments:
    """Return the moments given a run to z_t and what later data say about z_t."""
    nothing = no_run(problem.initial_mean)
    seen = Kept(nothing._replace(rows=rows), jnp.zeros_like(kept.evidence))
    return moments(prior_of(problem), _join(kept, seen))
