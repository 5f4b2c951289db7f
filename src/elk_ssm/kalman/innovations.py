r"""Innovations with the diffuse part of the first state kept as a regression.

With x_0 = m + E b, E the diffuse dimensions and b unknown, the filter that starts at
b = 0 is one filter for d + 1 series: its covariances and gains do not know of the data,
its mean is m_t + A_t b, and so are its innovations of variance s,

    v = z - h' m,     X = -h' A          scaled:  w = v / sqrt(s),  X / sqrt(s)

    -2 log p(y) = sum log 2 pi s + log |X'X| + |w - X b|^2,     b by least squares

(de Jong, 1991, The diffuse Kalman filter; Durbin and Koopman, 2012, section 5.7). What
is large in the series ends in b, not in the sum of squares.

An orthogonalisation of X, once and without derivatives, makes the least squares
harmless: for a constant invertible C and any constant c, X C and w + X c give the same
residuals and log |X'X| = log |C'X'XC| - 2 log |C|. So derivatives see a problem that is
well conditioned and whose residuals are small already.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from elk_ssm._jax import is_traced
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.roundings import LOG_TWO_PI, floor_of, scales_of
from elk_ssm.kalman.runs import reflected
from elk_ssm.kalman.scalar_updates import Rows, over_rows
from elk_ssm.kalman.steps import Entry, steps_of
from elk_ssm.kalman.whitening import Emission, whiten
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.sparsity import DENSE, Sparsity
from elk_ssm.linalg.structure import to_dense

# Of the size of a column: what rounding leaves of a pivot that should be zero.
_RANK = 32
_HIGHEST = lax.Precision.HIGHEST


class Innovations(NamedTuple):
    """What a series adds to what was known before each of its values.

    Attributes:
        residuals: w - X b, of variance one, `(T, E)`; zero where missing.
        log_variances: log s, `(T, E)`; zero where missing.
        log_determinant: log |X'X|, `()`.
        num_observed: How many values were, `()`.
    """

    residuals: Array
    log_variances: Array
    log_determinant: Array
    num_observed: Array

    @property
    def log_likelihood(self) -> Array:
        """Log p(y), the diffuse one, `()`."""
        squares = jnp.sum(self.residuals**2) + jnp.sum(self.log_variances)
        return -0.5 * (self.num_observed * LOG_TWO_PI + squares + self.log_determinant)


def diffuse_dimensions(problem: Problem) -> np.ndarray | None:
    """Return which dimensions are diffuse; `None` where that is traced."""
    initial = problem.initial_covariance.variances()
    return None if is_traced(initial) else np.isinf(np.asarray(initial))


def innovations(
    problem: Problem, diffuse: np.ndarray, sparsity: Sparsity = DENSE
) -> Innovations:
    """Filter a dense problem, step by step on one device.

    Args:
        problem: The model with its data.
        diffuse: Which dimensions of the first state are, `(D,)`.
        sparsity: Of the transition.
    """
    unit = _unit_of(problem.values)
    problem = _in_units(problem, unit)
    model = steps_of(problem, None)
    F, Q = problem.weights, problem.covariance
    moves = _into_next(
        (F.array, F.varies), (Q.array, Q.varies), (problem.offsets, True)
    )
    open_ = jnp.asarray(diffuse)
    first = to_dense(problem.initial_covariance)
    first = jnp.where(open_[:, None] | open_, 0, first)
    start = jnp.eye(len(diffuse), dtype=first.dtype)[:, np.flatnonzero(diffuse)]
    start = jnp.append(problem.initial_mean[:, None], start, axis=1)
    scales = scales_of(to_dense(F), first, to_dense(Q))

    def step(carry: tuple, step_of: tuple[tuple, Entry]) -> tuple:
        (f, q, offset), entry = step_of
        here = problem._replace(**entry.varying)
        emission = here.emission_weights, here.emission_covariance
        data = here.values, here.observed
        rows = Emission(*emission, *data, model["whole"]).rows()
        means, cov, seen = _take_in(carry[0], carry[1], rows, scales)
        f = to_dense(F if f is None else F.like(f))
        q = to_dense(Q if q is None else Q.like(q))
        means = sparsity.matmul(f, means).at[:, 0].add(offset)
        through = sparsity.matmul(f, transpose(sparsity.matmul(f, cov)))
        return (means, symmetrize(through) + q), seen

    found: Array = lax.scan(step, (start, first), (moves, model["entries"]))[1]
    units = 2 * jnp.log(unit)
    logs = found[..., -1] + units * problem.observed
    return _regressed(found[..., :-1], logs, jnp.sum(problem.observed), units)


def _unit_of(values: Array) -> Array:
    """Return a power of two as large as the largest value, `()`, its square finite."""
    most = jnp.finfo(values.dtype).maxexp // 2 - 4
    largest = jnp.max(jnp.abs(lax.stop_gradient(values)), initial=0)
    exponent = jnp.where(largest > 0, jnp.frexp(largest)[1], 0)
    return jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, -most, most))


def _in_units(problem: Problem, unit: Array) -> Problem:
    """Return the problem with states and emissions in units of a number."""
    variances = "initial_covariance", "covariance", "emission_covariance"
    others = "initial_mean", "offsets", "values"
    scaled = {name: getattr(problem, name).scaled(1 / unit**2) for name in variances}
    scaled |= {name: getattr(problem, name) / unit for name in others}
    return problem._replace(**scaled)


def _into_next(*arrays: tuple[Array, bool]) -> tuple[Array | None, ...]:
    """Return what moves every state into the next step; the last one into anything."""
    return tuple(
        jnp.roll(array, -1, axis=0) if varies else None for array, varies in arrays
    )


def _take_in(
    means: Array, cov: Array, rows: Rows, scales: Array
) -> tuple[Array, Array, Array]:
    """Condition on the scalars of a step, one after the other.

    Returns:
        The means `(D, 1 + d)`, the covariance, and of every scalar its scaled errors
        and log s, `(E, 2 + d)`.
    """
    # Which of the series is the data: the others are of the diffuse dimensions.
    value = (jnp.arange(means.shape[1]) == 0).astype(means.dtype)
    # The variance that a value without noise is given.
    floors = floor_of(rows.weights, scales, jnp.finfo(cov.dtype).eps)

    def take_in(carry: tuple, row: tuple) -> tuple[tuple, Array]:
        (means, cov), (h, r, z, ok, floor) = carry, row
        gain = jnp.matmul(cov, h, precision=_HIGHEST)
        s = jnp.sum(gain * h) + r
        s = jnp.where(ok, jnp.maximum(s, floor), 1)
        scale = jnp.where(ok, lax.rsqrt(s), 0)
        errors = value * z - jnp.matmul(h, means, precision=_HIGHEST)
        errors = errors * scale
        # Scaled, its outer product is symmetric to the last bit.
        gain = gain * scale
        moved = means + gain[:, None] * errors, cov - gain[:, None] * gain
        return moved, jnp.append(errors, jnp.where(ok, jnp.log(s), 0))

    (means, cov), found = over_rows(take_in, (means, cov), (*rows, floors), True)
    return means, cov, found


def _regressed(rows: Array, logs: Array, count: Array, units: Array) -> Innovations:
    """Take the regression on the diffuse part out of scaled rows `(T, E, 1 + d)`.

    What it finds is in units whose squares have the logarithm `units`.
    """
    shape, size = rows.shape[:-1], rows.shape[-1] - 1
    rows = rows.reshape(-1, size + 1)
    w, X = rows[:, 0], rows[:, 1:]
    if size == 0:
        return Innovations(w.reshape(shape), logs, jnp.zeros((), w.dtype), count)
    factor, known = _triangle(lax.stop_gradient(X))
    inverse = _inverse_upper(factor)
    X = matmul(X, inverse) * known
    w = w - matvec(X, lax.stop_gradient(matvec(transpose(X), w)))
    gram = matmul(transpose(X), X) + jnp.diag(1 - known)
    unit, variances = whiten(gram)
    share = matvec(unit, matvec(transpose(X), w)) / variances
    residuals = w - matvec(X, matvec(transpose(unit), share))
    pivots = jnp.where(known > 0, jnp.abs(jnp.diagonal(factor)), 1)
    determinant = jnp.sum(jnp.log(variances)) + 2 * jnp.sum(jnp.log(pivots))
    determinant = determinant - units * jnp.sum(known)
    return Innovations(residuals.reshape(shape), logs, determinant, count)


def _triangle(X: Array) -> tuple[Array, Array]:
    """Return R `(d, d)` of X = Q R, and which columns depend on no earlier ones.

    Such a column is one of a coefficient that the data leave open; it has no pivot, and
    R a one in its place.
    """
    count, size = X.shape
    index = jnp.arange(count)
    eps = jnp.finfo(X.dtype).eps
    least = (_RANK * size * eps) ** 2 * jnp.sum(X**2, axis=0)

    def clear(k: Array, carry: tuple) -> tuple:
        table, row, places, known = carry
        x = jnp.where(index >= row, table[:, k], 0)
        found = jnp.sum(x * x) > least[k]
        table = jnp.where(found, reflected(table, x, row), table)
        return table, row + found, places.at[k].set(row), known.at[k].set(found)

    start = X, jnp.zeros((), int), jnp.zeros(size, int), jnp.zeros(size, bool)
    table, _, places, known = lax.fori_loop(0, size, clear, start)
    eye = jnp.eye(size, dtype=X.dtype)
    chosen = jnp.where(known[:, None], jnp.triu(table[places]), eye)
    return chosen, known.astype(X.dtype)


def _inverse_upper(factor: Array) -> Array:
    """Return the inverse of an upper triangular matrix."""
    size = factor.shape[0]
    eye = jnp.eye(size, dtype=factor.dtype)

    def clear(i: Array, found: Array) -> Array:
        k = size - 1 - i
        row = eye[k] - matvec(transpose(found), factor[k] * (jnp.arange(size) > k))
        return found.at[k].set(row / factor[k, k])

    return lax.fori_loop(0, size, clear, jnp.zeros_like(factor))
