"""Blocks of dimensions that do not stand side by side, such as (c_i, h_i) of an LSTM.

Which dimensions make up a group is part of the structure and not of its data. Groups
may have fewer members than there is room for: what is missing is a dimension of its own
that no other one acts on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm.linalg.block_diagonal import BlockDiagonal
from elk_ssm.linalg.groups import Groups

NOBODY = -1
"""Stands in `members` where a group has fewer than b of them."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grouped(Groups):
    """A matrix that is block-diagonal once the dimensions are put in groups.

    Attributes:
        blocks: `(..., n, b, b)`.
        members: The b dimensions of each of the n groups, `NOBODY` where there are
            fewer; None for every n-th one, i, i + n, i + 2 n, ... being those of
            group i.

    Example:
        >>> import jax.numpy as jnp
        >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> Grouped(jnp.stack([swap, swap])).mv(jnp.arange(4.0)).tolist()
        [2.0, 3.0, 0.0, 1.0]
    """

    blocks: Array
    members: tuple[tuple[int, ...], ...] | None = field(
        default=None, metadata={"static": True}
    )

    @property
    def array(self) -> Array:
        """The blocks."""
        return self.blocks

    def like(self, array: Array) -> Self:
        """Return an operator on the same groups that holds other blocks."""
        return type(self)(array, self.members)

    def gather(self, x: Array) -> Array:
        """Turn vectors `(..., D)` into `(..., n, b)`."""
        if self.members is None:
            count, size = self.blocks.shape[-3:-1]
            return jnp.swapaxes(x.reshape(*x.shape[:-1], size, count), -1, -2)
        # A variance of one, or a state of one, for those that are missing.
        padded = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        return padded[..., np.array(self.members)]

    def scatter(self, x: Array) -> Array:
        """Turn vectors `(..., n, b)` back into `(..., D)`."""
        if self.members is None:
            return jnp.swapaxes(x, -1, -2).reshape(*x.shape[:-2], -1)
        return x.reshape(*x.shape[:-2], -1)[..., places(self.members)]

    def to_dense(self) -> Array:
        """Return the array of shape `(..., D, D)`."""
        count, size = self.blocks.shape[-3:-1]
        if self.members is None:
            place = np.arange(count * size).reshape(count, size).T.ravel()
        else:
            place = places(self.members)
        return BlockDiagonal(self.blocks).to_dense()[..., place[:, None], place]


def places(members: Sequence[Sequence[int]]) -> np.ndarray:
    """Where each dimension stands among the members, all groups in a row.

    Example:
        >>> places(((0, 2), (1, NOBODY))).tolist()
        [0, 2, 1]
    """
    row = np.ravel(members)
    found = np.flatnonzero(row != NOBODY)
    return found[np.argsort(row[found])]


def is_strided(members: Sequence[Sequence[int]]) -> bool:
    """Whether group i is i, i + n, i + 2 n, ..., which needs no list of members.

    Example:
        >>> is_strided(((0, 2), (1, 3)))
        True
    """
    count, size = np.shape(members)
    in_turn = np.arange(count * size).reshape(size, count).T
    return np.array_equal(members, in_turn)
