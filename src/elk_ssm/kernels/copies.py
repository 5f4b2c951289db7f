r"""Primitives that only move entries, as copies of boxes.

    out[o + i] = in[s + i],   0 <= i < size,   along each axis of the box

A slice, a concatenation, a transposition or a reshape is a few such copies, each with a
span for every axis that it runs along; an axis without a span is fixed at an index.
From the copies follow both where operand and result must be cut alike (`cuts.py`) and
which tile of the operand is a tile of the result (`rules.py`).
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from elk_ssm._jax import Literal

MANY = 256
"""More boxes than this (a strided slice of a long axis) are no plan for registers."""


class Span(NamedTuple):
    """One axis of a box: where it begins in the operand and in the result.

    An axis that only one side has (its size is then 1) is `None` on the other.
    """

    axis: int | None
    start: int
    out_axis: int | None
    out_start: int
    size: int


class Copy(NamedTuple):
    """A box of an operand that is a box of the result."""

    operand: int
    spans: tuple[Span, ...]

    def reads(self, begin: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
        """Where in the operand the entry at `begin` of the result lies, if here."""
        found = [0] * rank
        for span in self.spans:
            shift = 0
            if span.out_axis is not None:
                shift = begin[span.out_axis] - span.out_start
            if not 0 <= shift < span.size:
                return None
            if span.axis is not None:
                found[span.axis] = span.start + shift
        return tuple(found)


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _whole(shape: tuple[int, ...]) -> tuple[Span, ...]:
    return tuple(Span(i, 0, i, 0, n) for i, n in enumerate(shape))


def _box(
    shape: tuple[int, ...], starts: Any, steps: Any = None
) -> Iterator[tuple[Span, ...]]:
    """Spans of out[i] = in[starts + steps i], one box an index unless steps are 1."""
    steps = steps or (1,) * len(shape)
    along = []
    for axis, (n, start, step) in enumerate(zip(shape, map(int, starts), steps)):
        if step == 1:
            along.append([Span(axis, start, axis, 0, n)])
        else:
            along.append([Span(axis, start + step * i, axis, i, 1) for i in range(n)])
    yield from product(*along)


def _slice(equation: Any) -> list[list[Copy]]:
    params, shape = equation.params, _shape(equation.outvars[0])
    boxes = _box(shape, params["start_indices"], params["strides"])
    return [[Copy(0, spans) for spans in boxes]]


def _dynamic_slice(equation: Any) -> list[list[Copy]] | None:
    starts = equation.invars[1:]
    if not all(isinstance(atom, Literal) for atom in starts):
        return None
    whole, shape = _shape(equation.invars[0]), _shape(equation.outvars[0])
    at = [int(np.clip(a.val, 0, n - m)) for a, n, m in zip(starts, whole, shape)]
    return [[Copy(0, spans) for spans in _box(shape, at)]]


def _reversed(equation: Any) -> list[list[Copy]]:
    shape, axes = _shape(equation.outvars[0]), equation.params["dimensions"]
    starts = [n - 1 if i in axes else 0 for i, n in enumerate(shape)]
    steps = tuple(-1 if i in axes else 1 for i in range(len(shape)))
    return [[Copy(0, spans) for spans in _box(shape, starts, steps)]]


def _joined(equation: Any, axis: int) -> list[list[Copy]]:
    copies, begin = [], 0
    for place, atom in enumerate(equation.invars):
        spans = [
            Span(i, 0, i, begin if i == axis else 0, n)
            for i, n in enumerate(_shape(atom))
        ]
        copies.append(Copy(place, tuple(spans)))
        begin += _shape(atom)[axis]
    return [copies]


def _stacked(equation: Any) -> list[list[Copy]]:
    axis, copies = equation.params["axis"], []
    for place, atom in enumerate(equation.invars):
        spans = [Span(i, 0, i + (i >= axis), 0, n) for i, n in enumerate(_shape(atom))]
        copies.append(Copy(place, (*spans, Span(None, 0, axis, place, 1))))
    return [copies]


def _unstacked(equation: Any) -> list[list[Copy]]:
    axis, shape = equation.params["axis"], _shape(equation.invars[0])
    rest = [i for i in range(len(shape)) if i != axis]
    spans = tuple(Span(i, 0, j, 0, shape[i]) for j, i in enumerate(rest))
    return [
        [Copy(0, (*spans, Span(axis, place, None, 0, 1)))]
        for place in range(shape[axis])
    ]


def _split(equation: Any) -> list[list[Copy]]:
    axis, begin, outputs = equation.params["axis"], 0, []
    for variable in equation.outvars:
        shape = _shape(variable)
        starts = [begin if i == axis else 0 for i in range(len(shape))]
        outputs.append([Copy(0, spans) for spans in _box(shape, starts)])
        begin += shape[axis]
    return outputs


def _padded(equation: Any) -> list[list[Copy]]:
    """out[low + step i] = in[i] where that is in the result; `low` may be negative."""
    shape, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    along = []
    for axis, (low, _, inside) in enumerate(equation.params["padding_config"]):
        low, step, end = int(low), int(inside) + 1, out[axis]
        inner = [i for i in range(shape[axis]) if 0 <= low + step * i < end]
        if step == 1:
            first = inner[0] if inner else 0
            along.append([Span(axis, first, axis, low + first, len(inner))])
        else:
            along.append([Span(axis, i, axis, low + step * i, 1) for i in inner])
    return [[Copy(0, spans) for spans in product(*along)]]


def _transposed(equation: Any) -> list[list[Copy]]:
    shape = _shape(equation.invars[0])
    order = equation.params["permutation"]
    return [[Copy(0, tuple(Span(i, 0, j, 0, shape[i]) for j, i in enumerate(order)))]]


def _broadcast(equation: Any) -> list[list[Copy]]:
    shape, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    places = equation.params["broadcast_dimensions"]
    spans = [
        Span(i, 0, j, 0, n)
        for i, (n, j) in enumerate(zip(shape, places))
        if n == out[j]
    ]
    return [[Copy(0, tuple(spans))]]


def _reshaped(equation: Any) -> list[list[Copy]] | None:
    """Axes of one entry come and go; two axes become one, or one becomes two."""
    shape, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    ours = [i for i, n in enumerate(shape) if n != 1]
    theirs = [i for i, n in enumerate(out) if n != 1]
    if [shape[i] for i in ours] == [out[i] for i in theirs]:
        return [
            [Copy(0, tuple(Span(i, 0, j, 0, shape[i]) for i, j in zip(ours, theirs)))]
        ]
    if len(ours) == 2 and len(theirs) == 1:
        return [_rows(shape, ours, theirs[0], joined=True)]
    if len(ours) == 1 and len(theirs) == 2:
        return [_rows(out, theirs, ours[0], joined=False)]
    return None


def _rows(
    shape: tuple[int, ...], pair: list[int], other: int, *, joined: bool
) -> list[Copy]:
    """A matrix and its rows one after the other: a box for every row."""
    (row, column), copies = pair, []
    n = shape[column]
    for k in range(shape[row]):
        if joined:
            spans = Span(row, k, None, 0, 1), Span(column, 0, other, k * n, n)
        else:
            spans = Span(None, 0, row, k, 1), Span(other, k * n, column, 0, n)
        copies.append(Copy(0, spans))
    return copies


def _tiled(equation: Any) -> list[list[Copy]]:
    """The operand again and again along each axis."""
    shape, copies = _shape(equation.invars[0]), []
    for places in product(*map(range, equation.params["reps"])):
        spans = [Span(i, 0, i, r * n, n) for i, (r, n) in enumerate(zip(places, shape))]
        copies.append(Copy(0, tuple(spans)))
    return [copies]


def _same(equation: Any) -> list[list[Copy]]:
    return [
        [Copy(i, _whole(_shape(variable)))]
        for i, variable in enumerate(equation.outvars)
    ]


COPIES: dict[str, Callable[[Any], list[list[Copy]] | None]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda e: _joined(e, e.params["dimension"]),
    "copy": _same,
    "copy_p": _same,
    "dynamic_slice": _dynamic_slice,
    "optimization_barrier": _same,
    "pad": _padded,
    "reshape": lambda e: None if e.params["dimensions"] else _reshaped(e),
    "rev": _reversed,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "stack": _stacked,
    "stop_gradient": _same,
    "tile": _tiled,
    "transpose": _transposed,
    "unstack": _unstacked,
}
"""What each such primitive copies: a list of boxes for every result, or None."""
