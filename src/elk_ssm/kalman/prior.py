r"""What a prior makes of a run from x_0, in which x_0 is a variable; see `apart`."""

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.runs import Run, reflected
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.small import matmul, matvec, over_pivots, transpose
from elk_ssm.linalg.structure import to_dense

# Of the size of a column: what rounding leaves of a pivot that should be zero.
_RANK = 32
# Means, covariances, and log p(y_{0:t}).
Moments: TypeAlias = tuple[Array, Array, Array]


class Kept(NamedTuple):
    """A run from x_0, and what its data say that does not depend on x_0.

    `evidence: ()` sums log 2 pi s of the scalars observed, and squared residuals.
    """

    run: Run
    evidence: Array


class Prior(NamedTuple):
    """x_0 = m + S v, v of unit variance, or infinite where `known` is 0, else 1.

    `mean: (D,)`, `root: (D, D)`, `known: (D,)`.
    """

    mean: Array
    root: Array
    known: Array


def moments(prior: Prior, kept: Kept) -> Moments:
    """Return the moments of the state at the end of a run, and its log likelihood.

    Args:
        prior: What is known of x_0.
        kept: The run.
    """
    (m, S, known), ((A, b, C, rows), evidence) = prior, kept
    U, z = rows[:, :-1], rows[:, -1]
    seen = jnp.append(matmul(U, S), (z - matvec(U, m))[:, None], axis=1)
    own = jnp.append(jnp.diag(known), jnp.zeros_like(m)[:, None], axis=1)
    found = _echelon(jnp.concatenate([seen, own]), known > 0)
    T, w, residual, open_ = found
    through = matmul(A, S)
    Y = transpose(_solve_lower(transpose(T), transpose(through)))
    pivots = jnp.log(jnp.abs(jnp.diagonal(T)))
    log_likelihood = -(evidence + residual + 2 * jnp.sum(pivots)) / 2
    # An open direction reaches a dimension of the state by more than by rounding.
    sizes = jnp.abs(through) + matmul(jnp.abs(Y), jnp.abs(T))
    reached = jnp.abs(Y) > _RANK * len(m) * jnp.finfo(m.dtype).eps * sizes
    far = jnp.any(reached & open_[None, :], axis=1)
    Y = jnp.where(open_[None, :] | far[:, None], 0, Y)
    cov = jnp.where(jnp.diag(far), jnp.inf, matmul(Y, transpose(Y)) + C)
    return matvec(A, m) + b + matvec(Y, w), cov, log_likelihood


def _echelon(table: Array, known: Array) -> tuple[Array, Array, Array, Array]:
    """Make rows `(n, D + 1)` triangular; a column without a pivot takes no row.

    Args:
        table: The rows.
        known: `(D,)`, which columns have a pivot for sure.

    Returns:
        T `(D, D)` and w `(D,)`, unit rows in place of those that there are not, the
        squared residual, and which columns are open, `(D,)`.
    """
    count, size = table.shape[0], table.shape[1] - 1
    index, eps = jnp.arange(count), jnp.finfo(table.dtype).eps
    least = (_RANK * size * eps) ** 2 * jnp.sum(table[:, :-1] ** 2, axis=0)

    def clear(k: int | Array, carry: tuple) -> tuple:
        table, row, rows, open_ = carry
        x = jnp.where(index >= row, table[:, k], 0)
        free = ~known[k] & ~(jnp.sum(x * x) > least[k])
        table = jnp.where(free, table, reflected(table, x, row))
        return (
            table,
            row + (~free).astype(row.dtype),
            rows.at[k].set(row),
            open_.at[k].set(free),
        )

    start = table, jnp.zeros((), int), jnp.zeros(size, int), jnp.zeros(size, bool)
    table, row, rows, open_ = lax.fori_loop(0, size, clear, start)
    chosen = table[rows]
    eye = jnp.eye(size, dtype=table.dtype)
    T = jnp.triu(jnp.where(open_[:, None], eye, chosen[:, :-1]))
    w = jnp.where(open_, 0, chosen[:, -1])
    return T, w, jnp.sum(jnp.where(index >= row, table[:, -1], 0) ** 2), open_


def _solve_lower(lower: Array, rhs: Array) -> Array:
    """Solve L x = rhs, L lower triangular `(D, D)`, rhs `(D, K)`."""
    size = lower.shape[0]
    index = jnp.arange(size)

    def clear(k: int | Array, x: Array) -> Array:
        row = x[k] / lower[k, k]
        below = jnp.where(index > k, lower[:, k], 0)
        return (x - below[:, None] * row[None]).at[k].set(row)

    return over_pivots(size, clear, rhs)


def prior_of(problem: Problem) -> Prior:
    """Return the prior of a problem; a variance of inf is a diffuse dimension."""
    finite, known = proper_part(problem)
    return Prior(problem.initial_mean, square_root(finite) + jnp.diag(1 - known), known)


def proper_part(problem: Problem) -> tuple[Array, Array]:
    """Return the covariance of what is not diffuse, `(D, D)`, and what that is, `(D,)`.

    The second is one where there is a covariance, and zero where there is none.
    """
    covariance = to_dense(problem.initial_covariance)
    diffuse = jnp.diagonal(covariance) == jnp.inf
    finite = jnp.where(diffuse[:, None] | diffuse[None, :], 0, covariance)
    return finite, jnp.where(diffuse, 0, 1).astype(covariance.dtype)
