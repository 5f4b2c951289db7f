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
    levels = [elements]
    while _count(levels[-1]) > recursion.fan_in:
        joined, *rest = _groups(recursion, levels[-1])
        for element in rest:
            joined = recursion.combine(joined, element)
        levels.append(joined)
    return levels


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
    act = jax.vmap(recursion.act)
    above = None  # the states after the groups of this level
    for level in reversed(levels):
        count = _count(level)
        size = count if above is None else recursion.fan_in
        before = jax.tree.map(lambda x: x[None], start)
        if above is not None:
            before = jax.tree.map(_shift, start, above)
        *inner, last = _groups(recursion, level, size)
        after = []
        for element in inner:
            before = act(element, before)
            after.append(before)
        after.append(act(last, before) if above is None else above)
        above = jax.tree.map(lambda *x, n=count: _interleave(x, n), *after)
    return above


def _count(elements: Any) -> int:
    return jax.tree.leaves(elements)[0].shape[0]


def _groups(recursion: Recursion, elements: Any, size: int = 0) -> list[Any]:
    """The first, second, ... of every group of neighbours; the last one filled up."""
    size = size or recursion.fan_in
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
