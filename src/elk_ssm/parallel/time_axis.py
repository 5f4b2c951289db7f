r"""Where time lives: on one device, or in pieces on the devices of a mesh axis.

Inside `jax.shard_map` every device holds n entries of P n, device p the entries
p n, ..., (p + 1) n - 1. An algorithm over time is written once, for a `TimeAxis`, and
asks it for what lies beyond its own entries:

    shift         the entry one step earlier, a halo of one row          1 permute
    gather        a summary of what every device holds                  1 all-gather
    first_true, largest, total, row       numbers that all agree on      1 all-reduce

`LOCAL`, the axis of one device, answers without communication. What is gathered is one
summary a device, packed into one vector; nothing in here has T entries.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.parallel.extremes import extremes

Element = TypeVar("Element")
_LANES = "elk_ssm lanes"


@jax.tree_util.register_static
@dataclass(frozen=True)
class TimeAxis:
    """A mesh axis seen from inside `jax.shard_map`, or one device.

    Attributes:
        name: Name of the mesh axis, None for one device that holds all of time.
        size: Number of devices P along it.
        backwards: Whether time runs from the last device to the first. The entries of
            a device are then in reversed order too.
        outer: For the lanes of a device, the axis of the devices. Lanes know their
            `axis_index` among all lanes of all devices, and `gather` from them.
    """

    name: str | None = None
    size: int = 1
    backwards: bool = False
    outer: "TimeAxis | None" = None

    def lanes(self, count: int) -> "TimeAxis":
        """Return the axis of `count` lanes in each device, for `jax.vmap`."""
        outer = self if self.is_sharded else None
        return TimeAxis(_LANES, count * self.size, self.backwards, outer)

    def reversed(self) -> "TimeAxis":
        """Return the axis on which time runs the other way."""
        return replace(self, backwards=not self.backwards)

    @property
    def is_sharded(self) -> bool:
        """Whether time is sharded over a mesh axis (of however many devices)."""
        return self.name is not None

    @property
    def axis_index(self) -> Array | int:
        """Position of this device in time, 0 for the first."""
        if self.name is None:
            return 0
        place = jax.lax.axis_index(self.name)
        if self.outer is not None:
            across = jax.lax.axis_index(self.outer.name)
            place = across * (self.size // self.outer.size) + place
        return self.size - 1 - place if self.backwards else place

    def index(self, count: int) -> Array:
        """Position in time of each of the `count` entries of this device."""
        return self.axis_index * count + jnp.arange(count)

    def exists(self, total: int) -> Array | None:
        """Which entries of this device are among the first `total` of all, `(n,)`.

        Every device has `ceil(total / P)` entries; None if all of them are.
        """
        count = -(-total // self.size)
        return None if count * self.size == total else self.index(count) < total

    def shift(self, first: Array, x: Array) -> Array:
        """Return the entry before each of `x`, `(n, ...)`; `first` stands at the start.

        Args:
            first: What lies before the first entry of all, `x.shape[1:]`.
            x: The entries of this device.
        """
        if self.name is not None:
            step = -1 if self.backwards else 1
            pairs = [(p, p + step) for p in range(self.size)]
            pairs = [pair for pair in pairs if 0 <= pair[1] < self.size]
            halo = jax.lax.ppermute(x[-1], self.name, pairs)
            first = jnp.where(self.axis_index == 0, first, halo)
        return jnp.concatenate([first[None], x[:-1]])

    def gather(self, summary: Element) -> Element:
        """Return the summaries of all devices in the order of time, leading axis P.

        The leaves are of one dtype and travel as one vector.
        """
        leaves, treedef = jax.tree.flatten(summary)
        packed = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
        if self.name is None:
            table = packed[None]
        else:
            table = jax.lax.all_gather(packed, self.name)
        if self.outer is not None:
            table = jax.lax.all_gather(table, self.outer.name).reshape(self.size, -1)
        table = table[::-1] if self.backwards else table
        unpacked, begin = [], 0
        for leaf in leaves:
            part = table[:, begin : begin + leaf.size]
            unpacked.append(part.reshape(self.size, *leaf.shape))
            begin += leaf.size
        return jax.tree.unflatten(treedef, unpacked)

    # ------------------------------------------------- numbers that all agree on

    def first_true(self, *conditions: Array) -> list[Array]:
        """Position of the first true entry of each `(n,)`; P n where there is none.

        A decision that every device must take alike is a question about such a
        position: "all settled" is "the first unsettled one is P n". A NaN compares
        false, so a condition "not (x <= bound)" sees it.
        """
        count = conditions[0].shape[0]
        index, none = self.index(count), self.size * count
        # All in one reduction, which is a launch or two on an accelerator.
        places = jnp.where(jnp.stack(conditions), index, none)
        firsts = jnp.min(places, axis=1, initial=none)
        return self._reduce(jax.lax.pmin, list(firsts))

    def survey(
        self, sizes: tuple[Array, ...], conditions: tuple[tuple[Array, Array], ...]
    ) -> tuple[list[Array], list[tuple[Array, Array]]]:
        """Find the largest of each size, and where each condition is first true.

        Args:
            sizes: Numbers `(n, D)`, not negative and not NaN.
            conditions: Pairs of booleans `(n, D)`: a condition, and a mark.

        Returns:
            The largest sizes; and of each pair the first position with a true entry,
            P n where there is none, and whether an entry of it is marked besides. An
            accelerator finds all of them in one reduction.
        """
        count = conditions[0][0].shape[0]
        index, none = self.index(count)[:, None], self.size * count
        # Of one position, what is marked comes first.
        keys = tuple(
            jnp.where(
                condition, 2 * index + (~marked).astype(index.dtype), 2 * none + 1
            )
            for condition, marked in conditions
        )
        largest, firsts = extremes(sizes, keys)
        numbers = self._reduce(jax.lax.pmax, list(largest))
        found = self._reduce(jax.lax.pmin, list(firsts))
        return numbers, [(jnp.minimum(key // 2, none), key % 2 == 0) for key in found]

    def all(self, condition: Array) -> Array:
        """Whether a condition of any shape holds in every entry of every device."""
        return ~self._reduce(jax.lax.pmax, [jnp.any(~condition)])[0]

    def largest(self, *numbers: Array) -> list[Array]:
        """Largest of each scalar or row over all devices; none may be NaN."""
        return self._reduce(jax.lax.pmax, list(numbers))

    def smallest(self, number: Array) -> Array:
        """Smallest of a scalar over all devices."""
        return self._reduce(jax.lax.pmin, [number])[0]

    def total(self, number: Array) -> Array:
        """Sum of a scalar over all devices, the same to the last bit on each."""
        return jnp.sum(self.gather(number), axis=0)

    def row(self, x: Array, position: Array) -> Array:
        """Return the entry of `(n, ...)` at a position in time, to every device."""
        if self.name is None:
            return x.at[position].get(mode="clip", wrap_negative_indices=False)
        count = x.shape[0]
        here = position - self.axis_index * count
        mine = (here >= 0) & (here < count)
        row = jnp.where(mine, x[jnp.clip(here, 0, count - 1)], 0)
        return jax.lax.psum(row, self.name)

    def _reduce(self, reduction: Any, numbers: list[Array]) -> list[Array]:
        """Reduce several arrays of one dtype over the devices, as one vector."""
        if self.name is None:
            return numbers
        packed = jnp.concatenate([jnp.reshape(x, -1) for x in numbers])
        if packed.dtype == jnp.bool_:
            packed = packed.astype(jnp.int32)
        packed = reduction(packed, self.name)
        reduced, begin = [], 0
        for x in numbers:
            part = packed[begin : begin + x.size].reshape(x.shape)
            reduced.append(part.astype(x.dtype))
            begin += x.size
        return reduced


LOCAL = TimeAxis()
