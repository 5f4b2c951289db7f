r"""Affine recurrences, forwards and backwards in time.

    forward     x_t = A_t x_{t-1} + b_t,        t = 1, ..., T,  x_0 = 0
    reversed    x_t = A_{t+1}^T x_{t+1} + b_t,  t = T, ..., 1,  x_{T+1} = 0

Entry t of `A` maps state t - 1 to state t, in both directions, so the reversed scan is
the transpose of the forward one: <c, forward(b)> = <reversed(c), b>. An initial state
enters through b_1. The associative element is the pair (A, b) with
(A_2, b_2) . (A_1, b_1) = (A_2 A_1, A_2 b_1 + b_2).
"""

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.backend import Backend, by_backend
from elk_ssm.kalman.small_linalg import matmul, matvec
from elk_ssm.kalman.structure import Dense, Diagonal, Operator


def affine_scan(
    operator: Operator, offsets: Array, *, reverse: bool = False, backend: Backend
) -> Array:
    """Solve the affine recurrence of the module docstring.

    Args:
        operator: A_1, ..., A_T, `Dense` of `(T, D, D)` or `Diagonal` of `(T, D)`.
        offsets: b_1, ..., b_T, shape `(T, D)`.
        reverse: Whether to run the transposed recurrence.
        backend: `"auto"`, `"sequential"` or `"associative"`.

    Returns:
        The states x_1, ..., x_T, shape `(T, D)`.
    """
    if reverse:
        flipped = jax.tree.map(_shift_back, _transpose(operator))
        return affine_scan(flipped, offsets[::-1], backend=backend)[::-1]
    return by_backend(backend, _sequential, _associative, operator, offsets)


def _transpose(operator: Operator) -> Operator:
    if isinstance(operator, Dense):
        return Dense(jnp.swapaxes(operator.matrix, -1, -2))
    return operator


def _shift_back(x: Array) -> Array:
    """Reverse time and let entry t hold what was entry t + 1."""
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:0:-1]])


def apply(operator: Operator, x: Array) -> Array:
    """Multiply states `(..., D)` by an operator with the same leading axes."""
    if isinstance(operator, Diagonal):
        return operator.diagonal * x
    return matvec(operator.matrix, x)


def _sequential(operator: Operator, offsets: Array) -> Array:
    def step(x: Array, entry: tuple[Operator, Array]) -> tuple[Array, Array]:
        x = apply(entry[0], x) + entry[1]
        return x, x

    return jax.lax.scan(step, jnp.zeros_like(offsets[0]), (operator, offsets))[1]


def _associative(operator: Operator, offsets: Array) -> Array:
    combine = _combine_diagonal if isinstance(operator, Diagonal) else _combine_dense
    return jax.lax.associative_scan(combine, (operator[0], offsets))[1]


def _combine_diagonal(
    first: tuple[Array, Array], second: tuple[Array, Array]
) -> tuple[Array, Array]:
    return second[0] * first[0], second[0] * first[1] + second[1]


def _combine_dense(
    first: tuple[Array, Array], second: tuple[Array, Array]
) -> tuple[Array, Array]:
    return matmul(second[0], first[0]), matvec(second[0], first[1]) + second[1]
