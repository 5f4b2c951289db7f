"""A structure that the library does not have: A is blocks of every n-th dimension.

The i-th of n blocks acts on the dimensions i, i + n, i + 2 n, ..., as those of a
Kronecker product with the identity do.
"""

import jax.numpy as jnp

from elk_ssm.linalg.structure import BlockDiagonal


class Interleaved(BlockDiagonal):
    """Blocks `(..., n, b, b)` of every n-th dimension."""

    __slots__ = ()

    def gather(self, x):
        """Take the dimensions of each block."""
        count, size = self.blocks.shape[-3:-1]
        return jnp.swapaxes(x.reshape(*x.shape[:-1], size, count), -1, -2)

    def scatter(self, x):
        """Put them back."""
        return jnp.swapaxes(x, -1, -2).reshape(*x.shape[:-2], -1)

    def to_dense(self):
        """Permute the block-diagonal matrix."""
        count, size = self.blocks.shape[-3:-1]
        place = jnp.arange(count * size).reshape(count, size).T.ravel()
        return BlockDiagonal(self.blocks).to_dense()[..., place[:, None], place]
