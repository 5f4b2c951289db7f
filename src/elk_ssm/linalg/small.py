"""Products and solves of many small matrices, without LAPACK.

Every function acts on the last one or two axes and vectorises over the leading ones.
Batched LAPACK calls can hang on a CPU with few cores, and a batched `D x D` product
takes about a hundred times longer there as a `dot` than as an unrolled sum at
`D = 4`, so small sizes are written out as sums of outer products and elimination is
done by row operations on whole batches. All products ask for the highest precision
themselves, because the default on recent accelerators keeps only ten mantissa bits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_UNROLLED = 8
_HIGHEST = lax.Precision.HIGHEST


@jax.jit
def matmul(left: Array, right: Array) -> Array:
    """Multiply `(..., N, K)` by `(..., K, M)` at the highest precision.

    Args:
        left: `(..., N, K)`, any float dtype.
        right: `(..., K, M)`, the same dtype.

    Returns:
        `(..., N, M)`; the leading axes broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> matmul(jnp.eye(2), jnp.array([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
    """
    inner = left.shape[-1]
    if inner != right.shape[-2]:
        raise ValueError(f"cannot multiply {left.shape} by {right.shape}.")
    if not 0 < inner <= _UNROLLED:
        return jnp.matmul(left, right, precision=_HIGHEST)
    left, right = same_rank(left, right)
    terms = [left[..., :, k, None] * right[..., None, k, :] for k in range(inner)]
    return sum(terms[1:], terms[0])


@jax.jit
def matvec(matrix: Array, vector: Array) -> Array:
    """Multiply `(..., N, K)` by `(..., K)` at the highest precision.

    Example:
        >>> import jax.numpy as jnp
        >>> matvec(jnp.array([[1.0, 2.0]]), jnp.array([3.0, 4.0])).tolist()
        [11.0]
    """
    if matrix.shape[-1] != vector.shape[-1]:
        raise ValueError(f"cannot multiply {matrix.shape} by {vector.shape}.")
    inner = matrix.shape[-1]
    # Not a `sum`: XLA 0.10.2 on a CPU that fuses a random number generator into such a
    # reduction gives wrong numbers from element 32768 on.
    if 0 < inner <= _UNROLLED:
        matrix = raised(matrix, vector.ndim + 1)
        vector = raised(vector, matrix.ndim - 1)
        terms = [matrix[..., :, k] * vector[..., None, k] for k in range(inner)]
        return sum(terms[1:], terms[0])
    if matrix.ndim == 2 and vector.ndim == 1:
        return jnp.matmul(matrix, vector, precision=_HIGHEST)
    if matrix.ndim == 2:
        # One product, where one for each vector would repeat the matrix.
        return jnp.matmul(vector, matrix.T, precision=_HIGHEST)
    return jnp.matmul(matrix, vector[..., None], precision=_HIGHEST)[..., 0]


@jax.custom_jvp
def inverse_of(value: Array) -> Array:
    """Return 1 / value, with derivatives that never form the square of it.

    Of a variance of 1e20 that is inf in float32, and the derivative of a quotient would
    be zero; of a variance of 1e-20 it would be NaN.

    Example:
        >>> import jax
        >>> bool(jax.grad(lambda v: 1e20 * inverse_of(v) * 1e20)(1e20) == -1)
        True
    """
    return 1 / value


@inverse_of.defjvp
def _inverse_of_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    inverse = inverse_of(*primals)
    return inverse, -(tangents[0] * inverse) * inverse


def raised(array: Array, ndim: int) -> Array:
    """Write out the leading axes of length one that broadcasting would add.

    JAX may be set to refuse ranks that differ (`jax_numpy_rank_promotion`).
    """
    missing = ndim - array.ndim
    return array.reshape((1,) * missing + array.shape) if missing > 0 else array


def same_rank(left: Array, right: Array) -> tuple[Array, Array]:
    """Return two arrays with as many axes as the larger one has."""
    return raised(left, right.ndim), raised(right, left.ndim)


def transpose(matrix: Array) -> Array:
    """Swap the last two axes."""
    return jnp.swapaxes(matrix, -1, -2)


def product(left: Array, right: Array) -> Array:
    """Multiply matrices, each by its own: XLA reorders axes where one repeats."""
    batch = jnp.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    both = (jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (left, right))
    return matmul(*both)


def diagonal(matrices: Array) -> Array:
    """Return diagonals, `(..., D)`, by a slice: an accelerator need not gather."""
    size = matrices.shape[-1]
    return matrices.reshape(*matrices.shape[:-2], size * size)[..., :: size + 1]


def unit_like(like: Array) -> Array:
    """Return the unit matrix, with as many axes as matrices `(..., D, D)`."""
    eye = jnp.asarray(np.eye(like.shape[-1], dtype=like.dtype))
    return raised(eye, like.ndim)


def symmetrize(matrix: Array) -> Array:
    """Return the symmetric part of `(..., D, D)`.

    Example:
        >>> import jax.numpy as jnp
        >>> symmetrize(jnp.array([[1.0, 2.0], [0.0, 1.0]])).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    return 0.5 * (matrix + transpose(matrix)) if matrix.shape[-1] > 1 else matrix


@jax.jit
def solve(matrix: Array, rhs: Array) -> Array:
    """Solve `matrix @ x = rhs` by Gauss-Jordan elimination with partial pivoting.

    Derivatives come from the equation, not from the elimination. A singular matrix
    gives non-finite entries, never an exception.

    Args:
        matrix: `(..., D, D)`, any float dtype.
        rhs: `(..., D, K)`; the leading axes broadcast with those of `matrix`.

    Returns:
        `(..., D, K)`.

    Raises:
        ValueError: the trailing shapes do not match.

    Example:
        >>> import jax.numpy as jnp
        >>> matrix = jnp.array([[0.0, 2.0], [1.0, 0.0]])
        >>> solve(matrix, jnp.array([[2.0], [3.0]])).tolist()
        [[3.0], [1.0]]
    """
    size = matrix.shape[-1]
    if matrix.shape[-2] != size or rhs.shape[-2] != size:
        raise ValueError(
            "solve expects (..., D, D) and (..., D, K); "
            f"got {matrix.shape} and {rhs.shape}."
        )
    batch = jnp.broadcast_shapes(matrix.shape[:-2], rhs.shape[:-2])
    matrix = jnp.broadcast_to(matrix, (*batch, size, size))
    rhs = jnp.broadcast_to(rhs, (*batch, *rhs.shape[-2:]))
    return lax.custom_linear_solve(
        lambda x: matmul(matrix, x),
        rhs,
        lambda _, b: _eliminate(matrix, b),
        lambda _, b: _eliminate(transpose(matrix), b),
    )


def _eliminate(matrix: Array, rhs: Array) -> Array:
    size = matrix.shape[-1]
    table = jnp.concatenate([matrix, rhs], axis=-1)
    return over_pivots(size, lambda k, t: _pivot_step(t, k, size), table)[..., size:]


def over_pivots(size: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """Return `body(k, carry)` run for k = 0, ..., size - 1, written out if small.

    An unrolled elimination takes the compiler long at larger sizes.
    """
    if size > _UNROLLED:
        return lax.fori_loop(0, size, body, carry)
    for k in range(size):
        carry = body(k, carry)
    return carry


def _pivot_step(table: Array, k: int | Array, size: int) -> Array:
    """Bring the largest entry of column `k` to row `k` and clear the column.

    Rows move by masks instead of gathers: it is the same program for every batch
    member, and a non-finite entry stays in its own row until it is used.
    """
    rows = jnp.arange(size)
    column = lax.dynamic_index_in_dim(table, k, axis=-1, keepdims=False)
    candidates = jnp.where(rows >= k, jnp.abs(column), -1.0)
    best = jnp.argmax(candidates, axis=-1)[..., None]
    is_best = (raised(rows, best.ndim) == best)[..., None]
    is_k = raised((rows == k)[:, None], table.ndim)
    row_k = lax.dynamic_index_in_dim(table, k, axis=-2)
    row_best = jnp.sum(jnp.where(is_best, table, 0.0), axis=-2, keepdims=True)
    swapped = jnp.where(is_best, row_k, table)
    pivot = row_best / lax.dynamic_index_in_dim(row_best, k, axis=-1)
    factors = lax.dynamic_index_in_dim(swapped, k, axis=-1)
    return jnp.where(is_k, pivot, swapped - factors * pivot)
