"""How a matrix is stored: declared by type, never sniffed.

All are NamedTuples over one array whose leading axes are free, so a time-varying
matrix is the same type with a leading time axis:

| type | holds | the matrix |
|---|---|---|
| `Dense` | `matrix: (..., N, D)` | itself |
| `Diagonal` | `diagonal: (..., D)` | `diag(diagonal)` |
| `BlockDiagonal` | `blocks: (..., n, b, b)` | n blocks on the diagonal |
| `ScaledIdentity` | `scale: (...)` | `scale * I`, its size taken from the model |
| `LowRank` | `factor: (..., D, r)` | `factor factor'`, a covariance of rank r |

A bare array stands for `Dense` and needs at least two axes; the last two are always
the matrix, so `(D, D)` is static and `(T, D, D)` varies in time. A bare vector or
number would be ambiguous (a diagonal? one number for each step?) and is refused.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm.linalg.block_diagonal import BlockDiagonal
from elk_ssm.linalg.dense import Dense
from elk_ssm.linalg.diagonal import Diagonal
from elk_ssm.linalg.operator import Operator
from elk_ssm.linalg.small import matmul, transpose

__all__ = [
    "BlockDiagonal",
    "Dense",
    "Diagonal",
    "LowRank",
    "Matrix",
    "Operator",
    "ScaledIdentity",
    "as_operator",
    "at_step",
    "common",
    "in_structure",
    "pattern_of",
    "to_dense",
    "unified",
    "variances_of",
]


class ScaledIdentity(NamedTuple):
    """A multiple of the identity, `scale` of shape `(...)`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.ScaledIdentity(0.5)
        ScaledIdentity(scale=0.5)
    """

    scale: Array | float


class LowRank(NamedTuple):
    """The covariance G G' of r independent noises, `factor` of shape `(..., D, r)`.

    Algorithms on linear models take it as dense. In a `NonlinearSSM` it says that the
    covariance is singular, where its numbers are not known yet (in `jit`, in `fit`).

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> elk.LowRank(jnp.ones((2, 1))).factor.shape
        (2, 1)
    """

    factor: Array


Matrix: TypeAlias = Operator | ScaledIdentity | LowRank | Array


def to_dense(operator: Operator) -> Array:
    """Return the operator as an array of shape `(..., D, D)`."""
    return operator.to_dense()


def variances_of(operator: Operator) -> Array:
    """Return the diagonal of the operator, `(..., D)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.linalg.structure import variances_of
        >>> variances_of(elk.Dense(jnp.array([[1.0, 2.0], [2.0, 5.0]]))).tolist()
        [1.0, 5.0]
    """
    return operator.variances()


def at_step(operator: Operator, step: int | Array) -> Operator:
    """Return the matrix of one step; a static matrix is itself at every step."""
    return operator.at(step)


def as_operator(matrix: Any, size: int, name: str) -> Operator:
    """Read a declared matrix, giving a `ScaledIdentity` its size.

    Raises:
        ValueError: a bare array with fewer than two axes, or too few axes for the
            declared type.
    """
    if isinstance(matrix, ScaledIdentity):
        scale = jnp.asarray(matrix.scale)
        return Diagonal(jnp.broadcast_to(scale[..., None], (*scale.shape, size)))
    if isinstance(matrix, LowRank):
        factor = jnp.asarray(matrix.factor)
        if factor.ndim < 2:
            raise ValueError(
                f"{name}: LowRank expects (..., D, r); got shape {factor.shape}."
            )
        return Dense(matmul(factor, transpose(factor)))
    declared = matrix if isinstance(matrix, Operator) else Dense(matrix)
    array = jnp.asarray(declared.array)
    if array.ndim >= declared.axes:
        return declared.like(array)
    if isinstance(declared, Dense):
        raise ValueError(
            f"{name}: a matrix has at least two axes; got shape {array.shape}. Declare "
            "a vector as Diagonal(vector) and a number as ScaledIdentity(number)."
        )
    kind, least = type(declared).__name__, declared.axes
    got = "a scalar" if array.ndim == 0 else f"shape {array.shape}"
    raise ValueError(f"{name}: {kind} expects at least {least} axes; got {got}.")


def in_structure(declared: Any, matrix: Array) -> Any:
    """Return what the structure of a declared matrix holds of a full one.

    Of all covariances of that structure it is the one under which noise of this sample
    covariance is likeliest, be it a diagonal, blocks, or a mean variance.

    Args:
        declared: As `as_operator` reads it; a bare array stays one.
        matrix: `(N, D)`, square unless the structure is dense.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.linalg.structure import in_structure
        >>> sample = jnp.array([[1.0, 0.5], [0.5, 3.0]])
        >>> in_structure(elk.ScaledIdentity(1.0), sample)
        ScaledIdentity(scale=Array(2., dtype=float32))
        >>> in_structure(elk.Diagonal(jnp.ones(2)), sample).diagonal.tolist()
        [1.0, 3.0]
    """
    if isinstance(declared, ScaledIdentity):
        return ScaledIdentity(jnp.mean(jnp.diagonal(matrix)))
    return declared.part_of(matrix) if isinstance(declared, Operator) else matrix


def pattern_of(declared: Any, rows: int, columns: int) -> np.ndarray:
    """Return which numbers a declared matrix is made of: `(N, D)` labels, -1 for none.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.linalg.structure import pattern_of
        >>> pattern_of(elk.ScaledIdentity(1.0), 2, 2).tolist()
        [[0, -1], [-1, 0]]
        >>> pattern_of(elk.Diagonal(jnp.ones(2)), 2, 2).tolist()
        [[0, -1], [-1, 3]]
    """
    if isinstance(declared, ScaledIdentity):
        return np.where(np.eye(rows) > 0, 0, -1)
    labels = np.arange(rows * columns).reshape(rows, columns)
    if not isinstance(declared, Operator):
        return labels
    with jax.ensure_compile_time_eval():
        ones = declared.like(jnp.ones(declared.array.shape[-declared.axes :]))
        return np.where(np.asarray(ones.to_dense()) > 0, labels, -1)


def common(*operators: Operator) -> tuple[Operator, ...]:
    """Return the operators in one structure: theirs, or else dense.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.linalg.structure import common
        >>> mixed = common(elk.Diagonal(jnp.ones(2)), elk.Dense(jnp.eye(2)))
        >>> [type(operator).__name__ for operator in mixed]
        ['Dense', 'Dense']
    """
    # Of one structure are those on the same groups of dimensions.
    kinds = {
        (jax.tree.structure(a), *a.array.shape[a.array.ndim - a.axes :])
        for a in operators
    }
    if len(kinds) == 1:
        return operators
    return tuple(Dense(operator.to_dense()) for operator in operators)


def unified(*operators: Operator) -> tuple[Operator, ...]:
    """Return the operators in the `common` structure of those that mix dimensions.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.linalg.structure import unified
        >>> block = elk.BlockDiagonal(jnp.ones((1, 2, 2)))
        >>> kinds = unified(elk.Diagonal(jnp.ones(2)), block)
        >>> [type(operator).__name__ for operator in kinds]
        ['BlockDiagonal', 'BlockDiagonal']
    """
    mixing = common(*(one for one in operators if one.mixes))
    if not mixing:
        return operators
    found = iter(mixing)
    return tuple(
        next(found) if one.mixes else mixing[0].diag(one.variances())
        for one in operators
    )
