r"""Prefix combinations of an associative operator, compiled once whatever the length.

    out_t = e_0 * e_1 * ... * e_t

`jax.lax.associative_scan` writes its operator out twice for each of its log2(T)
levels, so a Kalman operator takes a minute to compile at T = 10,000. Here T is cut into
B blocks of C elements, e_ij is the element j of block i, l the last j, and one loop, in
which the operator occurs once, goes through the rounds

    1. inside the blocks   e_ij <- e_i,j-1 * e_ij     j = 1, ..., l
    2. across the blocks   e_il <- e_i-r,l * e_il     r = 1, 2, 4, ... < B
    3. together            e_ij <- e_i-1,l * e_ij     j = 0, ..., l - 1

of all blocks side by side (2 is Hillis and Steele's scan): 2 C - 2 + log2(B) rounds of
T / C combinations each.

An accelerator is sent one kernel after another, so a round is to be few of them. There
blocks are short; and an operator of small elements is written out for their entries
(`kernels.entries`), which are then columns of one array.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from elk_ssm._platforms import by_platform
from elk_ssm.kernels.entries import entry_by_entry

Element = TypeVar("Element")
# Longest blocks on a CPU, where work counts, and elsewhere; most entries of an element
# that is written out.
_LONGEST, _LONGEST_ELSEWHERE, _ENTRIES = 16, 4, 64


def prefix_scan(
    combine: Callable[[Element, Element], Element],
    elements: Element,
    *,
    reverse: bool = False,
    written: bool = True,
) -> Element:
    """Combine every element with all before it, or all after it if `reverse`.

    Args:
        combine: an associative operator on batches along the leading axis, of
            `(earlier, later)`, or of `(later, earlier)` if `reverse`, as in
            `jax.lax.associative_scan`. It must accept elements that are all zero.
        elements: arrays with a leading axis T, at least 1.
        reverse: the direction.
        written: whether to write the operator of small elements out on an accelerator.

    Returns:
        The T combinations, in the order of the elements.

    Example:
        >>> import jax.numpy as jnp
        >>> prefix_scan(lambda a, b: a + b, jnp.arange(5)).tolist()
        [0, 1, 3, 6, 10]
        >>> prefix_scan(lambda a, b: a + b, jnp.arange(5), reverse=True).tolist()
        [10, 10, 9, 7, 4]
    """
    if reverse:
        flip = lambda tree: jax.tree.map(lambda leaf: leaf[::-1], tree)  # noqa: E731
        return flip(prefix_scan(combine, flip(elements), written=written))
    long, short = (
        partial(_by_blocks, combine, n) for n in (_LONGEST, _LONGEST_ELSEWHERE)
    )
    default = partial(written_out, combine, short) if written else short
    return by_platform(elements, cpu=long, default=default)


def written_out(combine: Callable, scan: Callable, elements: Element) -> Element:
    """Scan with the operator written out for entries, if elements have few of them.

    Args:
        combine: As for `prefix_scan`, in the order of the arguments of a forward scan.
        scan: What scans otherwise.
        elements: As for `prefix_scan`.
    """
    leaves, tree = jax.tree.flatten(elements)
    places = np.cumsum([0, *(math.prod(x.shape[1:]) for x in leaves)])
    if len({x.dtype for x in leaves}) > 1 or places[-1] > _ENTRIES:
        return scan(elements)

    def unpacked(row: Array) -> Any:
        parts = zip(leaves, places, places[1:])
        found = [
            row[..., i:j].reshape(*row.shape[:-1], *x.shape[1:]) for x, i, j in parts
        ]
        return jax.tree.unflatten(tree, found)

    def packed(element: Any, axes: int = 0) -> Array:
        parts = [x.reshape(*x.shape[:axes], -1) for x in jax.tree.leaves(element)]
        return jnp.concatenate(parts, -1)

    def joined(earlier: Array, later: Array) -> Array:
        return packed(combine(unpacked(earlier), unpacked(later)))

    row = jax.ShapeDtypeStruct((int(places[-1]),), leaves[0].dtype)
    entries = entry_by_entry(joined, row, row, axis=-1)
    if entries is None:
        return scan(elements)
    rows = packed(elements, 1)
    return unpacked(_by_blocks(entries, _LONGEST_ELSEWHERE, rows, blocks=-1))


def _by_blocks(combine: Callable, longest: int, elements: Any, blocks: int = 0) -> Any:
    """Scan by blocks of at most `longest`; `combine` has them along axis 0 or -1."""
    length = jax.tree.leaves(elements)[0].shape[0]
    size = min(longest, max(1, round(length ** (1 / 3))))
    count = -(-length // size)
    index = jnp.arange(count)

    def one(held: Any, round: tuple[Array, Array, Array]) -> tuple[Any, None]:
        source, target, reach = round
        place = jnp.maximum(index - reach, 0)
        take = partial(jnp.take, indices=place, axis=blocks, mode="clip")
        earlier = jax.tree.map(lambda x: take(x[source]), held)
        later = jax.tree.map(lambda x: x[target], held)
        joined = combine(earlier, later)

        def chosen(x: Array, y: Array) -> Array:
            shape = [1] * x.ndim
            shape[blocks] = count
            return jnp.where((index >= reach).reshape(shape), x, y)

        new = jax.tree.map(chosen, joined, later)
        return jax.tree.map(lambda x, y: x.at[target].set(y), held, new), None

    held = jax.tree.map(lambda x: _split(x, size, blocks), elements)
    rounds = _rounds(size, count)
    if len(rounds):
        held = lax.scan(one, held, tuple(jnp.asarray(rounds).T))[0]
    return jax.tree.map(lambda x: _together(x, blocks)[:length], held)


def _rounds(size: int, count: int) -> np.ndarray:
    """Position that is read, the one that is written, and the blocks in between."""
    inside = [(j - 1, j, 0) for j in range(1, size)]
    levels = range((count - 1).bit_length())
    across = [(size - 1, size - 1, 2**level) for level in levels]
    together = [(size - 1, j, 1) for j in range(size - 1) if count > 1]
    return np.array([*inside, *across, *together], np.int32).reshape(-1, 3)


def _split(leaf: Array, size: int, blocks: int) -> Array:
    """Turn `(T, ...)` into C arrays of T / C blocks, zeros after the end."""
    padding = [(0, -leaf.shape[0] % size)] + [(0, 0)] * (leaf.ndim - 1)
    cut = jnp.pad(leaf, padding).reshape(-1, size, *leaf.shape[1:])
    return jnp.moveaxis(cut, (1, 0), (0, 1 if blocks == 0 else -1))


def _together(held: Array, blocks: int) -> Array:
    cut = jnp.moveaxis(held, (0, 1 if blocks == 0 else -1), (1, 0))
    return cut.reshape(-1, *cut.shape[2:])
