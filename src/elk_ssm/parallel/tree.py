r"""A recursion by a tree of few levels, for elements that join in a kernel or two.

    up      C neighbouring elements become one, level by level, until C are left
    down    the state before each run goes through the elements of that run

The C combinations of a level are written out and run for all its groups side by side,
so that an accelerator joins them in one kernel, and T entries take 2 log_C(T) levels.
Only the way up combines elements; on the way down states pass through them, which is
less work, and keeps what an action is careful about and a combination is not.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.parallel.recursion import Recursion


def climb(recursion: Recursion, elements: Any) -> list[Any]:
    """Return the levels of the tree, from all elements to no more than `fan_in`.

    Args:
        recursion: Says how elements combine, and how many at once.
        elements: Leaves with a leading axis T >= 1, in the order of the run.
    """
    levels, size = [elements], group_size(_count(elements), recursion.fan_in)
    while _count(levels[-1]) > size:
        joined, *rest = _groups(recursion, levels[-1], size)
        for element in rest:
            joined = recursion.combine(joined, element)
        levels.append(joined)
    return levels


def group_size(count: int, most: int) -> int:
    """How many of `count` elements are joined at once, no more than `most`.

    The fewest that need no further level, since what is written out is also compiled.
    """
    levels = 1
    while most**levels < count:
        levels += 1
    return next(size for size in range(2, most + 1) if size**levels >= count)


def whole(recursion: Recursion, levels: list[Any]) -> Any:
    """Return all elements as one."""
    top = levels[-1]
    joined = jax.tree.map(lambda x: x[0], top)
    for j in range(1, _count(top)):
        joined = recursion.combine(joined, jax.tree.map(lambda x, j=j: x[j], top))
    return joined


def descend(recursion: Recursion, levels: list[Any], start: Any) -> Any:
    """Return the state after each of the elements, leading axis T.

    Args:
        recursion: Says how an element acts on a state.
        levels: From `climb`.
        start: The state before the first element.
    """
    size = group_size(_count(levels[0]), recursion.fan_in)
    after = _through_few(recursion, levels[-1], start)
    for level in reversed(levels[:-1]):
        after = _through_groups(recursion, level, size, start, after)
    return after


def _through_few(recursion: Recursion, elements: Any, start: Any) -> Any:
    """Return the state after each of a few elements.

    One after the other changes all states that come after it: without branches, which
    an accelerator would run as kernels of their own.
    """
    count = _count(elements)
    act, place = jax.vmap(recursion.act, (None, 0)), jnp.arange(count)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), start)
    for j in range(count):
        after = act(jax.tree.map(lambda x, j=j: x[j], elements), states)
        states = _where(place >= j, after, states)
    return states


def _through_groups(
    recursion: Recursion, elements: Any, size: int, start: Any, above: Any
) -> Any:
    """Return the state after each element, of those after each group of them."""
    act = jax.vmap(recursion.act)
    state = jax.tree.map(_shift, start, above)
    after = []
    for element in _groups(recursion, elements, size)[:-1]:
        state = act(element, state)
        after.append(state)
    count = _count(elements)
    return jax.tree.map(lambda *x: _interleave(x, count), *after, above)


def _count(elements: Any) -> int:
    return jax.tree.leaves(elements)[0].shape[0]


def _groups(recursion: Recursion, elements: Any, size: int) -> list[Any]:
    """The first, second, ... of every group of neighbours; the last one filled up."""
    fill = -_count(elements) % size

    def fill_up(x: Array, nothing: Array) -> Array:
        more = jnp.broadcast_to(nothing, (fill, *x.shape[1:]))
        return jnp.concatenate([x, more.astype(x.dtype)]) if fill else x

    filled = jax.tree.map(fill_up, elements, recursion.nothing())
    return [jax.tree.map(lambda x, j=j: x[j::size], filled) for j in range(size)]


def _shift(first: Array, x: Array) -> Array:
    return jnp.concatenate([first[None], x[:-1]])


def _interleave(of_groups: tuple[Array, ...], count: int) -> Array:
    every = jnp.stack(of_groups, axis=1)
    return every.reshape(-1, *every.shape[2:])[:count]


def _where(condition: Array, chosen: Any, other: Any) -> Any:
    def one(x: Array, y: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(one, chosen, other)
