r"""Which steps are alike: by hashes of what they are, of 32 bits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

_ODD, _MORE_ODD = 0x9E3779B1, 0x85EBCA6B
_TABLES = 2


class Distinct(NamedTuple):
    """Entries that stand for all that are equal to them.

    Attributes:
        first: `(capacity,)`, where each is seen first.
        which: `(T,)`, which of them every entry is.
        total: How many there are, `()`; it may exceed the capacity.

    Example:
        >>> import jax.numpy as jnp
        >>> found = Distinct.of((jnp.array([7, 5, 7, 3, 5]),), 4)
        >>> found.first[:3].tolist(), found.which.tolist(), int(found.total)
        ([0, 1, 3], [0, 1, 0, 2, 1], 3)
    """

    first: Array
    which: Array
    total: Array

    @classmethod
    def of(cls, keys: tuple[Array, ...], capacity: int) -> "Distinct":
        """Tell `(T,)` of integers, or pairs of them, apart.

        By tables, in each of which a place is taken once: seldom, two that are equal
        are told apart all the same.
        """
        steps = keys[0].shape[0]
        index, hashed = jnp.arange(steps, dtype=jnp.int32), jnp.zeros(steps, jnp.uint32)
        for key in keys:
            hashed = hashed * jnp.uint32(_ODD) + _mixed(key)
        first = index
        for _ in range(_TABLES):
            hashed = _mixed(hashed + 1)
            found = _first_at(hashed, first == index)
            same = first == index
            for key in keys:
                same = same & (key[found] == key)
            first = jnp.where(same, found, first)

        def number(carry: tuple) -> tuple:
            i, ranks, new, count = carry
            # What is not new is written over; what does not fit, at the end.
            ranks, new = _set(ranks, i, count), _set(new, count, i)
            return i + 1, ranks, new, count + (first[i] == i)

        zero, none = jnp.zeros((), jnp.int32), jnp.zeros(capacity + 1, jnp.int32)
        start = zero, jnp.zeros_like(index), none, zero
        _, ranks, new, count = lax.while_loop(
            lambda c: (c[0] < steps) & (c[3] <= capacity), number, start
        )
        return cls(new[:capacity], ranks[first], count)


def _first_at(hashed: Array, wanted: Array) -> Array:
    """Return the first of those wanted that has the place of each, `(T,)`."""
    steps = hashed.shape[0]
    bits = steps.bit_length() + 1
    places = (hashed >> jnp.uint32(32 - bits)).astype(jnp.int32)

    def enter(carry: tuple) -> tuple:
        i, table = carry
        # What is not is entered behind the others.
        return i - 1, _set(table, jnp.where(wanted[i], places[i], 1 << bits), i)

    # Backwards, so that the first of all that share a place is left there.
    start = jnp.asarray(steps - 1, jnp.int32), jnp.zeros((1 << bits) + 1, jnp.int32)
    return lax.while_loop(lambda c: c[0] >= 0, enter, start)[1][places]


def kinds_of(tree: Any, steps: int) -> Array:
    """Return the first step that is the same as each, `(T,)`.

    Args:
        tree: What changes over time, leaves `(T, ...)`.
        steps: T.

    Example:
        >>> import jax.numpy as jnp
        >>> kinds_of(jnp.array([1.0, 2.0, 1.0, 3.0, 2.0]), 5).tolist()
        [0, 1, 0, 3, 1]
    """
    leaves, index = jax.tree.leaves(tree), jnp.arange(steps, dtype=jnp.int32)
    if not leaves:
        return jnp.zeros_like(index)
    keys = jnp.zeros(steps, jnp.uint32)
    for number, leaf in enumerate(leaves):
        words = _words(leaf).reshape(steps, -1)
        odd = _mixed(jnp.arange(words.shape[1]) + (number << 16)) | 1
        keys = keys + jnp.sum(words * odd, axis=1, dtype=jnp.uint32)
    found = Distinct.of((keys,), steps)
    first = found.first[found.which]
    for leaf in leaves:
        axes = tuple(range(1, leaf.ndim))
        first = jnp.where(jnp.all(leaf[first] == leaf, axis=axes), first, index)
    return first


def patterns_of(kinds: Array, length: Array) -> Array:
    """Return a hash of the last so many kinds at every step, `(T,)`."""
    mixed, index = _mixed(kinds), jnp.arange(len(kinds), dtype=jnp.int32)

    def add(carry: tuple) -> tuple:
        j, sums = carry
        before = jnp.where(index < j, 0, mixed[jnp.maximum(index - j, 0)])
        return j + 1, sums * jnp.uint32(_ODD) + before

    start = jnp.zeros((), jnp.int32), jnp.zeros(len(kinds), jnp.uint32)
    return lax.while_loop(lambda c: c[0] < length, add, start)[1]


def _set(array: Array, i: Array, entry: Array) -> Array:
    return lax.dynamic_update_index_in_dim(array, entry, i, 0)


def _words(leaf: Array) -> Array:
    """Return what an array is made of, as words of 32 bits."""
    if leaf.dtype.itemsize < 4:
        return leaf.astype(jnp.uint32)
    return lax.bitcast_convert_type(leaf, jnp.uint32)


def _mixed(words: Array) -> Array:
    """Return words of which every bit depends on all."""
    words = words.astype(jnp.uint32)
    for odd in (_ODD, _MORE_ODD):
        words = (words ^ (words >> jnp.uint32(16))) * jnp.uint32(odd)
    return words ^ (words >> jnp.uint32(15))
