r"""Products of vectors and matrices in registers.

    out[l, n] = sum_k x[l, k] W[k, n]

A product of at least `MATRIX` lanes with a matrix that lanes share, of as many or more
rows and columns, is the hardware's matrix product; at the highest precision, as one of
float32 would otherwise be one of 10 bits. Every other product is written out, as a sum
of products of entries. With one lane each entry of W is then held by one thread, where
the matrix product would hold it many times. What is contracted is summed over parts.
"""

from itertools import pairwise, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm.kernels.cuts import Cuts, Link, link_whole
from elk_ssm.kernels.tiles import (
    Begin,
    Tile,
    Tiled,
    arrange,
    begins,
    hide,
    power_of_two,
    sizes,
)

MATRIX = 16
"""The least size that the hardware's matrix product takes along every axis."""


class _Axes(NamedTuple):
    """Names of the axes: b0, b1, ... of the batch, l and r free, k contracted."""

    left: list[str]
    right: list[str]
    out: list[str]


def _axes(equation: Any) -> _Axes:
    (lc, rc), (lb, rb) = equation.params["dimension_numbers"]
    left = [f"l{i}" for i in range(len(equation.invars[0].aval.shape))]
    right = [f"r{i}" for i in range(len(equation.invars[1].aval.shape))]
    for kind, pairs in (("k", zip(lc, rc)), ("b", zip(lb, rb))):
        for n, (i, j) in enumerate(pairs):
            left[i] = right[j] = f"{kind}{n}"
    batch = [f"b{n}" for n in range(len(lb))]
    free = [name for name in (*left, *right) if name[0] in "lr"]
    return _Axes(left, right, [*batch, *free])


def links(equation: Any) -> list[Link]:
    """Axes of the same name correspond."""
    names = _axes(equation)
    left, right = equation.invars
    out = equation.outvars[0]
    found: list[Link] = []
    for a, own, b, others in (
        (left, names.left, out, names.out),
        (right, names.right, out, names.out),
        (left, names.left, right, names.right),
    ):
        for i, name in enumerate(own):
            if name in others:
                found += link_whole(a, i, b, others.index(name))
    return found


def volume(equation: Any, cuts: dict[Any, Cuts]) -> int:
    """Entries of the largest part of products of one lane, before they are summed."""
    names, most = _axes(equation), {}
    for atom, own in zip(equation.invars, (names.left, names.right)):
        for name, axis in zip(own, cuts[atom]):
            most[name] = power_of_two(max(b - a for a, b in pairwise(axis)))
    count = 1
    for size in most.values():
        count *= size
    return count


def evaluate(equation: Any, values: list[Tiled], cuts: Cuts) -> Tiled:
    """Evaluate one product on tiles."""
    names = _axes(equation)
    lanes = next((v.lanes for v in values if v.lanes is not None), None)
    parts: dict[Begin, Tile] = dict.fromkeys(begins(cuts))
    for place, pair in _pairs(names, values):
        if any(value.parts[at] is None for value, at in zip(values, pair)):
            continue
        found = _times(names, values, pair)
        before = parts[place]
        parts[place] = found if before is None else before + found
    return Tiled(cuts, equation.outvars[0].aval.dtype, lanes, parts)


def _pairs(names: _Axes, values: list[Tiled]) -> Any:
    """Parts of both operands that meet, with the part of the result they add to."""
    left, right = values
    places = dict(zip(names.left, left.cuts)) | dict(zip(names.right, right.cuts))
    for point in product(*(axis[:-1] for axis in places.values())):
        at = dict(zip(places, point))
        pair = [tuple(at[n] for n in own) for own in (names.left, names.right)]
        yield tuple(at[n] for n in names.out), pair


def _times(names: _Axes, values: list[Tiled], pair: list[Begin]) -> jax.Array:
    """The product of two parts, with a lane axis."""
    tiles, have = [], []
    length: dict[str, int] = {}
    for value, begin, own in zip(values, pair, (names.left, names.right)):
        part = sizes(value.cuts, begin)
        contracted = [i for i, name in enumerate(own) if name[0] == "k"]
        tiles.append(hide(value.in_lanes(begin, 1), part, contracted, 0))
        have.append([name for name, s in zip(own, part) if s > 1])
        length |= {n: power_of_two(s) for n, s in zip(own, part) if s > 1}
    # Both are hidden: zeros around a matrix do not hide what is not a number.
    found = _matrix_product(tiles, have)
    return _written_out(tiles, have, length) if found is None else found


def _matrix_product(tiles: list[jax.Array], have: list[list[str]]) -> jax.Array | None:
    """Vectors in lanes times a matrix that lanes share, by the hardware's product."""
    for i, j in ((0, 1), (1, 0)):
        x, w, of_x, of_w = tiles[i], tiles[j], have[i], have[j]
        fits = len(of_x) == 1 and len(of_w) == 2 and of_x[0] in of_w
        fits = fits and of_x[0][0] == "k" and w.shape[0] == 1
        if fits and min(*x.shape, *w.shape[1:]) >= MATRIX:
            dims = (((1,), (of_w.index(of_x[0]),)), ((), ()))
            w = w.reshape(w.shape[1:])
            return jax.lax.dot_general(x, w, dims, precision="highest")
    return None


def _written_out(
    tiles: list[jax.Array], have: list[list[str]], length: dict[str, int]
) -> jax.Array:
    """Multiply entry by entry, and sum over what is contracted."""
    names = _order(have, length)
    shape = {name: length[name] for name in names}
    factors = [
        arrange(x, own, {n: s if n in own else 1 for n, s in shape.items()})
        for x, own in zip(tiles, have)
    ]
    found = factors[0] * factors[1]
    for place in reversed(range(len(names))):
        if names[place][0] == "k":
            found = jnp.sum(found, axis=place + 1)
    return found


def _order(have: list[list[str]], length: dict[str, int]) -> list[str]:
    """An order of axes that transposes the smaller factor at most.

    Batch, left and right axes keep their order, which is that of the result; contracted
    ones go where the larger factor has them.
    """
    kept = sorted(
        (n for n in length if n[0] != "k"), key=lambda n: ("blr".index(n[0]), n)
    )
    large = max(have, key=len)
    names = list(kept)
    for name in (n for n in length if n[0] == "k"):
        after = large[large.index(name) + 1 :] if name in large else []
        place = next((names.index(n) for n in after if n in names), len(names))
        names.insert(place, name)
    return names
