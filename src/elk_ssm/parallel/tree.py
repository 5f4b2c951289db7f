r"""A recursion by a tree of few levels, for elements that join in a kernel or two.

    up      C neighbouring elements become one, level by level, until C are left
    down    the state before each run goes through the elements of that run

The C combinations of a level are written out and run for all its groups side by side,
so that an accelerator joins them in one kernel, and T entries take 2 log_C(T) levels.
Only the way up combines elements; on the way down states pass through them, which is
less work, and keeps what an action is careful about and a combination is not.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.parallel.recursion import Recursion


class Tree(NamedTuple):
    """Its levels, from all elements to a few, and how many of the first are elements.

    What is behind these, fills up groups.
    """

    levels: list[Any]
    number: int


def climb(recursion: Recursion, elements: Any) -> Tree:
    """Return the levels of the tree, from all elements to `few` or `fan_in` of them.

    Args:
        recursion: Says how elements combine, and how many at once.
        elements: Leaves with a leading axis T >= 1, in the order of the run.
    """
    count = _count(elements)
    size = group_size(count, recursion.fan_in)
    levels = [_evened(recursion, elements, size)]
    while _count(levels[-1]) > max(size, recursion.few):
        joined, *rest = _groups(recursion, levels[-1], size)
        again = _groups(recursion, _apart(recursion, levels[-1]), size)[1:]
        for later in zip(rest, again, strict=True):
            joined = recursion.join(joined, *later)
        levels.append(_evened(recursion, joined, size))
    return Tree(levels, count)


def _evened(recursion: Recursion, elements: Any, size: int) -> Any:
    """Fill up what does not go into groups, so that no level above it does not either.

    Large elements, of which each filled level would be written out once more.
    """
    group, count = 1, _count(elements)
    if recursion.fan_in > 2 or count % size == 0:
        return elements
    while -(-count // group) > max(size, recursion.few):
        group *= size
    return _filled(recursion, elements, group)


def group_size(count: int, most: int) -> int:
    """How many of `count` elements are joined at once, no more than `most`.

    The fewest that need no further level, since what is written out is also compiled.
    """
    levels = 1
    while most**levels < count:
        levels += 1
    return next(size for size in range(2, most + 1) if size**levels >= count)


def whole(recursion: Recursion, tree: Tree) -> Any:
    """Return all elements as one."""
    top = tree.levels[-1]
    joined = jax.tree.map(lambda x: x[0], top)
    for j in range(1, _count(top)):
        joined = recursion.combine(joined, jax.tree.map(lambda x, j=j: x[j], top))
    return joined


def descend(recursion: Recursion, tree: Tree, start: Any) -> Any:
    """Return the state after each of the elements, leading axis T.

    Args:
        recursion: Says how an element acts on a state.
        tree: From `climb`.
        start: The state before the first element.
    """
    size = group_size(tree.number, recursion.fan_in)
    after = recursion.through(tree.levels[-1], start)
    for level in reversed(tree.levels[:-1]):
        after = _through_groups(recursion, level, size, start, after)
    return jax.tree.map(lambda x: x[: tree.number], after)


def _through_groups(
    recursion: Recursion, elements: Any, size: int, start: Any, above: Any
) -> Any:
    """Return the state after each element, of those after each group of them."""
    groups = -(-_count(elements) // size)
    above = jax.tree.map(lambda x: x[:groups], above)
    act, elements = jax.vmap(recursion.act), _apart(recursion, elements)
    state = jax.tree.map(_shift, start, above)
    after = []
    for element in _groups(recursion, elements, size)[:-1]:
        state = act(element, state)
        after.append(state)
    count = _count(elements)
    return jax.tree.map(lambda *x: _interleave(x, count), *after, above)


def _apart(recursion: Recursion, elements: Any) -> Any:
    """Return the elements as what a compiler takes for others.

    Pairs of large elements are sliced from their level by the kernel that multiplies
    them, unless another kernel reads the same slices: then these are written out.
    """
    if recursion.fan_in > 2:
        return elements
    apart = lax.optimization_barrier
    return jax.tree.map(lambda x: apart(x) if x.ndim > 2 else x, elements)


def _count(elements: Any) -> int:
    return jax.tree.leaves(elements)[0].shape[0]


def _groups(recursion: Recursion, elements: Any, size: int) -> list[Any]:
    """The first, second, ... of every group of neighbours; the last one filled up."""
    filled = _filled(recursion, elements, size)
    return [jax.tree.map(lambda x, j=j: x[j::size], filled) for j in range(size)]


def _filled(recursion: Recursion, elements: Any, size: int) -> Any:
    """Fill up with what changes nothing, to a multiple of `size`."""
    fill = -_count(elements) % size

    def fill_up(x: Array, nothing: Array) -> Array:
        more = jnp.broadcast_to(nothing, (fill, *x.shape[1:]))
        return jnp.concatenate([x, more.astype(x.dtype)]) if fill else x

    return jax.tree.map(fill_up, elements, recursion.nothing())


def _shift(first: Array, x: Array) -> Array:
    return jnp.concatenate([first[None], x[:-1]])


def _interleave(of_groups: tuple[Array, ...], count: int) -> Array:
    every = jnp.stack(of_groups, axis=1)
    return every.reshape(-1, *every.shape[2:])[:count]
