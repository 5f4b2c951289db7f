"""Functions entry by entry: each is evaluated on the tiles of its operands.

A value of rank 0 is spread over the tiles of the others, one that lanes share over the
lanes. The hardware's maximum ignores what is not a number; here it is passed on, as
everywhere else in JAX, so that a state that has left the numbers is seen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._jax import bind_equation
from elk_ssm.kernels.cuts import Cuts, Link, link_whole
from elk_ssm.kernels.tiles import Begin, Tile, Tiled, arrange, begins, frame, sizes

_ARITHMETIC = (
    "add add_any sub mul div rem neg abs square integer_pow pow sqrt rsqrt cbrt"
)
_ROUNDING = "sign floor ceil is_finite convert_element_type"
_EXPONENTIAL = "exp exp2 expm1 log log1p logistic"
_CIRCULAR = "sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh"
_LOGICAL = "eq ne lt le gt ge and or xor not select_n max min clamp"

NAMES = frozenset(
    " ".join((_ARITHMETIC, _ROUNDING, _EXPONENTIAL, _CIRCULAR, _LOGICAL)).split()
)
"""Primitives that are evaluated entry by entry."""

DTYPES = frozenset({"float32", "float64", "int32", "int64", "uint32", "bool"})
"""What a register tile may hold."""


def maximum(x: jax.Array, y: jax.Array) -> jax.Array:
    """The larger of two; what is not a number wins."""
    return jnp.where((x > y) | (x != x), x, y)


def minimum(x: jax.Array, y: jax.Array) -> jax.Array:
    """The smaller of two; what is not a number wins."""
    return jnp.where((x < y) | (x != x), x, y)


def _clamp(low: jax.Array, x: jax.Array, high: jax.Array) -> jax.Array:
    return minimum(maximum(x, low), high)


_OWN: dict[str, Callable[..., jax.Array]] = {
    "max": maximum,
    "min": minimum,
    "clamp": _clamp,
}


def links(equation: Any) -> list[Link]:
    """Every axis of every operand corresponds to that of the result, unless spread."""
    out = equation.outvars[0]
    return [
        link
        for atom in equation.invars
        for axis, size in enumerate(atom.aval.shape)
        if size == out.aval.shape[axis]
        for link in link_whole(atom, axis, out, axis)
    ]


def evaluate(equation: Any, values: list[Tiled], cuts: Cuts) -> Tiled:
    """Evaluate one equation on tiles."""
    lanes = next((v.lanes for v in values if v.lanes is not None), None)
    dtype = equation.outvars[0].aval.dtype
    parts = {b: _part(equation, values, (cuts, b), lanes) for b in begins(cuts)}
    return Tiled(cuts, dtype, lanes, parts)


def _part(
    equation: Any, values: list[Tiled], where: tuple[Cuts, Begin], lanes: int | None
) -> Tile:
    if equation.primitive.name in ("add_any", "neg"):
        values = [v for v in values if v.parts[_at(v, where[1])] is not None]
        if not values:
            return None
        if len(values) < len(equation.invars):
            return _shaped(values[0], where, lanes)
    arguments = [_shaped(v, where, lanes) for v in values]
    own = _OWN.get(equation.primitive.name)
    return own(*arguments) if own else bind_equation(equation, *arguments)[0]


def _at(value: Tiled, begin: Begin) -> Begin:
    """The part of an operand that meets a part of the result."""
    return tuple(0 if axis[-1] == 1 else b for axis, b in zip(value.cuts, begin))


def _shaped(value: Tiled, where: tuple[Cuts, Begin], lanes: int | None) -> jax.Array:
    """The tile of a value in the shape of the result's."""
    at, part = _at(value, where[1]), sizes(*where)
    shape = (*(() if lanes is None else (lanes,)), *frame(part))
    tile = value.tile(at)
    if jnp.ndim(tile) > 0:
        have = [axis for axis, size in enumerate(value.sizes(at)) if size > 1]
        wanted = {axis: size for axis, size in enumerate(part) if size > 1}
        if have != list(wanted):
            wanted = dict(zip(wanted, frame(part)))
            tile = arrange(value.in_lanes(at, 1), have, wanted)
            tile = tile[0] if lanes is None else tile
    return tile if jnp.shape(tile) == shape else jnp.broadcast_to(tile, shape)
