r"""Exact emissions: filtering with what is known for sure told from rounding.

An emission without noise leaves no variance along itself, and of a covariance it leaves
its roundings, which no threshold tells from a small variance where the emissions are
ill conditioned. So a root of the covariance, P = S S', is carried beside it. For a
scalar z = h'x + N(0, r), with v = S'h, s = v'v + r,

    S <- S - S v v' / (s + sqrt(r s))          K = S v / s        (Potter, 1963)

which for r = 0 is a projection: what it leaves along h is a rounding of S itself, eps
of a deviation and eps^2 of a variance. Sums that cancel to less than eps^(3/4) of their
terms are zero, so ranks are those of the model, and a scalar of which v = 0 is known.

Dimensions that a prior leaves open are columns of their own (Koopman, 1997, Exact
initial Kalman filtering and smoothing for nonstationary time series models),

    x = m + A d + S e,      d of infinite variance, e of variance one.

A scalar that sees them, u = A'h, settles one direction of d: with K = A u / u'u,

    m <- m + K (z - h'm)      A <- A - K u'      S <- [(I - K h') S, sqrt(r) K]

and adds -log(2 pi u'u) / 2 to the log likelihood, the diffuse one.

The root has no derivative where a variance is zero. Derivatives are those of the
recursion of covariances, whose values and decisions are the root's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.forward import Filtered, Moments
from elk_ssm.kalman.future import Future, Link, future_steps
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.roundings import (
    LOG_TWO_PI,
    log_normal,
    reciprocal,
    rounding_of,
    safe_sqrt,
)
from elk_ssm.kalman.runs import Run, as_emission, no_rows, reflected
from elk_ssm.kalman.scalar_updates import (
    Rows,
    condition_carefully,
    condition_row,
    over_rows,
)
from elk_ssm.kalman.steps import (
    Entry,
    RunsOfSteps,
    propagate,
    steps_of,
    transition_into,
)
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import Dense, to_dense
from elk_ssm.parallel.driver import run


class Belief(NamedTuple):
    """x = mean + unknown d + root e.

    Attributes:
        mean: `(D,)`.
        cov: root root', `(D, D)`.
        root: `(D, D)`, without derivatives.
        unknown: `(D, d)`; d = 0 where no prior is diffuse.
        error: What roundings may have made of the mean, one draw, `(D,)`: each of the
            size of one, carried along as the mean is.
    """

    mean: Array
    cov: Array
    root: Array
    unknown: Array
    error: Array


def _tiny(like: Array, power: float = 0.5) -> Any:
    return jnp.finfo(like.dtype).eps ** power


def _valued(x: Array, value: Array) -> Array:
    """Return a number of this value that has the derivatives of x."""
    return lax.stop_gradient(value) + (x - lax.stop_gradient(x))


def _cleared(x: Array, terms: Array) -> Array:
    """Return x without what rounding left of sums of terms of these sizes."""
    gone = jnp.abs(x) <= _tiny(x, 0.75) * terms
    return x - lax.stop_gradient(jnp.where(gone, x, 0.0))


def _product(left: Array, right: Array) -> Array:
    sizes = matmul(jnp.abs(left), jnp.abs(right))
    return _cleared(matmul(left, right), lax.stop_gradient(sizes))


def _as_square(columns: Array) -> Array:
    """Return a root `(D, D)` of as many columns `(D, n)`, of the same rank."""
    size, count = columns.shape
    table, index = transpose(columns), jnp.arange(count)
    least = (_tiny(columns, 0.75) ** 2) * jnp.sum(table * table, axis=0)

    def clear(k: Array, carry: tuple) -> tuple:
        table, row = carry
        x = jnp.where(index >= row, table[:, k], 0.0)
        found = jnp.sum(x * x) > least[k]
        table = jnp.where(found, reflected(table, x, row), table)
        # Below the pivot nothing but roundings is left.
        row = row + found.astype(row.dtype)
        table = table.at[:, k].set(jnp.where(index < row, table[:, k], 0.0))
        return table, row

    start = table, jnp.zeros((), int)
    table, _ = lax.fori_loop(0, size, clear, start)
    return transpose(table[:size])


class _Sizes(NamedTuple):
    """What roundings within a step are measured by, of every dimension, `(D,)`.

    Attributes:
        deviations: What a row of the root came of.
        reach: What a row of `unknown` came of.
    """

    deviations: Array
    reach: Array


def condition_exactly(belief: Belief, rows: Rows) -> tuple[Belief, Array]:
    """Condition on all rows.

    Returns:
        What is believed then, and the log density of the observed values, `()`.
    """
    observed = jnp.where(rows.observed, rows.values, 0.0)
    # A decorrelated value may be the small difference of large ones.
    largest = lax.stop_gradient(jnp.max(jnp.abs(observed), initial=0))

    def take_in(carry: tuple, row: tuple) -> tuple:
        belief, sizes, total = carry
        h, r, z, ok = row
        mean, cov, root, unknown, rounded = belief
        spread = jnp.sum(jnp.abs(h) * sizes.deviations)
        v = matvec(transpose(root), lax.stop_gradient(h))
        v = jnp.where(jnp.sqrt(jnp.sum(v * v)) <= _tiny(v) * spread, 0.0, v)
        a = jnp.sum(v * v)
        u = jnp.sum(unknown * h[:, None], axis=0)
        open_ = jnp.sum(jnp.abs(u)) > _tiny(u) * jnp.sum(jnp.abs(h) * sizes.reach)
        known = (r <= 0) & (a <= 0)
        open_, proper = ok & open_, ok & ~known & ~open_

        g = jnp.sum(cov * h[None, :], axis=-1)
        variance = _valued(jnp.sum(g * h), a)
        g = _valued(g, matvec(root, v))
        cov, K, _ = condition_row(cov, h, g, variance, r, proper)
        noise = lax.stop_gradient(jnp.where(r > 0, r, 0.0))
        share = reciprocal(a + noise + jnp.sqrt(noise * (a + noise)), proper)
        root = root - _outer(matvec(root, v), v * share)

        error = z - jnp.sum(h * mean)
        here = rounding_of(largest + jnp.sum(jnp.abs(h * mean)))
        carried = 4 * jnp.sum(jnp.abs(h * rounded))
        slack = lax.stop_gradient(64 * (here + carried) + _tiny(v) * spread)
        s = jnp.where(known, 0.0, variance + r)
        density = log_normal(error, s, ok & ~open_, slack)
        if unknown.shape[1]:
            square = jnp.where(open_, jnp.sum(u * u), 1.0)
            settled = matvec(unknown, u) * reciprocal(square, open_)
            less = _eye(mean) - _outer(settled, h)
            turned = matmul(less, matmul(belief.cov, transpose(less)))
            turned = turned + r * _outer(settled, settled)
            own = safe_sqrt(noise) * lax.stop_gradient(settled)
            columns = _product(lax.stop_gradient(less), belief.root)
            columns = _as_square(jnp.append(columns, own[:, None], axis=1))
            K = jnp.where(open_, settled, K)
            cov = jnp.where(open_, turned, cov)
            root = jnp.where(open_, columns, root)
            unknown = unknown - _outer(settled, u)
            density = density - jnp.where(open_, jnp.log(square) + LOG_TWO_PI, 0.0) / 2
            grown = jnp.abs(settled) * (spread + safe_sqrt(noise))
            sizes = sizes._replace(deviations=sizes.deviations + grown)
        root, gain = lax.stop_gradient((root, K))
        rounded = rounded - gain * (jnp.sum(h * rounded) - here / 4)
        cov = _valued(symmetrize(cov), matmul(root, transpose(root)))
        belief = Belief(mean + K * error, cov, root, unknown, rounded)
        return belief, lax.stop_gradient(sizes), total + density

    reach = jnp.sum(jnp.abs(belief.unknown), axis=1)
    sizes = _Sizes(_deviations(belief.root), lax.stop_gradient(reach))
    start = belief, sizes, jnp.zeros((), belief.mean.dtype)
    belief, sizes, total = over_rows(take_in, start, rows)
    return _without_rounding(belief, sizes, rows), total


def _without_rounding(belief: Belief, sizes: _Sizes, rows: Rows) -> Belief:
    """Clear the rows of which nothing but rounding is left."""
    left = jnp.sum(jnp.abs(belief.unknown), axis=1)
    settled = left <= _tiny(left) * sizes.reach
    unknown = jnp.where(settled[:, None], 0.0, belief.unknown)
    # Others than exact scalars may leave a variance that is small and right.
    exact = jnp.any(rows.observed & (rows.variances <= 0))
    deviations = _deviations(belief.root)
    known = exact & (deviations <= _tiny(deviations) * sizes.deviations)
    root = jnp.where(known[:, None], 0.0, belief.root)
    cov = _valued(belief.cov, matmul(root, transpose(root)))
    return belief._replace(root=root, cov=cov, unknown=unknown)


def _deviations(root: Array) -> Array:
    return jnp.sqrt(jnp.sum(root * root, axis=1))


def _outer(left: Array, right: Array) -> Array:
    return left[:, None] * right[None, :]


def _eye(like: Array) -> Array:
    return jnp.eye(like.shape[0], dtype=like.dtype)


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
        noise = _root_of(into.noise) if self.noise is None else self.noise
        own = jnp.where(begins, self.first[0], noise)
        root = _product(lax.stop_gradient(F), state.root)
        root = lax.stop_gradient(_as_square(jnp.append(root, own, axis=1)))
        cov = _valued(cov, matmul(root, transpose(root)))
        unknown = jnp.where(begins, self.first[1], _product(F, state.unknown))
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
        root = _root_of(element.C)
        return Belief(element.b, element.C, root, zero, jnp.zeros_like(element.b))


def believe(problem: Problem, *, diffuse: bool) -> tuple[Belief, Array]:
    """Filter step by step; return every belief, and what every step adds to log p(y).

    Args:
        problem: The model and its data, one group of dimensions.
        diffuse: Whether a variance of the first state may be infinite.
    """
    problem, open_ = _proper(problem)
    unknown = jnp.diag(open_)[:, : None if diffuse else 0]
    prior = _root_of(to_dense(problem.initial_covariance))
    Q = problem.covariance
    noise = None if Q.varies else lax.stop_gradient(_root_of(to_dense(Q)))
    mean = jnp.zeros_like(problem.initial_mean)
    none = jnp.diag(mean)
    start = Belief(mean, none, none, jnp.zeros_like(unknown), mean)
    first = lax.stop_gradient(prior), unknown
    steps = _Exactly(**steps_of(problem, start), first=first, noise=noise)
    return run(steps, backend="sequential")


def _root_of(covariance: Array) -> Array:
    return square_root(covariance, rounding_of(jnp.diagonal(covariance)))


def _proper(problem: Problem) -> tuple[Problem, Array]:
    """Return a problem whose prior is finite, and where it was not, `(D,)` of 0, 1."""
    covariance = to_dense(problem.initial_covariance)
    diffuse = jnp.diagonal(covariance) == jnp.inf
    finite = jnp.where(diffuse[:, None] | diffuse[None, :], 0, covariance)
    which = diffuse.astype(covariance.dtype)
    return problem._replace(initial_covariance=Dense(finite)), which


def moments_of(belief: Belief) -> Moments:
    """Return the mean and the covariance, infinite where data have left it open."""
    if not belief.unknown.shape[1]:
        return belief.mean, belief.cov
    far = jnp.any(belief.unknown != 0, axis=1)
    cov = jnp.where(far[:, None] | far[None, :], 0.0, belief.cov)
    return belief.mean, jnp.where(jnp.diag(far), jnp.inf, cov)


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
    given = _Given(**future_steps(_proper(problem)[0]), beliefs=beliefs)
    return run(given, backend="sequential", reverse=True)
