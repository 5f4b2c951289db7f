"""Block-diagonal matrices: n dense blocks side by side on the diagonal.

Groups of dimensions mix inside and not between each other, as the cells of a layer that
have a few numbers each. Every verb is that of `Dense` over one more leading axis.
"""

from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.dense import Dense
from elk_ssm.linalg.operator import Observed, Operator


class BlockDiagonal(NamedTuple("BlockDiagonal", [("blocks", Array)]), Operator):
    """A block-diagonal matrix, `blocks` of shape `(..., n, b, b)`, with n b = D.

    Example:
        >>> import jax.numpy as jnp
        >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> BlockDiagonal(jnp.stack([swap, 2 * swap])).mv(jnp.arange(4.0)).tolist()
        [1.0, 0.0, 6.0, 4.0]
    """

    __slots__ = ()
    axes: ClassVar[int] = 3

    @property
    def _inner(self) -> Dense:
        return Dense(self.blocks)

    def _cut(self, x: Any) -> Any:
        """Turn vectors `(..., n b)` into `(..., n, b)`, and operators into `Dense`."""
        if isinstance(x, BlockDiagonal):
            return x._inner
        return x.reshape(*x.shape[:-1], *self.blocks.shape[-3:-1])

    def _joined(self, found: Any) -> Any:
        """Turn results of `Dense`, at any depth of a pytree, back."""

        def one(x: Any) -> Any:
            if isinstance(x, Dense):
                return BlockDiagonal(x.matrix)
            return x.reshape(*x.shape[:-2], -1)

        return jax.tree.map(one, found, is_leaf=lambda x: isinstance(x, Dense))

    def mv(self, x: Array) -> Array:
        """Return A x."""
        return self._joined(self._inner.mv(self._cut(x)))

    def push(self, x: Array) -> Array:
        """Return A x in which an exact zero of x stays one."""
        return self._joined(self._inner.push(self._cut(x)))

    def mm(self, other: Self) -> Self:
        """Return A B."""
        return self._joined(self._inner.mm(other._inner))

    @property
    def T(self) -> Self:
        """The transpose."""
        return self._joined(self._inner.T)

    def solve(self, *right: Any) -> tuple[Any, ...]:
        """Return A^{-1} B for matrices and vectors B, by one elimination a block."""
        return self._joined(self._inner.solve(*map(self._cut, right)))

    def scale_rows(self, factors: Array) -> Self:
        """Return diag(factors) A."""
        return self._joined(self._inner.scale_rows(self._cut(factors)))

    def diag(self, entries: Array) -> Self:
        """Return a diagonal matrix in blocks of this size."""
        return self._joined(self._inner.diag(self._cut(entries)))

    def variances(self) -> Array:
        """Return the diagonal."""
        return self._joined(self._inner.variances())

    def to_dense(self) -> Array:
        """Return the array of shape `(..., D, D)`."""
        *lead, count, size, _ = self.blocks.shape
        eye = jnp.eye(count, dtype=self.blocks.dtype)
        full = self.blocks[..., :, :, None, :] * eye[:, None, :, None]
        return full.reshape(*lead, count * size, count * size)

    def observe(self, mean: Array, noise: Array) -> Observed:
        """Condition N(mean, A) on zeros seen with variances `noise`."""
        return self._joined(self._inner.observe(self._cut(mean), self._cut(noise)))

    def observe_run(self, A: Self, b: Array, noise: Array) -> tuple:
        """Condition N(A x + b, self) likewise, where x is not known."""
        found = self._inner.observe_run(A._inner, self._cut(b), self._cut(noise))
        return self._joined(found)
