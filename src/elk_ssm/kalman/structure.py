"""How a matrix is stored: dense, diagonal or scalar, declared by type, never sniffed.

All are NamedTuples over one array whose leading axes are free, so a time-varying
matrix is the same type with a leading time axis:

| type | holds | the matrix |
|---|---|---|
| `Dense` | `matrix: (..., N, D)` | itself |
| `Diagonal` | `diagonal: (..., D)` | `diag(diagonal)` |
| `ScaledIdentity` | `scale: (...)` | `scale * I`, its size taken from the model |

A bare array stands for `Dense` and needs at least two axes; the last two are always
the matrix, so `(D, D)` is static and `(T, D, D)` varies in time. A bare vector or
number would be ambiguous (a diagonal? one number for each step?) and is refused.
"""

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import Array


class Dense(NamedTuple):
    """A full matrix, `matrix` of shape `(..., D, D)`, or `(..., N, D)` for weights.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> elk.Dense(jnp.eye(2)).matrix.shape
        (2, 2)
    """

    matrix: Array


class Diagonal(NamedTuple):
    """A diagonal matrix, `diagonal` of shape `(..., D)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> varying = elk.Diagonal(jnp.ones((100, 2)))  # one for each of 100 steps
        >>> varying.diagonal.shape
        (100, 2)
    """

    diagonal: Array


class ScaledIdentity(NamedTuple):
    """A multiple of the identity, `scale` of shape `(...)`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.ScaledIdentity(0.5)
        ScaledIdentity(scale=0.5)
    """

    scale: Array | float


Operator: TypeAlias = Dense | Diagonal
Matrix: TypeAlias = Dense | Diagonal | ScaledIdentity | Array


def to_dense(operator: Operator) -> Array:
    """Return the operator as an array of shape `(..., D, D)`."""
    if isinstance(operator, Dense):
        return operator.matrix
    diagonal = operator.diagonal
    return diagonal[..., None] * jnp.eye(diagonal.shape[-1], dtype=diagonal.dtype)


def variances_of(operator: Operator) -> Array:
    """Return the diagonal of the operator, `(..., D)`.

    Example:
        >>> import jax.numpy as jnp
        >>> variances_of(Dense(jnp.array([[1.0, 2.0], [2.0, 5.0]]))).tolist()
        [1.0, 5.0]
    """
    if isinstance(operator, Diagonal):
        return operator.diagonal
    return jnp.diagonal(operator.matrix, axis1=-2, axis2=-1)


def as_operator(matrix: Any, size: int, name: str) -> Operator:
    """Read a declared matrix, giving a `ScaledIdentity` its size.

    Raises:
        ValueError: a bare array with fewer than two axes, or too few axes for the
            declared type.
    """
    if isinstance(matrix, ScaledIdentity):
        scale = jnp.asarray(matrix.scale)
        return Diagonal(jnp.broadcast_to(scale[..., None], (*scale.shape, size)))
    if isinstance(matrix, Diagonal):
        diagonal = jnp.asarray(matrix.diagonal)
        if diagonal.ndim < 1:
            raise ValueError(f"{name}: Diagonal expects (..., D); got a scalar.")
        return Diagonal(diagonal)
    dense = jnp.asarray(matrix.matrix if isinstance(matrix, Dense) else matrix)
    if dense.ndim < 2:
        raise ValueError(
            f"{name}: a matrix has at least two axes; got shape {dense.shape}. Declare "
            "a vector as Diagonal(vector) and a number as ScaledIdentity(number)."
        )
    return Dense(dense)


def at_step(operator: Operator, step: int | Array) -> Operator:
    """Return the matrix of one step; a static matrix is itself at every step."""
    if isinstance(operator, Dense):
        return Dense(operator.matrix[step]) if operator.matrix.ndim > 2 else operator
    diagonal = operator.diagonal
    return Diagonal(diagonal[step]) if diagonal.ndim > 1 else operator
