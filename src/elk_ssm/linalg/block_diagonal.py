"""Block-diagonal matrices: n dense blocks side by side on the diagonal.

Groups of dimensions mix inside and not between each other, as the cells of a layer that
have a few numbers each.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.groups import Groups


class BlockDiagonal(NamedTuple("BlockDiagonal", [("blocks", Array)]), Groups):
    """A block-diagonal matrix, `blocks` of shape `(..., n, b, b)`, with n b = D.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> elk.BlockDiagonal(jnp.stack([swap, 2 * swap])).mv(jnp.arange(4.0)).tolist()
        [1.0, 0.0, 6.0, 4.0]
    """

    __slots__ = ()

    def gather(self, x: Array) -> Array:
        """Turn vectors `(..., n b)` into `(..., n, b)`."""
        return x.reshape(*x.shape[:-1], *self.blocks.shape[-3:-1])

    def scatter(self, x: Array) -> Array:
        """Turn vectors `(..., n, b)` into `(..., n b)`."""
        return x.reshape(*x.shape[:-2], -1)

    def to_dense(self) -> Array:
        """Return the array of shape `(..., D, D)`."""
        *lead, count, size, _ = self.blocks.shape
        eye = jnp.eye(count, dtype=self.blocks.dtype)
        full = self.blocks[..., :, :, None, :] * eye[:, None, :, None]
        return full.reshape(*lead, count * size, count * size)
