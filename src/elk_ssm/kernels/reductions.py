"""Sums, extremes and truth over axes of the state, tile by tile."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm.kernels.cuts import Cuts, Link, link_whole
from elk_ssm.kernels.elementwise import maximum, minimum
from elk_ssm.kernels.tiles import Tile, Tiled, begins, hide


class _Reduction(NamedTuple):
    """How tiles are reduced and joined, and what changes nothing."""

    within: Callable[..., jax.Array]
    between: Callable[[jax.Array, jax.Array], jax.Array]
    neutral: Callable[[Any], Any]


def _lowest(dtype: Any) -> Any:
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max


def _extreme(reduce: Callable) -> Callable[..., jax.Array]:
    """An extreme that passes on what is not a number, which the hardware's ignores."""

    def along(x: jax.Array, axis: int) -> jax.Array:
        found = reduce(x, axis=axis)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return found
        odd = jnp.max(jnp.where(x != x, 1, 0), axis=axis) > 0
        return jnp.where(odd, jnp.asarray(np.nan, x.dtype), found)

    return along


def _truth(reduce: Callable) -> Callable[..., jax.Array]:
    def along(x: jax.Array, axis: int) -> jax.Array:
        return reduce(jnp.where(x, 1, 0), axis=axis) > 0

    return along


_KINDS = {
    "reduce_sum": _Reduction(jnp.sum, jnp.add, lambda dtype: 0),
    "reduce_max": _Reduction(_extreme(jnp.max), maximum, _lowest),
    "reduce_min": _Reduction(_extreme(jnp.min), minimum, _highest),
    "reduce_or": _Reduction(_truth(jnp.max), jnp.logical_or, lambda dtype: False),
    "reduce_and": _Reduction(_truth(jnp.min), jnp.logical_and, lambda dtype: True),
}

NAMES = frozenset(_KINDS)
"""Primitives that reduce axes."""


def _kept(equation: Any) -> list[int]:
    rank = len(equation.invars[0].aval.shape)
    return [axis for axis in range(rank) if axis not in equation.params["axes"]]


def links(equation: Any) -> list[Link]:
    """The axes that stay correspond."""
    operand, out = equation.invars[0], equation.outvars[0]
    pairs = enumerate(_kept(equation))
    return [link for j, i in pairs for link in link_whole(operand, i, out, j)]


def evaluate(equation: Any, value: Tiled, cuts: Cuts) -> Tiled:
    """Reduce a value with lanes over its axes."""
    kind, kept = _KINDS[equation.primitive.name], _kept(equation)
    parts: dict[tuple[int, ...], Tile] = {}
    for begin in begins(value.cuts):
        found = _reduced(kind, value, begin, equation.params["axes"])
        out = tuple(begin[axis] for axis in kept)
        before = parts.get(out)
        parts[out] = found if before is None else kind.between(before, found)
    return Tiled(cuts, equation.outvars[0].aval.dtype, value.lanes, parts)


def _reduced(kind: _Reduction, value: Tiled, begin: tuple, axes: Any) -> jax.Array:
    part = value.sizes(begin)
    tile = hide(value.tile(begin), part, axes, kind.neutral(value.dtype))
    for axis in sorted(axes, reverse=True):
        if part[axis] > 1:
            tile = kind.within(tile, axis=1 + sum(s > 1 for s in part[:axis]))
    return tile
