"""The text of a compiled program: its computations, what names its loops, its bytes.

XLA prints an optimised program as computations of operations, one a line:

    %while.7 = (s32[], f32[8]) while(%t), condition=%c, body=%b, metadata={op_name=
    "jit(f)/passes/while"}, backend_config={"known_trip_count":...}

Names: an operation bears each word of its `op_name`: the functions under `jit`, the
scopes of `jax.named_scope` and the primitives that it came from. Transformations leave
them readable, `transpose(jvp(passes))`; stack frames, which XLA also keeps, end at the
call of a `custom_jvp`.

Bytes: a kernel reads its operands and writes its result, each once. Of an operand that
is only sliced or gathered from, what was taken counts, and of one that is updated in
place, the update. What a cache holds between two kernels counts like the rest.
"""

from __future__ import annotations

import re
from math import prod
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "token": 0}
# What reads no more of its first operand than it returns.
TAKING = ("slice", "dynamic-slice", "gather")
IN_PLACE = "dynamic-update-slice"

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OP = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


class Op(NamedTuple):
    """One operation.

    Attributes:
        name: Its own name.
        shape: Text of the shape of its result.
        kind: What it does: `fusion`, `while`, `copy`, ...
        operands: Names of what it reads.
        rest: Text behind the opening bracket: operands and attributes.
        is_root: Whether it is the result of its computation.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def called(self, key: str) -> list[str]:
        """Names of the computations of the attribute `key`."""
        found = re.search(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest)
        if not found:
            return []
        names = found[1] if found[1] is not None else found[2]
        return re.findall(r"[\w.\-]+", names)

    @property
    def names(self) -> frozenset[str]:
        """Names that it bears."""
        path = re.search(r'op_name="([^"]*)"', self.rest)
        return frozenset(re.findall(r"\w+", path[1]) if path else ())

    @property
    def trip_count(self) -> int | None:
        """Rounds of a loop, if the compiler knows them."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.rest)
        return int(found[1]) if found else None


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        computations: Operations by the name of their computation.
        entry: Name of the computation that is run.
    """

    computations: dict[str, tuple[Op, ...]]
    entry: str


def parse(text: str) -> Program:
    """Read the text of an optimised program."""
    computations: dict[str, tuple[Op, ...]] = {}
    here: list[Op] | None = None
    name = entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            here, name = [], head[2]
            entry = name if head[1] else entry
        elif line.startswith("}") and here is not None:
            computations[name], here = tuple(here), None
        elif here is not None and (found := _OP.match(line)):
            here.append(_operation(found))
    return Program(computations, entry)


def _operation(found: re.Match) -> Op:
    operands = tuple(re.findall(r"%([\w.\-]+)", found[5].split("), ")[0]))
    return Op(found[2], found[3], found[4], operands, found[5], bool(found[1]))


def size(shape: str) -> int:
    """Bytes of a shape, those of a tuple added up."""
    found = re.findall(r"\b(pred|token|[a-z]+\d+)\w*\[([\d,]*)\]", shape)
    return sum(
        _bits(dtype) * prod(int(n) for n in dims.split(",") if n) // 8
        for dtype, dims in found
    )


def _bits(dtype: str) -> int:
    return BITS[dtype] if dtype in BITS else int(re.sub(r"\D", "", dtype))


def moved(op: Op, shapes: dict[str, str], program: Program) -> int:
    """Bytes that a kernel reads and writes.

    Args:
        op: The kernel.
        shapes: Shapes by name, in its computation.
        program: Where the computation is that a fusion calls.
    """
    called = op.called("calls")
    body = program.computations.get(called[0], ()) if called else ()
    if body:
        read = sum(_read(row, body) for row in body if row.kind == "parameter")
        return read + sum(_written(root, body) for root in _roots(body))
    operands = [size(shapes.get(name, "")) for name in op.operands]
    if op.kind in TAKING:
        return 2 * size(op.shape)
    if op.kind == IN_PLACE:
        return 2 * operands[1]
    return size(op.shape) + sum(operands)


def _read(parameter: Op, body: tuple[Op, ...]) -> int:
    whole, taken = size(parameter.shape), 0
    for user in body:
        if parameter.name not in user.operands:
            continue
        first = parameter.name == user.operands[0]
        if user.kind in TAKING and first:
            taken += size(user.shape)
        elif user.kind != IN_PLACE or not first:
            return whole
    return min(whole, taken)


def _roots(body: tuple[Op, ...]) -> list[Op]:
    by_name = {op.name: op for op in body}
    (root,) = (op for op in body if op.is_root)
    return [by_name[name] for name in root.operands] if root.kind == "tuple" else [root]


def _written(root: Op, body: tuple[Op, ...]) -> int:
    by_name = {op.name: op for op in body}
    while root.kind in ("bitcast", "copy") and root.operands[0] in by_name:
        root = by_name[root.operands[0]]
    if root.kind == IN_PLACE and root.operands[1] in by_name:
        root = by_name[root.operands[1]]
    return size(root.shape)
