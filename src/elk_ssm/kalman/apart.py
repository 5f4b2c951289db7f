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
moment is that of the run to t with the future of t as one more emission.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm._jax import is_traced
from elk_ssm.kalman.future import Future, Link
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.runs import (
    Run,
    as_emission,
    compress_with_residual,
    condition_run,
    condition_run_with_evidence,
    no_rows,
    no_run,
)
from elk_ssm.kalman.scalar_updates import square_root
from elk_ssm.kalman.steps import (
    Entry,
    Steps,
    Transition,
    propagate,
    steps_of,
    transition_into,
)
from elk_ssm.linalg.small import matmul, matvec, over_pivots, transpose
from elk_ssm.linalg.structure import to_dense
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.recursion import Element, State
from elk_ssm.parallel.time_axis import TimeAxis

_LOG_TWO_PI = 1.8378770664093453
_LOSS = 1e-4
_KEPT = "(d,d),(d),(d,d),(d,n),()"
Form: TypeAlias = Literal["auto", "covariance", "square_root"]
# Means, covariances, and log p(y_{0:t}).
Moments: TypeAlias = tuple[Array, Array, Array]


class Kept(NamedTuple):
    """A run from x_0, and what its data say that does not depend on x_0.

    `evidence: ()` sums log 2 pi s of the scalars observed, and squared residuals.
    """

    run: Run
    evidence: Array


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
        return condition_run(*into, self.rows(entry), jnp.max(jnp.abs(into.noise)))


@dataclass(frozen=True)
class _KeptFilter(_Apart[Kept, Kept]):
    """The state is the run so far; the output is itself."""

    def step(self, state: Kept, entry: Entry) -> tuple[Kept, Kept]:
        (A, b, C, rows), evidence = state
        into = self.transition(entry)
        through = matmul(into.weights, A), *propagate(into, b, C)
        emission = self.rows(entry)
        scale = jnp.max(jnp.abs(into.noise))
        found, seen, logs = condition_run_with_evidence(*through, emission, scale)
        logs = logs + _LOG_TWO_PI * jnp.sum(emission.observed)
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


def moments(prior: tuple[Array, Array], kept: Kept) -> Moments:
    """Return the moments of the state at the end of a run, and its log likelihood.

    Args:
        prior: m `(D,)` and S `(D, D)` of x_0 ~ N(m, S S').
        kept: The run.
    """
    (m, S), ((A, b, C, rows), evidence) = prior, kept
    U, z = rows[:, :-1], rows[:, -1]
    eye = jnp.eye(len(m), dtype=m.dtype)
    seen = jnp.append(matmul(U, S), (z - matvec(U, m))[:, None], axis=1)
    own = jnp.append(eye, jnp.zeros_like(m)[:, None], axis=1)
    found, residual = compress_with_residual(jnp.concatenate([seen, own]))
    T, w = found[:, :-1], found[:, -1]
    Y = transpose(_solve_lower(transpose(T), transpose(matmul(A, S))))
    pivots = jnp.log(jnp.abs(jnp.diagonal(T)))
    log_likelihood = -(evidence + residual + 2 * jnp.sum(pivots)) / 2
    return (
        matvec(A, m) + b + matvec(Y, w),
        matmul(Y, transpose(Y)) + C,
        log_likelihood,
    )


def _solve_lower(lower: Array, rhs: Array) -> Array:
    """Solve L x = rhs, L lower triangular `(D, D)`, rhs `(D, K)`."""
    size = lower.shape[0]
    index = jnp.arange(size)

    def clear(k: int | Array, x: Array) -> Array:
        row = x[k] / lower[k, k]
        below = jnp.where(index > k, lower[:, k], 0)
        return (x - below[:, None] * row).at[k].set(row)

    return over_pivots(size, clear, rhs)


def filter_apart(
    problem: Problem, axis: TimeAxis, backend: Backend
) -> tuple[Kept, Moments]:
    """Filter; return what was kept of every step, and the moments."""
    nothing = Kept(no_run(problem.initial_mean), jnp.zeros((), problem.values.dtype))
    recursion = _KeptFilter(**steps_of(problem, nothing))
    kept = run(recursion, backend=backend, axis=axis)
    return kept, jax.vmap(moments, (None, 0))(_prior(problem), kept)


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
    future = _ApartFuture(**steps_of(problem, no_rows(problem.initial_mean)))
    rows, links = run(future, backend=backend, axis=axis, reverse=True)

    def smoothed(kept: Kept, rows: Array) -> Moments:
        nothing = no_run(problem.initial_mean)
        seen = Kept(nothing._replace(rows=rows), jnp.zeros_like(kept.evidence))
        return moments(_prior(problem), _join(kept, seen))

    means, covs, _ = jax.vmap(smoothed)(kept, rows)
    return means, covs, links.A


def chosen_form(form: str, problem: Problem) -> Form:
    """Return the form to use, or say that there is none of that name."""
    if form not in get_args(Form):
        known = ", ".join(get_args(Form))
        raise ValueError(f"form must be one of {known}; got {form!r}.")
    if form != "auto":
        return form  # type: ignore[return-value]
    return "square_root" if is_vague(problem) else "covariance"


def is_vague(problem: Problem) -> bool:
    """Whether a prior is so wide that covariances lose it; not where values are traced.

    That is where it lets an emission vary by so much more than its noise that rounding
    of the one is more than 1e-4 of the other.
    """
    prior = problem.initial_covariance.variances()
    H, noise = problem.emission_weights.array, problem.emission_covariance.variances()
    if any(map(is_traced, (prior, H, noise))):
        return False
    # An emission without noise, zero here, is taken in exactly by covariances only.
    least = np.min(np.asarray(noise), initial=np.inf)
    most = np.max(np.asarray(prior)) * np.max(np.square(np.asarray(H)), initial=0)
    return bool(least > 0 and most * np.finfo(problem.values.dtype).eps > _LOSS * least)


def _prior(problem: Problem) -> tuple[Array, Array]:
    covariance = to_dense(problem.initial_covariance)
    return problem.initial_mean, square_root(covariance)
