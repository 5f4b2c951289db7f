"""Block-diagonal matrices: n dense blocks side by side on the diagonal.

Groups of dimensions mix inside and not between each other, as the cells of a layer that
have a few numbers each. Every verb is that of `Dense` over one more leading axis.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.dense import Dense
from elk_ssm.linalg.operator import Operator


def _by_blocks(name: str) -> Callable[..., Any]:
    """Return a verb of `Dense`, on the blocks."""

    def verb(self: "BlockDiagonal", *operands: Any) -> Any:
        found = getattr(Dense, name)(Dense(self.blocks), *map(self.cut, operands))
        return self.join(found)

    return verb


class BlockDiagonal(NamedTuple("BlockDiagonal", [("blocks", Array)]), Operator):
    """A block-diagonal matrix, `blocks` of shape `(..., n, b, b)`, with n b = D.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> elk.BlockDiagonal(jnp.stack([swap, 2 * swap])).mv(jnp.arange(4.0)).tolist()
        [1.0, 0.0, 6.0, 4.0]
    """

    __slots__ = ()
    axes: ClassVar[int] = 3
    grouped: ClassVar[bool] = True

    def cut(self, x: Any) -> Any:
        """Turn vectors `(..., n b)` into `(..., n, b)`, and operators into `Dense`."""
        if isinstance(x, BlockDiagonal):
            return Dense(x.blocks)
        return x.reshape(*x.shape[:-1], *self.blocks.shape[-3:-1])

    def join(self, found: Any) -> Any:
        """Turn results of `Dense`, at any depth of a pytree, back."""

        def one(x: Any) -> Any:
            if isinstance(x, Dense):
                return self.like(x.matrix)
            return x.reshape(*x.shape[:-2], -1)

        return jax.tree.map(one, found, is_leaf=lambda x: isinstance(x, Dense))

    mv = _by_blocks("mv")
    push = _by_blocks("push")
    mm = _by_blocks("mm")
    solve = _by_blocks("solve")
    scale_rows = _by_blocks("scale_rows")
    diag = _by_blocks("diag")
    variances = _by_blocks("variances")
    observe = _by_blocks("observe")
    observe_run = _by_blocks("observe_run")

    @property
    def T(self) -> Self:
        """The transpose."""
        return self.join(Dense(self.blocks).T)

    def to_dense(self) -> Array:
        """Return the array of shape `(..., D, D)`."""
        *lead, count, size, _ = self.blocks.shape
        eye = jnp.eye(count, dtype=self.blocks.dtype)
        full = self.blocks[..., :, :, None, :] * eye[:, None, :, None]
        return full.reshape(*lead, count * size, count * size)
