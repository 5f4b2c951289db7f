r"""Products with a matrix of which it is known where its entries may not be zero.

A few diagonals near the main one, which cost one fused multiplication each, and rows
that reach further, which are multiplied as they are:

    (F X)_i = sum_o F_{i, i + o} X_{i + o}    or    F_i X       |o| <= 2

The transition of levels, slopes, pairs that turn and companions is all of this kind,
at a fifth of the cost of a dense product from some eight dimensions on.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm.linalg.small import matmul

_REACH = 2
# Fewer dimensions than this are as quickly multiplied densely.
_FEWEST = 4


@dataclass(frozen=True)
class Sparsity:
    """Which entries of a square matrix may differ from zero.

    Attributes:
        offsets: The diagonals near the main one that are in use.
        rows: The rows that are multiplied as they are; `None` for all of them.
    """

    offsets: tuple[int, ...] = ()
    rows: tuple[int, ...] | None = None

    @classmethod
    def of(cls, nonzero: np.ndarray) -> "Sparsity":
        """Read it off a boolean matrix.

        Example:
            >>> Sparsity.of(np.eye(5, dtype=bool))
            Sparsity(offsets=(0,), rows=())
        """
        size = len(nonzero)
        row, column = np.nonzero(nonzero)
        far = np.abs(column - row) > _REACH
        rows = tuple(map(int, np.unique(row[far])))
        if size < _FEWEST or 2 * len(rows) > size:
            return cls()
        near = ~np.isin(row, rows)
        return cls(tuple(map(int, np.unique((column - row)[near]))), rows)

    def matmul(self, matrix: Array, right: Array) -> Array:
        """Return F X for F `(D, D)` and X `(D, K)`."""
        if self.rows is None:
            return matmul(matrix, right)
        found = jnp.zeros_like(right)
        for offset in self.offsets:
            found = found + self._diagonal(matrix, offset)[:, None] * _moved(
                right, offset
            )
        if not self.rows:
            return found
        rows = np.array(self.rows)
        return found.at[rows].set(matmul(matrix[rows], right))

    def _diagonal(self, matrix: Array, offset: int) -> Array:
        """Return F_{i, i + o} for every i, zero where there is none, `(D,)`."""
        diagonal = jnp.diagonal(matrix, offset)
        size = (-offset, 0) if offset < 0 else (0, offset)
        return jnp.pad(diagonal, size)


DENSE = Sparsity()
"""Of a matrix of which nothing is known."""


def _moved(right: Array, offset: int) -> Array:
    """Return X_{i + o} for every i."""
    if offset == 0:
        return right
    rest = right[offset:] if offset > 0 else right[:offset]
    size = (0, offset) if offset > 0 else (-offset, 0)
    return jnp.pad(rest, (size, (0, 0)))
