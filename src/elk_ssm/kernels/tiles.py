r"""Values in registers: tiles of a power of two entries along every axis.

The value of one step, `(n_1, ..., n_r)`, is cut into parts (`cuts.py`), and each part
is a tile with the lanes in front and without its axes of one entry:

    part of s_1 x ... x s_r entries   ->   (L, p_i for every i with s_i > 1),
                                            p_i = the power of two at or above s_i.

Entries beyond s_i hold anything, so sums and products hide them first. A value that is
the same in all lanes has no lane axis. A part that is zero by construction, from the
transpose of a slice, is `None`: no product with it is ever formed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm.kernels.cuts import Cuts

Begin: TypeAlias = tuple[int, ...]
Tile: TypeAlias = Any
"""An array, a NumPy number, or None for zeros."""


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def begins(cuts: Cuts) -> Iterator[Begin]:
    """First index of every part."""
    return product(*(axis[:-1] for axis in cuts))


def sizes(cuts: Cuts, begin: Begin) -> tuple[int, ...]:
    """Number of entries along each axis of the part at `begin`."""
    ends = [dict(pairwise(axis)) for axis in cuts]
    return tuple(end[b] - b for end, b in zip(ends, begin))


def frame(part: Iterable[int]) -> tuple[int, ...]:
    """Shape of the tile of a part, lanes apart."""
    return tuple(power_of_two(s) for s in part if s > 1)


def largest(cuts: Cuts) -> int:
    """Entries of the largest tile, for one lane."""
    count = 1
    for axis in cuts:
        count *= power_of_two(max((b - a for a, b in pairwise(axis)), default=1))
    return count


def entries(cuts: Cuts) -> int:
    """Entries of all tiles together, for one lane."""
    count = 1
    for axis in cuts:
        count *= sum(power_of_two(b - a) for a, b in pairwise(axis))
    return count


@dataclass(frozen=True)
class Tiled:
    """A value in tiles.

    Attributes:
        cuts: Where it is cut.
        dtype: Of its entries.
        lanes: Number of lanes, None when all of them share the value.
        parts: The tile of every part, by its first index.
    """

    cuts: Cuts
    dtype: Any
    lanes: int | None
    parts: dict[Begin, Tile]

    def sizes(self, begin: Begin) -> tuple[int, ...]:
        """Number of entries along each axis of a part."""
        return sizes(self.cuts, begin)

    def tile(self, begin: Begin) -> jax.Array:
        """The tile of a part, zeros written out."""
        found = self.parts[begin]
        if found is not None:
            return found
        lead = () if self.lanes is None else (self.lanes,)
        return jnp.zeros((*lead, *frame(self.sizes(begin))), self.dtype)

    def in_lanes(self, begin: Begin, lanes: int) -> jax.Array:
        """The tile of a part with a lane axis, of size 1 when lanes share it."""
        tile = self.tile(begin)
        return tile[None] if self.lanes is None else tile


def constant(value: Any, dtype: Any) -> Tiled:
    """A number as a value of rank 0 that all lanes share.

    A NumPy number becomes part of the kernel; an array would be captured by it.
    """
    return Tiled((), dtype, None, {(): np.asarray(value, dtype)[()]})


def spread(value: Tiled, lanes: int) -> Tiled:
    """The same value with a lane axis of `lanes`."""
    if value.lanes is not None:
        return value
    parts: dict[Begin, Tile] = {}
    for begin in begins(value.cuts):
        shape = (lanes, *frame(value.sizes(begin)))
        parts[begin] = jnp.broadcast_to(value.tile(begin), shape)
    return Tiled(value.cuts, value.dtype, lanes, parts)


def hide(
    tile: jax.Array, part: tuple[int, ...], axes: Iterable[int], fill: Any
) -> jax.Array:
    """Replace what lies beyond a part along `axes` of the value by `fill`.

    Args:
        tile: A tile with a lane axis.
        part: Number of entries along each axis of the value.
        axes: Axes of the value.
        fill: What is put there.
    """
    for axis in axes:
        size = part[axis]
        if size == power_of_two(size):
            continue
        place = 1 + sum(s > 1 for s in part[:axis])
        index = jax.lax.broadcasted_iota(jnp.int32, tile.shape, place)
        tile = jnp.where(index < size, tile, jnp.asarray(fill, tile.dtype))
    return tile


def arrange(tile: jax.Array, have: list[Any], shape: dict[Any, int]) -> jax.Array:
    """Transpose and broadcast a tile with a lane axis.

    Args:
        tile: Axes are the lanes and then those that `have` names, in its order.
        have: Name of each axis after the lanes.
        shape: Names of the wanted axes in order, with their sizes.
    """
    order = sorted(range(len(have)), key=lambda i: list(shape).index(have[i]))
    if order != list(range(len(have))):
        tile = jnp.transpose(tile, (0, *(i + 1 for i in order)))
    for place, name in enumerate(shape):
        if name not in have:
            tile = jnp.expand_dims(tile, place + 1)
    wanted = (tile.shape[0], *shape.values())
    return tile if tile.shape == wanted else jnp.broadcast_to(tile, wanted)
