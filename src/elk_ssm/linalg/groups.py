"""What structures have in common whose dimensions come in groups that never mix.

Every verb is that of `Dense` over one more leading axis, the groups. A structure of the
kind says how the dimensions of a vector are put in groups (`gather`) and put back
(`scatter`), and what the whole matrix is (`to_dense`).
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.dense import Dense
from elk_ssm.linalg.operator import Operator
from elk_ssm.linalg.small import transpose


def _by_groups(name: str) -> Callable[..., Any]:
    """Return a verb of `Dense`, on the groups."""

    def verb(self: "Groups", *operands: Any) -> Any:
        found = getattr(Dense, name)(Dense(self.array), *map(self.cut, operands))
        return self.join(found)

    return verb


class Groups(Operator):
    """A square matrix of n blocks b x b, held as `(..., n, b, b)`."""

    __slots__ = ()
    axes: ClassVar[int] = 3
    grouped: ClassVar[bool] = True

    def gather(self, x: Array) -> Array:
        """Turn vectors `(..., D)` into `(..., n, b)`."""
        raise NotImplementedError

    def scatter(self, x: Array) -> Array:
        """Turn vectors `(..., n, b)` back into `(..., D)`."""
        raise NotImplementedError

    def cut(self, x: Any) -> Any:
        """Turn vectors `(..., D)` into `(..., n, b)`, and operators into `Dense`."""
        return Dense(x.array) if isinstance(x, Operator) else self.gather(x)

    def join(self, found: Any) -> Any:
        """Turn results of `Dense`, at any depth of a pytree, back."""

        def one(x: Any) -> Any:
            return self.like(x.matrix) if isinstance(x, Dense) else self.scatter(x)

        return jax.tree.map(one, found, is_leaf=lambda x: isinstance(x, Dense))

    mv = _by_groups("mv")
    push = _by_groups("push")
    mm = _by_groups("mm")
    solve = _by_groups("solve")
    scale_rows = _by_groups("scale_rows")
    diag = _by_groups("diag")
    variances = _by_groups("variances")
    observe = _by_groups("observe")
    observe_run = _by_groups("observe_run")

    def part_of(self, matrix: Array) -> Self:
        """Return the blocks that lie on its diagonal."""
        rows = jnp.moveaxis(self.gather(matrix), -3, -1)  # (..., n, b, D)
        blocks = self.gather(rows)  # (..., n, b, n, b)
        index = jnp.arange(blocks.shape[-2])
        own = index[:, None, None, None] == index[:, None]
        return self.like(transpose(jnp.sum(jnp.where(own, blocks, 0), axis=-2)))

    def clipped(self, radius: Array) -> Self:
        """Shrink each block."""
        return self.join(Dense(self.array).clipped(radius))

    @property
    def T(self) -> Self:
        """The transpose."""
        return self.join(Dense(self.array).T)
