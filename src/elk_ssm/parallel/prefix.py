r"""Prefix combinations of an associative operator, compiled once whatever the length.

    out_t = e_0 * e_1 * ... * e_t

`jax.lax.associative_scan` writes its operator out twice for each of its log2(T)
levels, so a Kalman operator takes a minute to compile at T = 10,000. Here T is cut into
blocks of C elements and the operator occurs three times:

    1. inside the blocks   a scan over C positions, all T / C blocks side by side
    2. across the blocks   log2(T / C) doublings of the block totals (Hillis and Steele)
    3. together            every block is joined to all that lies before it

The depth is C + log2(T / C) + 1 and the work about 2 T, both no worse than before.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

Element = TypeVar("Element")
_LONGEST_BLOCK = 16


def prefix_scan(
    combine: Callable[[Element, Element], Element],
    elements: Element,
    *,
    reverse: bool = False,
) -> Element:
    """Combine every element with all before it, or all after it if `reverse`.

    Args:
        combine: an associative operator on batches along the leading axis, of
            `(earlier, later)`, or of `(later, earlier)` if `reverse`, as in
            `jax.lax.associative_scan`. It must accept elements that are all zero.
        elements: arrays with a leading axis T, at least 1.
        reverse: the direction.

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
        return flip(prefix_scan(combine, flip(elements)))
    length = jax.tree.leaves(elements)[0].shape[0]
    size = min(_LONGEST_BLOCK, max(1, round(length ** (1 / 3))))
    inside = _inside_blocks(combine, _split(elements, size))
    totals = _doubling(combine, jax.tree.map(lambda leaf: leaf[-1], inside))
    return _join(combine, inside, totals, length)


def _split(elements: Any, size: int) -> Any:
    """Reshape `(T, ...)` to `(C, T / C, ...)`, zeros after the end."""

    def split(leaf: Array) -> Array:
        padding = [(0, -leaf.shape[0] % size)] + [(0, 0)] * (leaf.ndim - 1)
        blocks = jnp.pad(leaf, padding).reshape(-1, size, *leaf.shape[1:])
        return jnp.moveaxis(blocks, 1, 0)

    return jax.tree.map(split, elements)


def _inside_blocks(combine: Callable, blocks: Any) -> Any:
    def step(before, element):
        after = combine(before, element)
        return after, after

    first = jax.tree.map(lambda leaf: leaf[0], blocks)
    rest = jax.tree.map(lambda leaf: leaf[1:], blocks)
    combined = lax.scan(step, first, rest)[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, combined)


def _doubling(combine: Callable, totals: Any) -> Any:
    """Let every block reach back 1, 2, 4, ... blocks."""
    count = jax.tree.leaves(totals)[0].shape[0]
    index = jnp.arange(count)

    def double(level, reached):
        reach = 2**level
        source = jnp.maximum(index - reach, 0)
        earlier = jax.tree.map(lambda leaf: leaf[source], reached)
        further = combine(earlier, reached)
        return jax.tree.map(lambda a, b: _where(index >= reach, a, b), further, reached)

    return lax.fori_loop(0, (count - 1).bit_length(), double, totals)


def _join(combine: Callable, inside: Any, totals: Any, length: int) -> Any:
    """Put all earlier blocks before every element of a block; the first has none."""

    def flatten(leaf: Array) -> Array:
        return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:length]

    size = jax.tree.leaves(inside)[0].shape[0]
    inside = jax.tree.map(flatten, inside)
    block = jnp.arange(length) // size
    source = jnp.maximum(block - 1, 0)
    earlier = jax.tree.map(lambda leaf: leaf[source], totals)
    joined = combine(earlier, inside)
    return jax.tree.map(lambda a, b: _where(block > 0, a, b), joined, inside)


def _where(condition: Array, chosen: Array, other: Array) -> Array:
    shape = condition.shape + (1,) * (chosen.ndim - 1)
    return jnp.where(condition.reshape(shape), chosen, other)
