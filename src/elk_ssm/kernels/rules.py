"""What the kernel can evaluate: for each primitive its links, its rule, its refusal.

Four families: entry by entry, moves of entries, reductions, products. A primitive that
is in none of them (loops, gathers, random numbers, callbacks, factorisations) is
refused by its name.
"""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._jax import Literal
from elk_ssm.kernels import copies, elementwise, products, reductions
from elk_ssm.kernels.copies import COPIES, Copy
from elk_ssm.kernels.cuts import Cuts, Link
from elk_ssm.kernels.tiles import (
    Begin,
    Tile,
    Tiled,
    arrange,
    begins,
    frame,
    sizes,
    spread,
)


def refusal(equation: Any) -> str | None:
    """Say why the kernel cannot evaluate an equation, or None."""
    name = equation.primitive.name
    if equation.effects:
        return f"the primitive {name} has a side effect"
    for variable in (*equation.invars, *equation.outvars):
        why = odd_array(variable.aval)
        if why is not None:
            return f"the primitive {name} works on {why}"
    if name in COPIES:
        return _odd_copies(equation)
    sums = name in reductions.NAMES or name == "dot_general"
    if sums and any(0 in v.aval.shape for v in equation.invars):
        return f"the primitive {name} works on an array without entries"
    if name == "dot_general" and equation.invars[0].aval.dtype.kind != "f":
        return "the primitive dot_general multiplies what is not floating point"
    if name == "select_n" and len(equation.invars) != 3:
        return "the primitive select_n chooses between more than two"
    if sums or name in elementwise.NAMES:
        return None
    return f"the primitive {name} has no rule in registers"


def odd_array(aval: Any) -> str | None:
    """Say what about an array is not for registers, or None."""
    name = getattr(aval.dtype, "name", "")
    return None if name in elementwise.DTYPES else f"dtype {aval.dtype}"


def _odd_copies(equation: Any) -> str | None:
    name = equation.primitive.name
    found = COPIES[name](equation)
    if found is None and name == "dynamic_slice":
        return "the primitive dynamic_slice begins at a computed index"
    if found is None:
        shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return f"the primitive {name} from {shape} to {out} has no rule in registers"
    if sum(map(len, found)) > copies.MANY:
        return f"the primitive {name} cuts its operand into too many parts"
    return None


def links(equation: Any) -> list[Link]:
    """Which axes of the operands and results of an equation are cut alike."""
    name = equation.primitive.name
    if name in COPIES:
        return _links_of_copies(equation)
    if name in reductions.NAMES:
        return reductions.links(equation)
    rule = products.links if name == "dot_general" else elementwise.links
    return rule(equation)


def _links_of_copies(equation: Any) -> list[Link]:
    found = []
    for variable, boxes in zip(equation.outvars, _boxes(equation)):
        for copy in boxes:
            operand = equation.invars[copy.operand]
            if isinstance(operand, Literal):
                continue
            for a in copy.spans:
                # An axis of one side only is fixed: it is cut around that index.
                ends: list[tuple[Any, int, int]] = []
                if a.axis is not None:
                    ends.append((operand, a.axis, a.start))
                if a.out_axis is not None:
                    ends.append((variable, a.out_axis, a.out_start))
                found.append(Link(*ends[0], *ends[-1], a.size))
    return found


def _boxes(equation: Any) -> list[list[Copy]]:
    found = COPIES[equation.primitive.name](equation)
    assert found is not None  # refused before
    return found


def evaluate(equation: Any, values: list[Tiled], cuts: dict[Any, Cuts]) -> list[Tiled]:
    """Evaluate an equation on tiles; one value for each of its results."""
    name, out = equation.primitive.name, equation.outvars[0]
    if name in COPIES:
        outputs = zip(equation.outvars, _boxes(equation))
        fill = None if name != "pad" or _is_zero(equation.invars[1]) else values[1]
        return [_moved(values, boxes, v, cuts[v], fill) for v, boxes in outputs]
    if name in reductions.NAMES:
        return [reductions.evaluate(equation, values[0], cuts[out])]
    rule = products.evaluate if name == "dot_general" else elementwise.evaluate
    return [rule(equation, values, cuts[out])]


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, Literal) and float(atom.val) == 0.0


def _moved(
    values: list[Tiled], boxes: list[Copy], out: Any, cuts: Cuts, fill: Tiled | None
) -> Tiled:
    """Each part of the result is a part of an operand, or a padding (None: zeros)."""
    lanes = next((v.lanes for v in values if v.lanes is not None), None)
    if lanes is not None:
        values = [spread(v, lanes) for v in values]
    parts: dict[Begin, Tile] = {}
    for begin in begins(cuts):
        part = sizes(cuts, begin)
        found = [(c, c.reads(begin, len(values[c.operand].cuts))) for c in boxes]
        hit = next(((c, at) for c, at in found if at is not None), None)
        if hit is not None:
            parts[begin] = _brought(values[hit[0].operand], *hit, part)
        else:
            parts[begin] = None if fill is None else _filled(fill, lanes, part)
    return Tiled(cuts, out.aval.dtype, lanes, parts)


def _filled(fill: Tiled, lanes: int | None, part: tuple[int, ...]) -> Tile:
    if lanes is None:
        return jnp.broadcast_to(fill.tile(()), frame(part))
    tile = spread(fill, lanes).tile(())
    return jax.lax.broadcast_in_dim(tile, (lanes, *frame(part)), (0,))


def _brought(value: Tiled, copy: Copy, at: Begin, part: tuple[int, ...]) -> Tile:
    """The tile of an operand, its axes in the order of the result's."""
    if value.parts[at] is None:
        return None
    own = value.sizes(at)
    place = {a.axis: a.out_axis for a in copy.spans if a.axis is not None}
    have = [place[axis] for axis, size in enumerate(own) if size > 1]
    shape = {axis: n for axis, n in enumerate(part) if n > 1}
    wanted = dict(zip(shape, frame(part)))
    if have == list(wanted):
        return value.parts[at]
    if jnp.ndim(value.tile(at)) == 0:  # a number has no axes to arrange
        return jnp.broadcast_to(value.tile(at), tuple(wanted.values()))
    tile = arrange(value.in_lanes(at, 1), have, wanted)
    return tile if value.lanes is not None else tile[0]
