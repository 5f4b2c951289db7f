"""Factors of many small matrices, by a library on an accelerator.

There a batch is one launch, of all but orthogonal factors, which are found one after
the other and are only asked for of one or two matrices of a model. On a CPU, where
LAPACK calls of a batch can hang, they are written out.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from elk_ssm._platforms import by_platform
from elk_ssm.kalman.runs import triangular
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.small import diagonal, solve, transpose


def root_of(covariance: Array) -> Array:
    """Return a lower triangular L with L L' = C, `(..., D, D)`; NaN if there is none.

    By a library on an accelerator. Batches of small matrices are a hazard to LAPACK.
    """

    def by_pivots(covariance: Array) -> Array:
        root = square_root(covariance)
        return jnp.where(jnp.all(jnp.diagonal(root) > 0), root, jnp.nan)

    by_library = partial(lax.linalg.cholesky, symmetrize_input=False)
    return by_platform(covariance, cpu=_each(by_pivots), default=by_library)


def sound_root_of(matrices: Array, loss: float, largest: float = np.inf) -> Array:
    """Return factors, with rows that are NaN where they would leave no digits.

    Args:
        matrices: `(..., D, D)`.
        loss: How much larger a diagonal entry may be than what the rows before leave.
        largest: How large one may be.
    """
    root = root_of(matrices)
    sizes, left = diagonal(matrices), diagonal(root) ** 2
    sound = (sizes <= largest) & (sizes <= loss * left)
    return jnp.where(sound[..., None], root, jnp.nan)


def solve_lower(root: Array, rhs: Array) -> Array:
    """Return L^{-1} of right-hand sides `(..., D, K)`."""
    by_library = partial(lax.linalg.triangular_solve, left_side=True, lower=True)
    return by_platform(root, rhs, cpu=solve, default=by_library)


def solve_upper(root: Array, rhs: Array) -> Array:
    """Return L'^{-1} of right-hand sides `(..., D, K)`."""
    by_library = partial(
        lax.linalg.triangular_solve, left_side=True, lower=True, transpose_a=True
    )
    turned = lambda root, rhs: solve(transpose(root), rhs)  # noqa: E731
    return by_platform(root, rhs, cpu=turned, default=by_library)


def triangle(rows: Array) -> Array:
    """Return `(..., D, D)` rows that say what `(..., n, D)` do, n at least D."""
    size = rows.shape[-1]

    def by_reflections(rows: Array) -> Array:
        return triangular(rows, size)[:size]

    def by_library(rows: Array) -> Array:
        return jnp.asarray(jnp.linalg.qr(rows, mode="r"))

    return by_platform(rows, cpu=_each(by_reflections), default=by_library)


def orthonormal(rows: Array) -> tuple[Array, Array]:
    """Return an orthonormal basis `(n, D)` of columns of rows, and the triangle."""
    seen, size = rows.shape

    def by_reflections(rows: Array) -> tuple[Array, Array]:
        eye = jnp.eye(seen, dtype=rows.dtype)
        table = triangular(jnp.append(rows, eye, axis=1), size)[:size]
        return transpose(table[:, size:]), table[:, :size]

    def by_library(rows: Array) -> tuple[Array, Array]:
        basis, table = jnp.linalg.qr(rows)
        return basis, table

    return by_platform(rows, cpu=by_reflections, default=by_library)


def _each(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return jnp.vectorize(function, signature="(n,d)->(m,d)")
