r"""Correlated noise decorrelated, so that emissions are taken in one scalar at a time.

    R = L diag(d) L',      L unit lower triangular,

which allows zero variances where a Cholesky factor would not.

Of an emission, values that say little are decorrelated first. The other way round a
value whose noise is nothing beside the state, times thousands where units are such, is
taken from one of much noise, and its roundings are more than what that one says.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.roundings import reciprocal, rounding_of
from elk_ssm.kalman.scalar_updates import Rows
from elk_ssm.linalg.small import matmul, matvec, over_pivots
from elk_ssm.linalg.structure import Dense, Operator, to_dense
from elk_ssm.parallel.anywhere import anywhere


class Whitener(NamedTuple):
    """`inverse @ R @ inverse.T = diag(variances)`.

    `inverse` is unit lower triangular in the order of elimination.
    """

    inverse: Array
    variances: Array


@jax.jit
def whiten(covariance: Array) -> Whitener:
    """Decorrelate a PSD `(E, E)` matrix, which may be singular."""
    size = covariance.shape[-1]
    rows = jnp.arange(size)

    def clear(k, table):
        pivot = table[k, k]
        factors = table[:, k] * reciprocal(pivot, pivot > least[k])
        below = jnp.where(rows > k, factors, 0.0)
        return table - below[:, None] * table[k][None, :]

    least = rounding_of(jnp.diagonal(covariance))
    table = jnp.concatenate([covariance, jnp.eye(size, dtype=covariance.dtype)], -1)
    table = over_pivots(size, clear, table)
    variances = jnp.diagonal(table)
    # Not `maximum`, whose derivative at a variance of zero is a half.
    variances = jnp.where(variances < least, 0.0, variances)
    return Whitener(table[:, size:], variances)


@jax.jit
def square_root(covariance: Array, least: Array | None = None) -> Array:
    """Return a lower triangular S with S S' = covariance, PSD, `(D, D)`.

    A pivot that is not positive, exactly or by rounding, leaves a zero column; so does
    one that is no larger than `least`, `(D,)`.
    """
    size = covariance.shape[-1]
    rows = jnp.arange(size)

    def column(k, carry):
        rest, root = carry
        pivot = rest[k, k]
        zero = 0 if least is None else least[k]
        positive = ~(pivot <= zero)  # or NaN, which is not to be lost
        scale = reciprocal(jnp.sqrt(jnp.where(positive, pivot, 1)), positive)
        new = jnp.where(rows >= k, rest[:, k] * scale, 0.0)
        return rest - new[:, None] * new[None, :], root.at[:, k].set(new)

    return over_pivots(size, column, (covariance, jnp.zeros_like(covariance)))[1]


class WhitenedEmission(NamedTuple):
    """A static emission whose noise is decorrelated: `inverse @ H`, and `Whitener`."""

    weights: Array
    whitener: Whitener


def whiten_emission(weights: Array, covariance: Array) -> WhitenedEmission:
    """Decorrelate R, `(E, E)`, and H, `(E, D)`, accordingly.

    The row of an infinite variance is set apart; it counts as missing anyhow.
    """
    identity = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
    covariance = jnp.where(covariance == jnp.inf, identity, covariance)
    plain, order = whiten(covariance), _by_information(weights, covariance)
    place = jnp.argsort(order)
    ordered = whiten(covariance[order][:, order])
    inverse, variances = ordered.inverse[place][:, place], ordered.variances[place]
    # Of values that say the same the first ones count in a density.
    singular = jnp.any(plain.variances <= 0)
    whitener = Whitener(
        jnp.where(singular, plain.inverse, inverse),
        jnp.where(singular, plain.variances, variances),
    )
    return WhitenedEmission(matmul(whitener.inverse, weights), whitener)


def _by_information(weights: Array, covariance: Array) -> Array:
    """Order values by how much of all that is said of a dimension each of them says.

    Where one is independent of all others, as if missing, does not matter.
    """
    variances = lax.stop_gradient(jnp.diagonal(covariance))
    there = (variances > 0) & (jnp.sum(covariance != 0, axis=1) > 1)
    says = weights**2 / jnp.where(there, variances, 1)[:, None]
    whole = jnp.sum(jnp.where(there[:, None], says, 0), axis=0)
    shares = lax.stop_gradient(says / jnp.where(whole > 0, whole, 1)[None, :])
    return jnp.argsort(jnp.where(there, jnp.max(shares, axis=1), 0))


def isolated(covariance: Operator, observed: Array) -> Operator:
    """Make missing entries of one step independent of the others, of variance one."""
    if not covariance.mixes:
        return covariance.diag(jnp.where(observed, covariance.variances(), 1))
    matrix, kept = covariance.to_dense(), observed[:, None] & observed[None, :]
    return Dense(jnp.where(kept, matrix, jnp.eye(len(observed), dtype=matrix.dtype)))


class Emission(NamedTuple):
    """What is seen of one step: H x + N(0, R).

    Attributes:
        weights: H, `(E, D)`.
        covariance: R, `(E, E)`.
        values: `(E,)`, finite; what is missing holds a stand-in.
        observed: `(E,)` boolean.
        whole: H and R decorrelated without gaps, where they are known beforehand. A
            step with gaps needs its own.
    """

    weights: Operator
    covariance: Operator
    values: Array
    observed: Array
    whole: WhitenedEmission | None

    def rows(self) -> Rows:
        """Return it as independent scalars."""
        H, values, observed = to_dense(self.weights), self.values, self.observed
        if not self.covariance.mixes:
            variances = isolated(self.covariance, observed).variances()
            return Rows(H, variances, values, observed)

        def with_gaps() -> WhitenedEmission:
            return whiten_emission(H, to_dense(isolated(self.covariance, observed)))

        if self.whole is None:
            whole = with_gaps()
        else:
            # Of a batch at once: JAX cannot transpose a rule with a batched branch.
            gaps = anywhere(~jnp.all(observed))
            whole = lax.cond(gaps, with_gaps, lambda: self.whole)
        turned, (inverse, variances) = whole
        return Rows(turned, variances, matvec(inverse, values), observed)


def whitener_of(covariance: Operator) -> Whitener:
    """Return the `Whitener` of one step's covariance, trivial if it is diagonal."""
    if covariance.mixes:
        return whiten(covariance.to_dense())
    diagonal = covariance.variances()
    return Whitener(jnp.eye(diagonal.shape[-1], dtype=diagonal.dtype), diagonal)
