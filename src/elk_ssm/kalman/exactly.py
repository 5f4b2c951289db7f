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
from elk_ssm.kalman.runs import as_emission, reflected
from elk_ssm.kalman.scalar_updates import (
    Rows,
    condition_carefully,
    condition_row,
    over_rows,
)
from elk_ssm.kalman.steps import Entry, Steps, propagate, steps_of, transition_into
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
        row = row + found
        table = table.at[:, k].set(jnp.where(index < row, table[:, k], 0.0))
        return table, row

    start = table, jnp.zeros((), int)
    table, _ = lax.fori_loop(0, size, clear, start)
    return transpose(table[:size])


def condition_exactly(belief: Belief, rows: Rows) -> tuple[Belief, Array]:
    """Condition on all rows.

    Returns:
        What is believed then, and the log density of the observed values, `()`.
    """
    tiny = _tiny(belief.mean)
    reach = lax.stop_gradient(jnp.sum(jnp.abs(belief.unknown), axis=1))
    deviations = jnp.sqrt(jnp.sum(belief.root**2, axis=1))

    def take_in(carry: tuple, row: tuple) -> tuple:
        (mean, cov, root, unknown, rounded), deviations, total = carry
        h, r, z, ok = row
        v = lax.stop_gradient(h @ root)
        sizes = jnp.sum(jnp.abs(h) * deviations)
        v = jnp.where(jnp.sqrt(jnp.sum(v * v)) <= tiny * sizes, 0.0, v)
        a = jnp.sum(v * v)
        seen = jnp.sum(unknown * h[:, None], axis=0)
        whole = _tiny(reach, 0.5) * jnp.sum(reach * jnp.abs(h))
        open_ = ok & (jnp.sum(jnp.abs(seen)) > whole)
        known = (r <= 0) & (a <= 0)
        proper = ok & ~known & ~open_

        g = jnp.sum(cov * h[None, :], axis=-1)
        variance = _valued(jnp.sum(g * h), a)
        along = matvec(root, v)
        new, K, _ = condition_row(cov, h, _valued(g, along), variance, r, proper)
        noise = lax.stop_gradient(jnp.where(r > 0, r, 0.0))
        s = a + noise
        share = reciprocal(s + jnp.sqrt(noise * s), proper)
        change = along[:, None] * (v * share)
        moved = root - change

        error = z - jnp.sum(h * mean)
        near = lax.stop_gradient(jnp.sum(jnp.abs(h * mean)))
        here = rounding_of(largest + near)
        off = jnp.sum(jnp.abs(h * rounded))
        slack = 64 * (here + 4 * off) + tiny * sizes
        s = jnp.where(known, 0.0, variance + r)
        density = log_normal(error, s, ok & ~open_, lax.stop_gradient(slack))

        if unknown.shape[1]:
            square = jnp.sum(seen * seen)
            settled = matvec(unknown, seen) * reciprocal(square, open_)
            K = jnp.where(open_, settled, K)
            less = _eye(mean) - settled[:, None] * h
            turned = matmul(less, matmul(cov, transpose(less)))
            turned = turned + r * settled[:, None] * settled
            new = jnp.where(open_, turned, new)
            columns = jnp.append(
                _product(less, root), (safe_sqrt(noise) * settled)[:, None], axis=1
            )
            moved = jnp.where(open_, _as_square(columns), moved)
            grown = deviations + jnp.abs(settled) * (sizes + safe_sqrt(noise))
            deviations = lax.stop_gradient(jnp.where(open_, grown, deviations))
            unknown = unknown - settled[:, None] * seen
            pivot = jnp.where(open_, square, 1.0)
            density = density - jnp.where(open_, jnp.log(pivot) + LOG_TWO_PI, 0.0) / 2
        moved = lax.stop_gradient(moved)
        new = _valued(symmetrize(new), matmul(moved, transpose(moved)))
        gain = lax.stop_gradient(K)
        rounded = rounded - gain * (jnp.sum(h * rounded) - here / 4)
        after = Belief(mean + K * error, new, moved, unknown, rounded)
        return (after, deviations, total + density)

    observed = jnp.where(rows.observed, rows.values, 0.0)
    # A decorrelated value may be the small difference of large ones.
    largest = lax.stop_gradient(jnp.max(jnp.abs(observed), initial=0))
    start = belief, deviations, jnp.zeros((), belief.mean.dtype)
    belief, deviations, total = over_rows(take_in, start, rows)
    if belief.unknown.shape[1]:
        left = jnp.sum(jnp.abs(belief.unknown), axis=1)
        gone = left <= _tiny(reach, 0.5) * reach
        unknown = jnp.where(gone[:, None], 0.0, belief.unknown)
        belief = belief._replace(unknown=unknown)
    return _without_rounding(belief, deviations, rows), total


