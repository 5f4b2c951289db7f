r"""The emissions of a trajectory as independent scalar observations of its increments.

Around x_t, row i of step t observes h_ti . d_t as v_ti with variance r_ti. Gaussian
emissions give E of them, decorrelated. A log density with gradient g and negative
Hessian M in its predictor eta = h(z) enters by Newton weights: M, made PSD, is
L diag(c) L', its rows are L' H with variances 1 / c and values L^-1 g / c. The
surrogate then has the gradient of the true log density whatever was done to M, so the
fixed points do not move. What is done to M depends on what the expansion is for:

    "exact"      negative pivots are dropped: the Gaussian at a mode
    "positive"   they count by their size, flat directions by next to nothing: a pass
                 that a line search or a trust region guards
    "scored"     a tenth of g g' besides, whose mean is the Fisher information: a pass
                 that nothing guards. It makes the step about 10 / g, too short where a
                 density is steep, so no iteration uses it
"""

from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.observations import Observations
from elk_ssm.kalman.scalar_updates import Rows
from elk_ssm.linalg.small import matmul
from elk_ssm.linalg.structure import Dense, Operator, to_dense
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.slopes import Linearization, regress, value_and_jacobian

Weights: TypeAlias = Literal["exact", "positive", "scored"]
_OUTER = 0.1


def taylor_rows(posed: Posed, points: Array, kind: Weights) -> Rows:
    """Expand every emission at its state, by Jacobian or Newton weights."""
    return posed.over_emissions(partial(step_rows, posed, kind=kind), points)


def step_rows(
    posed: Posed,
    point: Array,
    entry: PyTree,
    covariance: Operator | None,
    seen: Observations,
    kind: Weights,
) -> Rows:
    """Expand the emission of one step around a state `(D,)`."""
    mean, H = value_and_jacobian(lambda x: posed.call("emission", x, entry), point)
    if not posed.is_gaussian:
        return _newton_rows(posed, mean, H, entry, seen, kind)
    return seen.whitened(mean, H, posed.emission_noise(point, entry, covariance))


def _newton_rows(posed, eta, H, entry, seen: Observations, kind: Weights) -> Rows:
    def density(eta: Array) -> Array:
        return posed.call("log_density", eta, seen.values, entry)

    gradient = jax.grad(density)(eta)
    matrix = -jax.hessian(density)(eta)
    if kind == "scored":
        factors, pivots = modified_factors(matrix, replace=True)
        # Of the factored matrix, so that its range contains the gradient.
        matrix = matmul(factors * pivots, factors.T)
        matrix = matrix + _OUTER * gradient[:, None] * gradient
    factors, pivots = modified_factors(matrix, replace=kind == "positive")
    if kind == "positive":
        pivots = jnp.maximum(pivots, least_precision(pivots.dtype))
    ok = seen.observed & (pivots > 0)
    weights = matmul(factors.T, H)
    values = _forward_substitute(factors, gradient)
    variances = jnp.where(ok, 1 / jnp.where(ok, pivots, 1), 1)
    return Rows(weights, variances, jnp.where(ok, values * variances, 0), ok)


def least_precision(dtype: Any) -> float:
    """Return a precision that tells nothing, for a row that only pulls."""
    return float(jnp.finfo(dtype).tiny) ** 0.5


def modified_factors(matrix: Array, *, replace: bool) -> tuple[Array, Array]:
    """Factor a symmetric matrix as L diag(c) L', L unit lower triangular, c >= 0.

    A PSD matrix is factored as it is. Otherwise pivots are changed as by Gill and
    Murray (Nocedal & Wright 2006, section 3.4) if `replace`, and else dropped: the
    result is then PSD with a zero row.
    """
    size = matrix.shape[0]
    index = jnp.arange(size)
    diagonal = jnp.max(jnp.abs(jnp.diagonal(matrix)))
    off = jnp.max(jnp.abs(matrix - jnp.diag(jnp.diagonal(matrix))))
    bound = jnp.maximum(diagonal, off / max(1.0, (size**2 - 1) ** 0.5))
    bound = jnp.where(bound > 0, bound, 1)
    rest, columns, pivots = matrix, [], []
    for k in range(size):
        below = jnp.where(index > k, rest[:, k], 0)
        pivot = rest[k, k]
        if replace:
            # Negative curvature counts by its size; a flat direction stays flat.
            largest = jnp.max(jnp.abs(below))
            pivot = jnp.maximum(jnp.abs(pivot), largest**2 / bound)
        else:
            pivot = jnp.where(pivot > 8 * jnp.finfo(matrix.dtype).eps * bound, pivot, 0)
        ratio = jnp.where(pivot > 0, below / jnp.where(pivot > 0, pivot, 1), 0)
        column = ratio + (index == k).astype(ratio.dtype)
        rest = rest - pivot * column[:, None] * column[None, :]
        columns.append(column)
        pivots.append(pivot)
    return jnp.stack(columns, axis=1), jnp.stack(pivots)


def _forward_substitute(lower: Array, vector: Array) -> Array:
    """Solve L x = vector, L unit lower triangular."""
    for k in range(vector.shape[0]):
        column = jnp.where(jnp.arange(vector.shape[0]) > k, lower[:, k], 0)
        vector = vector - column * vector[k]
    return vector


def sigma_rows(posed: Posed, points: Array, roots: Array, kind: Linearization) -> Rows:
    """Regress every Gaussian emission on the spread S S' of its state."""

    def one(state, root, entry, covariance, seen) -> Rows:
        H, mean, excess = regress(
            lambda x: posed.call("emission", x, entry), state, root, kind
        )
        noise = posed.emission_noise(state, entry, covariance)
        return seen.whitened(mean, H, Dense(to_dense(noise) + excess))

    return posed.over_emissions(one, points, roots)
