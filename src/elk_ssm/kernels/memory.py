"""Loads and stores of tiles from arrays in the memory of the device.

The whole array is at hand and is read where it lies: nothing is copied, padded or
transposed for the kernel. A mask keeps what a tile of a power of two has beyond its
part, or beyond the last lane, from being read or written.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from elk_ssm.kernels.cuts import Cuts
from elk_ssm.kernels.tiles import Tile, Tiled, begins, power_of_two, sizes


class Lanes(NamedTuple):
    """The lanes of one program.

    Attributes:
        first: Index of the first, known when the kernel runs.
        size: How many a tile has.
        number: How many there are in all programs.
    """

    first: Any
    size: int
    number: int


class Place(NamedTuple):
    """Where the value of one step lies in an array.

    Attributes:
        zero: Zero as a computed index, which makes others of it: a fixed slice must end
            within its array, which one with a mask need not, and a fixed number is no
            index in interpret mode. The compiler sees through it.
        lanes: Lanes to read, None for an array without them.
        time: Index of the step, None for an array without time.
        time_axis: 0 for arrays `(C, n, ...)`, 1 for `(n, C, ...)`.
    """

    zero: Any
    lanes: Lanes | None = None
    time: Any = None
    time_axis: int = 0


def load(ref: Any, cuts: Cuts, dtype: Any, place: Place) -> Tiled:
    """Read a value, tile by tile; what a mask hides is zero."""
    parts: dict[tuple[int, ...], Tile] = {}
    for begin in begins(cuts):
        index, mask = _address(begin, sizes(cuts, begin), place)
        other = None if mask is None else jnp.zeros((), dtype)
        parts[begin] = triton.load(ref.at[index], mask=mask, other=other)
    size = None if place.lanes is None else place.lanes.size
    return Tiled(cuts, dtype, size, parts)


def store(ref: Any, value: Tiled, place: Place) -> None:
    """Write a value with lanes, tile by tile."""
    for begin in begins(value.cuts):
        index, mask = _address(begin, value.sizes(begin), place)
        triton.store(ref.at[index], value.tile(begin), mask=mask)


def _address(begin: tuple, part: tuple, place: Place) -> tuple[tuple, Any]:
    """Index of a part in its array, and the mask of its tile (None: all of it)."""
    index = [_along(b, s, place.zero) for b, s in zip(begin, part)]
    limits = [(s, power_of_two(s)) for s in part if s > 1]
    lead: list[Any] = []
    if place.lanes is not None:
        first, size, number = place.lanes
        lead = [pl.ds(first, size)]
        limits = [(number - first if number % size else size, size), *limits]
    if place.time is not None:
        lead.insert(place.time_axis, place.time)
    return (*lead, *index), _mask(limits)


def _along(begin: int, size: int, zero: Any) -> Any:
    """Index of a part along one axis: a number for one entry, else a slice."""
    tile = power_of_two(size)
    return zero + begin if size == 1 else pl.ds(zero + begin, tile)


def _mask(limits: list[tuple[Any, int]]) -> jax.Array | None:
    """Which entries of a tile lie below the limit of their axis."""
    shape, mask = tuple(size for _, size in limits), None
    for axis, (limit, size) in enumerate(limits):
        if isinstance(limit, int) and limit == size:
            continue
        inside = jax.lax.broadcasted_iota(jnp.int32, shape, axis) < limit
        mask = inside if mask is None else mask & inside
    return mask
