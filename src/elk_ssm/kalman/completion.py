r"""What missing entries were, given those of the same step that were observed.

Of y = v + H z + c + N(0, R) the entries o were observed. With the matrix A that is the
identity in rows o and R_mo R_oo^{-1} in the others, zero in columns that are missing,

    y | z, y_o  ~  H z + c + A (y - H z - c) + N(0, V),      V = (I - A) R (I - A)',

so every expectation over what is missing is one over z of the same step, exactly. A
diagonal R has A = diag(o), and nothing is said of a missing entry but its variance.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from elk_ssm._jax import is_traced
from elk_ssm.kalman.roundings import reciprocal
from elk_ssm.kalman.whitening import isolated, whiten
from elk_ssm.linalg.small import matmul, matvec, transpose
from elk_ssm.linalg.structure import Dense, Operator


class Gaps(NamedTuple):
    """Which rows of `(M, E)` have gaps, and of which pattern.

    Attributes:
        rows: `(G,)` integers.
        patterns: `(P, E)` boolean, True where observed.
        which: `(G,)` integers, the pattern of each such row.
    """

    rows: Array
    patterns: Array
    which: Array


def gaps_of(observed: Any) -> Gaps | None:
    """Find the rows with gaps, `None` if there are none; all of them where traced.

    Args:
        observed: `(M, E)` boolean.

    Example:
        >>> import numpy as np
        >>> found = gaps_of(np.array([[True, True], [True, False], [True, False]]))
        >>> found.rows.tolist(), found.patterns.tolist(), found.which.tolist()
        ([1, 2], [[True, False]], [0, 0])
    """
    if is_traced(observed):
        every = jnp.arange(observed.shape[0])
        return Gaps(every, observed, every)
    seen = np.asarray(observed)
    rows = np.flatnonzero(~seen.all(axis=1))
    if rows.size == 0:
        return None
    patterns, which = np.unique(seen[rows], axis=0, return_inverse=True)
    return Gaps(*map(jnp.asarray, (rows, patterns, which.reshape(-1))))


class GapRows(NamedTuple):
    """What is known of each row with gaps.

    Attributes:
        residuals: y - H E[z] - c, `(G, E)`, zero where missing.
        weights: H, `(G, E, D)`.
        covariances: Cov(z), `(G, D, D)`.
        counted: Whether the row counts, `(G,)`.
    """

    residuals: Array
    weights: Array
    covariances: Array
    counted: Array


class Completed(NamedTuple):
    """Rows in which nothing is missing any more.

    Attributes:
        residuals: E[v], v = y - H z - c, `(G, E)`.
        spread: The sum of Cov(v), `(E, E)`.
        across: The sum of Cov(v, z), `(E, D)`.
    """

    residuals: Array
    spread: Array
    across: Array


def completion_of(covariance: Operator, observed: Array) -> Array:
    """Return A of one step, `(E, E)`, of R and what of it was observed, `(E,)`."""
    R = covariance.to_dense()
    inverse, variances = whiten(isolated(covariance, observed).to_dense())
    weights = reciprocal(variances, variances > 0)
    precision = matmul(transpose(inverse) * weights, inverse)
    precision = jnp.where(observed[:, None] & observed, precision, 0)
    eye = jnp.eye(R.shape[-1], dtype=R.dtype)
    return jnp.where(observed[:, None], eye, matmul(R, precision))


def completed(gaps: Gaps, covariance: Operator, given: GapRows) -> Completed:
    """Complete the rows with gaps, of a covariance R that mixes entries."""
    A = jax.vmap(partial(completion_of, covariance))(gaps.patterns)
    R = covariance.to_dense()
    eye = jnp.eye(R.shape[-1], dtype=R.dtype)

    def add(total: tuple, row: tuple) -> tuple[tuple, Array]:
        which, (v, H, cov, counted) = row
        own, left = A[which], eye - A[which]
        into = matmul(own, H)
        across = matmul(into, cov)
        spread = matmul(across, transpose(into)) + matmul(left, matmul(R, left.T))
        kept = (jnp.where(counted, x, 0) for x in (spread, -across))
        return tuple(a + b for a, b in zip(total, kept, strict=True)), matvec(own, v)

    zero = jnp.zeros_like(R), jnp.zeros(given.weights.shape[1:], R.dtype)
    total, residuals = lax.scan(add, zero, (gaps.which, given))
    return Completed(residuals, *total)


def without_infinite(covariance: Operator) -> Operator:
    """Return a covariance whose infinite variances, which are never asked, are one."""
    if not covariance.mixes:
        array = covariance.array
        return covariance.like(jnp.where(jnp.isinf(array), 1, array))
    matrix = covariance.to_dense()
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    return Dense(jnp.where(jnp.isinf(matrix), eye, matrix))