def _without_rounding(belief: Belief, deviations: Array, rows: Rows) -> Belief:
    """Clear the rows of which nothing but rounding is left beside exact scalars."""
    exact = jnp.any(rows.observed & (rows.variances <= 0))
    left = jnp.sqrt(jnp.sum(belief.root**2, axis=1))
    gone = exact & (left <= _tiny(left) * deviations)
    root = jnp.where(gone[:, None], 0.0, belief.root)
    cov = _valued(belief.cov, matmul(root, transpose(root)))
    return belief._replace(root=root, cov=cov)


def _eye(like: Array) -> Array:
    return jnp.eye(like.shape[0], dtype=like.dtype)


@dataclass(frozen=True)
class _Exactly(Steps[Belief, Any]):
    """The output of a step is what is believed then, and what it adds to log p(y)."""

    first: tuple[Array, Array]
    noise: Array | None

    def step(self, state: Belief, entry: Entry) -> tuple[Belief, Any]:
        into = transition_into(self.problem, entry)
        begins = entry.step == 0
        F = into.weights
        mean, cov = propagate(into, state.mean, state.cov)
        noise = _root_of(into.noise) if self.noise is None else self.noise
        own = jnp.where(begins, self.first[0], noise)
        F_, root = lax.stop_gradient((F, state.root))
        root = _as_square(jnp.append(_product(F_, root), own, axis=1))
        root = lax.stop_gradient(root)
        cov = _valued(cov, matmul(root, transpose(root)))
        unknown = jnp.where(begins, self.first[1], _product(F, state.unknown))
        sizes = matvec(jnp.abs(F), jnp.abs(state.mean)) + jnp.abs(into.offset)
        signs = jnp.where((jnp.arange(len(mean)) + entry.step) % 2 > 0, 1, -1)
        rounded = matvec(F, state.error) + signs * rounding_of(sizes) / 4
        belief = Belief(mean, cov, root, unknown, lax.stop_gradient(rounded))
        after, term = condition_exactly(belief, self.rows(entry))
        return after, (after, term)

    def element(self, entry: Entry) -> Any:
        raise NotImplementedError

    combine = known = state = nothing = element  # type: ignore[assignment]


def believe(problem: Problem, *, diffuse: bool) -> tuple[Belief, Array]:
    """Filter step by step; return every belief, and what every step adds to log p(y).

    Args:
        problem: The model and its data, one group of dimensions.
        diffuse: Whether a variance of the first state may be infinite.
    """
    problem, first = _proper(problem)
    unknown = (
        jnp.diag(first)[:, :] if diffuse else jnp.zeros((len(first), 0), first.dtype)
    )
    prior = _root_of(to_dense(problem.initial_covariance))
    Q = problem.covariance
    noise = None if Q.varies else lax.stop_gradient(_root_of(to_dense(Q)))
    mean = jnp.zeros_like(problem.initial_mean)
    none = jnp.diag(mean)
    start = Belief(mean, none, none, jnp.zeros_like(unknown), mean)
    filter_ = _Exactly(
        **steps_of(problem, start),
        first=(lax.stop_gradient(prior), unknown),
        noise=noise,
    )
    return run(filter_, backend="sequential")


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
    U = jnp.abs(rows[:, :-1])
    sizes = jnp.sqrt(jnp.sum(U * U, axis=0))
    least = 32 * len(sizes) * jnp.finfo(rows.dtype).eps * sizes
    known = jnp.where(least >= U, 0.0, rows[:, :-1])
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
