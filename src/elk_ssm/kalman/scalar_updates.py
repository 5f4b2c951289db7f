r"""Conditioning one Gaussian on one scalar at a time, the arithmetic of every pass.

For x ~ N(m, P) and a scalar z = h' x + N(0, r), with g = P h, a = h' g, s = a + r,

    m <- m + K (z - h' m),      K = g / s
    P <- P - g g' / s

Independent noise lets a vector be taken in one entry after the other, which needs no
matrix factorisation and handles a missing entry by K = 0. In float32 the subtraction
can leave less than nothing of P where r is far below a. Then it is split,

    P <- (P - g g' / a)  +  (r / s) g g' / a                        if r < a

into conditioning without noise, which leaves exactly zero along an axis that is
observed by itself, and a PSD term that puts the noise back. (Joseph's form achieves the
same for more arithmetic, as long as no compiler rounds its two copies of P - K g'
differently; XLA's fused multiply-adds do.)

Correlated noise is first decorrelated: see `whitening`.

A noise-free scalar whose variance is zero, or what rounding left of one, is known
already: K = 0, and its density is that on the observed subspace (see `roundings`).
`condition` does not look for such scalars, `condition_carefully` does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.roundings import (
    log_normal,
    nothing_of,
    reciprocal,
    regular_log_normal,
    rounding_of,
    slack_of,
)
from elk_ssm.linalg.small import matvec, symmetrize

# Up to this many rows a scan over all steps at once has them written out.
_UNROLLED = 4
# From which share of noise in what is seen on differences may be plain.
PLENTY = 1 / 8


class Rows(NamedTuple):
    """Scalar observations with independent noise, one a row.

    `weights: (E, D)`, `variances: (E,)`, `values: (E,)` and boolean `observed: (E,)`,
    of one step or with a leading time axis.
    """

    weights: Array
    variances: Array
    values: Array
    observed: Array


def condition(mean: Array, cov: Array, rows: Rows) -> tuple[Array, Array, Array]:
    """Condition N(mean, cov) on all rows, whose innovations must have a variance.

    Returns:
        The mean `(D,)`, the covariance `(D, D)` and the log density of the observed
        values, `()`.
    """

    def take_in(carry, row):
        mean, cov, log_density = carry
        h, r, z, ok = row
        g, a = project(cov, h)
        cov, K, _ = condition_row(cov, h, g, a, r, ok)
        error = z - _dot(h, mean)
        log_density = log_density + regular_log_normal(error, a + r, ok)
        return (mean + K * error, cov, log_density)

    start = (mean, cov, jnp.zeros((), mean.dtype))
    mean, cov, log_density = over_rows(take_in, start, rows)
    # The two sides of the diagonal round differently.
    return mean, symmetrize(cov), log_density


def condition_plainly(
    mean: Array, cov: Array, rows: Rows
) -> tuple[Array, Array, Array]:
    """Do as `condition`, where `has_plenty_of_noise`, in a fraction of the time.

    Mean and covariance are one table (m, P), and a row is two passes over it.
    """

    def take_in(table, row):
        h, r, z, ok = row
        seen = jnp.sum(table * h[:, None], axis=0)
        s = _dot(seen[1:], h) + r
        error = z - seen[0]
        K = seen[1:] * jnp.where(ok, 1 / s, 0.0)
        table = table + outer(K, jnp.append(error, -seen[1:]))
        return table, jnp.stack([error, s])

    table = jnp.concatenate([mean[:, None], cov], axis=1)
    table, found = over_rows(take_in, table, rows, collect=True)
    terms = regular_log_normal(found[:, 0], found[:, 1], rows.observed)
    return table[:, 0], symmetrize(table[:, 1:]), jnp.sum(terms)


def left_plainly(cov: Array, weights: Array, variances: Array) -> Array:
    """Return P given scalars H x + N(0, diag(r)) with plenty of noise.

    As symmetric as it was.
    """

    def take_in(cov, row):
        h, r = row
        g = jnp.sum(cov * h[:, None], axis=0)
        k = g / jnp.sqrt(_dot(g, h) + r)
        return cov - outer(k, k)

    return over_rows(take_in, cov, (weights, variances))


def has_plenty_of_noise(cov: Array, weights: Array, variances: Array) -> Array:
    """Whether plain differences lose no digits of P that matter, for each row.

    With r above an eighth of the sum they are three bits, or, of states that are all
    but one, as many more as D has.
    """
    sizes = matvec(weights * weights, jnp.diagonal(cov))
    # NaN is not plenty.
    return variances > PLENTY * (sizes + variances)


def condition_carefully(
    mean: Array, cov: Array, rows: Rows, *, unrolled: bool = True
) -> tuple[Array, Array, Array]:
    """Condition N(mean, cov) on all rows.

    A value without noise whose variance is zero up to rounding is known already: it
    changes nothing, and its density is that of `log_normal`. Returns as `condition`.
    """

    def take_in(carry, row):
        mean, cov, log_density = carry
        h, r, z, ok, floor, nothing = row
        g, a = project(cov, h)
        a = jnp.where(a < 0, 0.0, a)
        known = (r <= 0) & (a <= nothing)
        r = jnp.where(a + r < floor, floor - a, r)
        s = jnp.where(known, 0.0, a + r)
        new, K, _ = condition_row(cov, h, g, a, r, ok & ~known)
        error = z - _dot(h, mean)
        slack = slack_of(nothing, largest + _dot(jnp.abs(h), jnp.abs(mean)))
        log_density = log_density + log_normal(error, s, ok, slack)
        return (mean + K * error, new, log_density)

    start = (mean, cov, jnp.zeros((), mean.dtype))
    # A decorrelated value may be the small difference of large ones.
    largest = jnp.max(jnp.abs(jnp.where(rows.observed, rows.values, 0.0)), initial=0)
    sizes = matvec(rows.weights**2, jnp.diagonal(cov))
    rows_of_all = (*rows, rounding_of(sizes), nothing_of(sizes))
    mean, new, log_density = over_rows(take_in, start, rows_of_all, unrolled=unrolled)
    return mean, _exact_zeros(cov, symmetrize(new), rows), log_density


def project(cov: Array, h: Array) -> tuple[Array, Array]:
    """Return P h and h' P h, which rounding does not take below zero."""
    g = jnp.sum(cov * h[None, :], axis=-1)
    return g, _dot(h, g)


