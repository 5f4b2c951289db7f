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

Correlated noise is first decorrelated by R = L diag(d) L', L unit lower triangular,
which allows zero variances where a Cholesky factor would not.

The same update gives the smoother: z_{t+1} = F z_t + c + N(0, Q) is a set of D scalar
observations of z_t, so p(z_t | z_{t+1}, y_{0:t}) = N(m + E (z_{t+1} - F m - c), L) with
an L that is reached by D small steps, and no difference of two nearly equal smoothed
and predicted covariances is formed (P + E (P^s - P^p) E' loses definiteness that way).

A scalar whose variance s is zero is known already and teaches nothing: K = 0.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.elements import FilterElement
from elk_ssm.linalg.small import matmul, matvec, symmetrize
from elk_ssm.linalg.structure import Operator, to_dense

# A loop inside the scan over time costs more than the updates it contains, but an
# unrolled elimination takes the compiler seconds at sixteen rows.
_UNROLLED = 16
_UNROLLED_ELIMINATION = 8


class Rows(NamedTuple):
    """Scalar observations with independent noise, one a row.

    `weights: (E, D)`, `variances: (E,)`, `values: (E,)` and boolean `observed: (E,)`.
    """

    weights: Array
    variances: Array
    values: Array
    observed: Array


class Whitener(NamedTuple):
    """`inverse @ R @ inverse.T = diag(variances)`, `inverse` unit lower triangular."""

    inverse: Array
    variances: Array


def whiten(covariance: Array) -> Whitener:
    """Decorrelate a PSD `(E, E)` matrix, which may be singular."""
    size = covariance.shape[-1]
    rows = jnp.arange(size)

    def clear(k, table):
        pivot = table[k, k]
        factors = table[:, k] * _reciprocal(pivot, pivot > 0)
        below = jnp.where(rows > k, factors, 0.0)
        return table - below[:, None] * table[k]

    table = jnp.concatenate([covariance, jnp.eye(size, dtype=covariance.dtype)], -1)
    if size <= _UNROLLED_ELIMINATION:
        for k in range(size):
            table = clear(k, table)
    else:
        table = lax.fori_loop(0, size, clear, table)
    variances = jnp.maximum(jnp.diagonal(table), 0.0)
    return Whitener(table[:, size:], variances)


def square_root(covariance: Array) -> Array:
    """Return a lower triangular S with S S' = covariance, PSD, `(D, D)`.

    A pivot that is not positive, exactly or by rounding, leaves a zero column.
    """
    size = covariance.shape[-1]
    rows = jnp.arange(size)

    def column(k, carry):
        rest, root = carry
        pivot = rest[k, k]
        scale = _reciprocal(safe_sqrt(pivot), pivot > 0)
        new = jnp.where(rows >= k, rest[:, k] * scale, 0.0)
        return rest - _outer(new, new), root.at[:, k].set(new)

    carry = (covariance, jnp.zeros_like(covariance))
    if size > _UNROLLED_ELIMINATION:
        return lax.fori_loop(0, size, column, carry)[1]
    for k in range(size):
        carry = column(k, carry)
    return carry[1]


class WhitenedEmission(NamedTuple):
    """A static emission whose noise is decorrelated: `inverse @ H`, and `Whitener`."""

    weights: Array
    whitener: Whitener


def whiten_emission(weights: Array, covariance: Array) -> WhitenedEmission:
    """Decorrelate R, `(E, E)`, and turn H, `(E, D)`, accordingly.

    The row of an infinite variance is set apart; it counts as missing anyhow.
    """
    identity = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
    whitener = whiten(jnp.where(jnp.isfinite(covariance), covariance, identity))
    return WhitenedEmission(matmul(whitener.inverse, weights), whitener)


def emission_rows(
    weights: Operator,
    covariance: Operator,
    values: Array,
    observed: Array,
    whole: WhitenedEmission | None,
) -> Rows:
    """Turn the emission of one step into independent scalars.

    `whole` is the decorrelated emission of a step without gaps, where it is known
    beforehand. A step with gaps needs its own, in which a missing entry is made
    independent of the rest.
    """
    H = to_dense(weights)
    if not covariance.mixes:
        variances = jnp.where(observed, covariance.variances(), 1.0)
        return Rows(H, variances, values, observed)

    def with_gaps() -> WhitenedEmission:
        identity = jnp.eye(values.shape[-1], dtype=values.dtype)
        kept = observed[:, None] & observed
        return whiten_emission(H, jnp.where(kept, to_dense(covariance), identity))

    if whole is None:
        whole = with_gaps()
    else:
        whole = lax.cond(jnp.all(observed), lambda: whole, with_gaps)
    turned, (inverse, variances) = whole
    return Rows(turned, variances, matvec(inverse, values), observed)


def condition(mean: Array, cov: Array, rows: Rows) -> tuple[Array, Array, Array]:
    """Condition N(mean, cov) on all rows.

    Returns:
        The mean `(D,)`, the covariance `(D, D)` and the log density of the observed
        values, `()`.
    """

    def take_in(carry, row):
        mean, cov, log_density = carry
        h, r, z, ok = row
        cov, K, s, _ = _condition_covariance(cov, h, r, ok)
        error = z - _dot(h, mean)
        log_density = log_density + _log_normal(error, s, ok)
        return (mean + K * error, cov, log_density)

    start = (mean, cov, jnp.zeros((), mean.dtype))
    mean, cov, log_density = _over_rows(take_in, start, rows)
    # The two sides of the diagonal round differently.
    return mean, symmetrize(cov), log_density


def condition_element(
    weights: Array, offset: Array, cov: Array, rows: Rows
) -> FilterElement:
    """Build the associative element of one step, N(x_t; F x_{t-1} + c, Q) and y_t.

    The mean is kept as a function of x_{t-1}, A x_{t-1} + b; every scalar adds its
    innovation, h' (A x_{t-1} + b) - z with variance s, to the evidence about x_{t-1}.
    """

    def take_in(carry, row):
        A, b, C, eta, J = carry
        h, r, z, ok = row
        C, K, _, inverse = _condition_covariance(C, h, r, ok)
        back = jnp.sum(A * h[:, None], axis=0)
        error = z - _dot(h, b)
        J = J + _outer(back, back) * inverse
        eta = eta + back * (error * inverse)
        return FilterElement(A - _outer(K, back), b + K * error, C, eta, J)

    zero = jnp.zeros_like(offset)
    start = FilterElement(weights, offset, cov, zero, jnp.zeros_like(cov))
    return _over_rows(take_in, start, rows)


def condition_backward(
    cov: Array, weights: Array, whitener: Whitener
) -> tuple[Array, Array]:
    """Return E and L of p(z_t | z_{t+1}) = N(m + E (z_{t+1} - F m - c), L).

    Args:
        cov: the filtered covariance at t, `(D, D)`.
        weights: F into t + 1, `(D, D)`.
        whitener: that of Q into t + 1.
    """

    def take_in(carry, row):
        E, L = carry
        h, q, target = row
        L, K, _, _ = _condition_covariance(L, h, q, True)
        return E + _outer(K, target - jnp.sum(E * h[:, None], axis=0)), L

    inverse = whitener.inverse
    rows = (matmul(inverse, weights), whitener.variances, inverse)
    E, L = _over_rows(take_in, (jnp.zeros_like(cov), cov), rows)
    return E, symmetrize(L)


def condition_diagonal(
    mean: Array, cov: Array, rows: Rows
) -> tuple[Array, Array, Array]:
    """Do `condition` for dimensions that never mix; all arrays `(D,)`."""
    h, r, z, ok = rows
    s = h * h * cov + r
    inverse = _reciprocal(s, ok & (s > 0))
    error = z - h * mean
    kept = jnp.where(ok & (s > 0), r * inverse, 1.0)
    log_density = jnp.sum(_log_normal(error, s, ok))
    return mean + cov * h * inverse * error, kept * cov, log_density


def condition_element_diagonal(
    weights: Array, offset: Array, cov: Array, rows: Rows
) -> FilterElement:
    """Do `condition_element` for dimensions that never mix; all arrays `(D,)`."""
    h, r, z, ok = rows
    s = h * h * cov + r
    inverse = _reciprocal(s, ok & (s > 0))
    kept = jnp.where(ok & (s > 0), r * inverse, 1.0)
    error, back = z - h * offset, h * weights
    return FilterElement(
        A=kept * weights,
        b=offset + cov * h * inverse * error,
        C=kept * cov,
        eta=back * inverse * error,
        J=back * back * inverse,
    )


def condition_backward_diagonal(
    cov: Array, weights: Array, noise: Array
) -> tuple[Array, Array]:
    """Do `condition_backward` for dimensions that never mix; all arrays `(D,)`."""
    s = weights * weights * cov + noise
    inverse = _reciprocal(s, s > 0)
    return cov * weights * inverse, jnp.where(s > 0, cov * noise * inverse, cov)


def whitener_of(covariance: Operator) -> Whitener:
    """Return the `Whitener` of one step's covariance, trivial if it is diagonal."""
    if covariance.mixes:
        return whiten(covariance.to_dense())
    diagonal = covariance.variances()
    return Whitener(jnp.eye(diagonal.shape[-1], dtype=diagonal.dtype), diagonal)


def _condition_covariance(cov, h, r, ok):
    """Return the new covariance, K, s and 1 / s, or no change and zeros if not ok."""
    g = jnp.sum(cov * h, axis=-1)
    a = _dot(h, g)
    s = a + r
    usable = ok & (s > 0)
    inverse = _reciprocal(s, usable)
    rank_one = _outer(g * _reciprocal(a, usable & (a > 0)), g)
    precise = r < a
    away = jnp.where(precise, 1.0, a * inverse) * usable
    back = jnp.where(precise, r * inverse, 0.0) * usable
    return (cov - away * rank_one) + back * rank_one, g * inverse, s, inverse


def _log_normal(error, variance, ok):
    safe = jnp.where(ok, variance, 1.0)
    density = -0.5 * (jnp.log(2 * jnp.pi * safe) + error * error / safe)
    return jnp.where(ok, density, 0.0)


def safe_sqrt(value: Array) -> Array:
    """Return sqrt(value), and 0 with derivative 0 where the value is not positive."""
    return jnp.where(value > 0, jnp.sqrt(jnp.where(value > 0, value, 1.0)), 0.0)


def _reciprocal(value, ok):
    """1 / value where ok, else 0, with a derivative that is finite everywhere."""
    return jnp.where(ok, 1.0 / jnp.where(ok, value, 1.0), 0.0)


def _over_rows(take_in, carry, rows):
    size = rows[0].shape[0]
    if size <= _UNROLLED:
        for i in range(size):
            carry = take_in(carry, tuple(leaf[i] for leaf in rows))
        return carry
    return lax.scan(lambda c, row: (take_in(c, row), None), carry, tuple(rows))[0]


def _dot(left, right):
    return jnp.sum(left * right)


def _outer(left, right):
    return left[:, None] * right[None, :]
