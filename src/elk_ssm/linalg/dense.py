"""Full matrices."""

from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm.linalg.observe import observe_coordinates
from elk_ssm.linalg.operator import Observed, Operator
from elk_ssm.linalg.small import inverse_of, matmul, matvec, raised, solve, transpose


class Dense(NamedTuple("Dense", [("matrix", Array)]), Operator):
    """A full matrix, `matrix` of shape `(..., D, D)`, or `(..., N, D)` for weights.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> elk.Dense(jnp.eye(2)).matrix.shape
        (2, 2)
    """

    __slots__ = ()
    axes: ClassVar[int] = 2

    def mv(self, x: Array) -> Array:
        """Return A x."""
        return matvec(self.matrix, x)

    def push(self, x: Array) -> Array:
        """Return A x in which an exact zero of x stays one."""
        return jnp.sum(self._terms(x), axis=-1)

    def push_onto(self, x: Array, b: Array) -> Array:
        """Return A x + b likewise; b is a term of the sum, which is one kernel then."""
        first = raised(np.arange(x.shape[-1]) == 0, x.ndim + 1)
        return jnp.sum(self._terms(x) + jnp.where(first, b[..., None], 0), axis=-1)

    def _terms(self, x: Array) -> Array:
        """Return A_ij x_j, `(..., D, D)`, which are zero where x_j is."""
        row, rows = x[..., None, :], self.matrix.shape[-2]
        # What is asked of x alone is a kernel of its own on an accelerator, which asks
        # it before the products are made. So a zero of every row is compared with.
        zero = jnp.minimum(jnp.arange(rows), 0).astype(x.dtype)
        zero = raised(zero[:, None], row.ndim)
        return jnp.where(row == zero, 0, self.matrix * row)

    def mm(self, other: Self) -> Self:
        """Return A B."""
        return self.like(matmul(self.matrix, other.matrix))

    @property
    def T(self) -> Self:
        """The transpose."""
        return self.like(transpose(self.matrix))

    def solve(self, *right: Any) -> tuple[Any, ...]:
        """Return A^{-1} B for matrices and vectors B, by one elimination."""
        columns = [b.matrix if isinstance(b, Dense) else b[..., None] for b in right]
        found = solve(self.matrix, jnp.concatenate(columns, axis=-1))
        parts, begin = [], 0
        for b, column in zip(right, columns, strict=True):
            part = found[..., begin : begin + column.shape[-1]]
            parts.append(Dense(part) if isinstance(b, Dense) else part[..., 0])
            begin += column.shape[-1]
        return tuple(parts)

    def scale_rows(self, factors: Array) -> Self:
        """Return diag(factors) A."""
        return self.like(factors[..., None] * self.matrix)

    def clipped(self, radius: Array) -> Self:
        """Shrink by a bound of the largest singular value, sqrt(|A|_1 |A|_inf)."""
        size = jnp.abs(self.matrix)
        bound = jnp.sqrt(size.sum(-1).max(-1) * size.sum(-2).max(-1))
        return self.scaled(jnp.minimum(1, radius / jnp.where(bound > 0, bound, 1)))

    def diag(self, entries: Array) -> Self:
        """Return a diagonal matrix as a full one."""
        # Chosen and not multiplied, of which infinite entries would make NaN.
        here = raised(jnp.eye(entries.shape[-1], dtype=bool), entries.ndim + 1)
        return self.like(jnp.where(here, entries[..., None], 0))

    def variances(self) -> Array:
        """Return the diagonal."""
        return jnp.diagonal(self.matrix, axis1=-2, axis2=-1)

    def to_dense(self) -> Array:
        """Return the array."""
        return self.matrix

    def part_of(self, matrix: Array) -> Self:
        """Return all of it."""
        return self.like(matrix)

    def observe(self, mean: Array, noise: Array) -> Observed:
        """Condition N(mean, A) on zeros seen with variances `noise`."""
        seen = observe_coordinates(self.matrix, noise, mean[..., None])
        covariance, table, rows, totals = seen
        return Observed(table[..., 0], self.like(covariance), rows[..., 0], totals)

    def observe_run(self, A: Self, b: Array, noise: Array) -> tuple:
        """Condition N(A x + b, self) likewise, where x is not known."""
        table = jnp.concatenate([b[..., None], A.matrix], axis=-1)
        covariance, table, rows, totals = observe_coordinates(self.matrix, noise, table)
        back = transpose(rows[..., 1:])
        evidence = matmul(back, rows * inverse_of(totals)[..., None])
        run = self.like(table[..., 1:]), table[..., 0], self.like(covariance)
        return *run, -evidence[..., 0], self.like(evidence[..., 1:])
