r"""Gaussians held by a root, conditioned on scalars that may be exact.

An emission without noise leaves no variance along itself, and of a covariance it leaves
its roundings, which no threshold tells from a small variance where the emissions are
ill conditioned. So a root of the covariance, P = S S', is carried beside it. For a
scalar z = h'x + N(0, r), with v = S'h, s = v'v + r,

    S <- S - S v v' / (s + sqrt(r s))          K = S v / s        (Potter, 1963)

which for r = 0 is a projection: what it leaves along h is a rounding of S itself, eps
of a deviation and eps^2 of a variance. A scalar is known where v is less than sqrt(eps)
of the deviations that it is made of, which is as far as a projection along such a v is
right; sums that cancel to less than eps^(3/4) of their terms are zero.

Dimensions that a prior leaves open are columns of their own (Koopman, 1997, Exact
initial Kalman filtering and smoothing for nonstationary time series models),

    x = m + A d + S e,      d of infinite variance, e of variance one.

A scalar that sees them, u = A'h, settles one direction of d: with K = A u / u'u,

    m <- m + K (z - h'm)      A <- A - K u'      S <- [(I - K h') S, sqrt(r) K]

and adds -log(2 pi u'u) / 2 to the log likelihood, the diffuse one.

The root has no derivative where a variance is zero. Derivatives are those of the
recursion of covariances, whose values and decisions are the root's.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.roundings import (
    LOG_TWO_PI,
    log_normal,
    reciprocal,
    rounding_of,
    safe_sqrt,
)
from elk_ssm.kalman.runs import reflected
from elk_ssm.kalman.scalar_updates import Rows, condition_row, outer, over_rows
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose


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


def valued(x: Array, value: Array) -> Array:
    """Return a number of this value that has the derivatives of x."""
    return lax.stop_gradient(value) + (x - lax.stop_gradient(x))


def _cleared(x: Array, terms: Array) -> Array:
    """Return x without what rounding left of sums of terms of these sizes."""
    gone = jnp.abs(x) <= _tiny(x, 0.75) * terms
    return x - lax.stop_gradient(jnp.where(gone, x, 0.0))


def product(left: Array, right: Array) -> Array:
    """Multiply two matrices; what cancels but for rounding is zero."""
    sizes = matmul(jnp.abs(left), jnp.abs(right))
    return _cleared(matmul(left, right), lax.stop_gradient(sizes))


def as_square(columns: Array) -> Array:
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
        variance = valued(jnp.sum(g * h), a)
        g = valued(g, matvec(root, v))
        cov, K, _ = condition_row(cov, h, g, variance, r, proper)
        noise = lax.stop_gradient(jnp.where(r > 0, r, 0.0))
        share = reciprocal(a + noise + jnp.sqrt(noise * (a + noise)), proper)
        root = root - outer(matvec(root, v), v * share)

        error = z - jnp.sum(h * mean)
        here = rounding_of(largest + jnp.sum(jnp.abs(h * mean)))
        carried = 4 * jnp.sum(jnp.abs(h * rounded))
        slack = lax.stop_gradient(64 * (here + carried) + _tiny(v) * spread)
        s = jnp.where(known, 0.0, variance + r)
        density = log_normal(error, s, ok & ~open_, slack)
        if unknown.shape[1]:
            settled, columns, turned = _settle(belief, h, jnp.where(open_, u, 0.0), r)
            K = jnp.where(open_, settled, K)
            cov = jnp.where(open_, turned, cov)
            root = jnp.where(open_, columns, root)
            unknown = unknown - outer(settled, u)
            square = jnp.where(open_, jnp.sum(u * u), 1.0)
            density = density - jnp.where(open_, jnp.log(square) + LOG_TWO_PI, 0.0) / 2
            grown = jnp.abs(settled) * (spread + jnp.sqrt(noise))
            sizes = sizes._replace(deviations=sizes.deviations + grown)
        root, gain = lax.stop_gradient((root, K))
        rounded = rounded - gain * (jnp.sum(h * rounded) - here / 4)
        cov = valued(symmetrize(cov), matmul(root, transpose(root)))
        belief = Belief(mean + K * error, cov, root, unknown, rounded)
        return belief, lax.stop_gradient(sizes), total + density

    reach = jnp.sum(jnp.abs(belief.unknown), axis=1)
    sizes = _Sizes(_deviations(belief.root), lax.stop_gradient(reach))
    start = belief, sizes, jnp.zeros((), belief.mean.dtype)
    belief, sizes, total = over_rows(take_in, start, rows)
    return _without_rounding(belief, sizes, rows), total


def _settle(belief: Belief, h: Array, u: Array, r: Array) -> tuple[Array, Array, Array]:
    """Return K, the root and the covariance where a scalar sees what is unknown."""
    square = jnp.sum(u * u)
    K = matvec(belief.unknown, u) * reciprocal(square, square > 0)
    less = jnp.eye(len(h), dtype=h.dtype) - outer(K, h)
    cov = matmul(less, matmul(belief.cov, transpose(less))) + r * outer(K, K)
    less, own = lax.stop_gradient((less, safe_sqrt(r) * K))
    columns = jnp.append(product(less, belief.root), own[:, None], axis=1)
    return K, as_square(columns), cov


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
    cov = valued(belief.cov, matmul(root, transpose(root)))
    return belief._replace(root=root, cov=cov, unknown=unknown)


def _deviations(root: Array) -> Array:
    return jnp.sqrt(jnp.sum(root * root, axis=1))


def root_of(covariance: Array) -> Array:
    """Return a root of a PSD matrix, whose rank no rounding makes larger."""
    return square_root(covariance, rounding_of(jnp.diagonal(covariance)))


def moments_of(belief: Belief) -> tuple[Array, Array]:
    """Return the mean and the covariance, infinite where data have left it open."""
    if not belief.unknown.shape[1]:
        return belief.mean, belief.cov
    far = jnp.any(belief.unknown != 0, axis=1)
    cov = jnp.where(far[:, None] | far[None, :], 0.0, belief.cov)
    return belief.mean, jnp.where(jnp.diag(far), jnp.inf, cov)
