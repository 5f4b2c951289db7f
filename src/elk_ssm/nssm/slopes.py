"""The slope of a function: its Jacobian at a point, or its regression on a Gaussian."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.linalg.small import matmul, matvec, solve, transpose

Linearization: TypeAlias = Literal["taylor", "unscented", "cubature"]


def value_and_jacobian(function, point: Array) -> tuple[Array, Array]:
    """Return f(x) and df/dx, by one linearisation."""
    value, push = jax.linearize(function, point)
    basis = jnp.eye(point.shape[0], dtype=point.dtype)
    return value, jax.vmap(push, out_axes=-1)(basis)


def sigma_points(kind: Linearization, size: int) -> tuple[list[list[float]], list]:
    """Return points `(J, D)` and weights `(J,)` with unit covariance.

    Cubature: 2 D points at distance sqrt(D) (Arasaratnam & Haykin 2009). Unscented:
    one more at the centre, with alpha = sqrt(3), beta = 2, kappa = 1 as in dynamax, so
    that all weights are positive.
    """
    spread = size if kind == "cubature" else 3 * (size + 1)
    eye = [[float(i == j) * spread**0.5 for j in range(size)] for i in range(size)]
    points = eye + [[-x for x in row] for row in eye]
    weights = [1 / (2 * spread)] * (2 * size)
    if kind == "unscented":
        return [[0.0] * size, *points], [1 - size / spread, *weights]
    return points, weights


def regress(
    function: Callable[[Array], Array], state: Array, root: Array, kind: Linearization
) -> tuple[Array, Array, Array]:
    """Return regression matrix, mean and error covariance under N(state, S S')."""
    points, weights = sigma_points(kind, state.shape[0])
    xi, w = jnp.asarray(points, state.dtype), jnp.asarray(weights, state.dtype)
    values = jax.vmap(lambda x: function(state + matvec(root, x)))(xi)
    mean = jnp.sum(w[:, None] * values, axis=0)
    centred = values - mean[None]
    slope = matmul(transpose(w[:, None] * centred), xi)
    error = matmul(transpose(w[:, None] * centred), centred)
    matrix = transpose(solve(transpose(root), transpose(slope)))
    return matrix, mean, error - matmul(slope, transpose(slope))