@jax.jit
def condition_row(cov, h, g, a, r, ok):
    """Condition a covariance on h'x + N(0, r), given g = P h and a = h'g.

    Returns:
        The new covariance, K and 1 / s, or no change and zeros if not ok.
    """
    s = a + r
    usable = ok & ~(s <= 0)  # or NaN, which is not to be lost
    inverse = reciprocal(s, usable)
    if h.shape[0] == 1:
        # Of a single dimension r / s is left.
        return jnp.where(usable, r * inverse, 1.0) * cov, g * inverse, inverse
    rank_one = _rank_one(cov, h, g, reciprocal(a, usable & (a > 0)))
    precise = r < a
    used = usable.astype(s.dtype)
    away = jnp.where(precise, 1.0, a * inverse) * used
    back = jnp.where(precise, r * inverse, 0.0) * used
    return (cov - away * rank_one) + back * rank_one, g * inverse, inverse


def _rank_one(cov: Array, h: Array, g: Array, inverse: Array) -> Array:
    """Return g g' / a; for h along an axis it has that row and column of P exactly.

    Only its value is put right: as a function of h it is g g' / a all the same.
    """
    product = outer(g * inverse, g)
    axis = (h != 0) & (jnp.sum(h != 0) == 1)
    off = jnp.where(axis[:, None] | axis[None, :], cov - product, 0.0)
    return product + lax.stop_gradient(off)


@jax.jit
def _exact_zeros(before: Array, after: Array, rows: Rows) -> Array:
    """Clear the rows and columns of variances of which rounding alone is left.

    Only beside a scalar without noise: others may leave a variance that is small and
    right, no smaller than 1 / (1 / P_ii + sum_k h_ki^2 / r_k).
    """
    exact = jnp.any(rows.observed & (rows.variances <= 0))
    noisy = rows.observed & (rows.variances > 0)
    seen = jnp.sum(rows.weights**2 * reciprocal(rows.variances, noisy)[:, None], axis=0)
    prior, left = jnp.diagonal(before), jnp.diagonal(after)
    by_noise = 2 * left * (1 + prior * seen) > prior
    kept = (left > nothing_of(prior)) | by_noise | ~exact
    # Only the value: more noise than none would still be left.
    gone = jnp.where(kept[:, None] & kept[None, :], 0.0, after)
    return after - lax.stop_gradient(gone)


def over_rows(take_in, carry, rows, collect=False, unrolled=False):
    """Fold `take_in` over the rows; with `collect` it returns an output of each too.

    In a loop, which a scan over time on a CPU runs two times faster than the same
    written out and compiles five times faster; `unrolled` is for many steps at once.
    """
    body = take_in if collect else lambda c, row: (take_in(c, row), None)
    size = rows[0].shape[0]
    if size > (_UNROLLED if unrolled else 1):
        carry, found = lax.scan(body, carry, tuple(rows))
        return (carry, found) if collect else carry
    found = []
    for i in range(size):
        carry, one = body(carry, tuple(leaf[i] for leaf in rows))
        found.append(one)
    return (carry, jnp.stack(found)) if collect else carry


def _dot(left, right):
    return jnp.sum(left * right)


def outer(left: Array, right: Array) -> Array:
    """Return left right', of vectors `(N,)` and `(M,)`."""
    return left[:, None] * right[None, :]
