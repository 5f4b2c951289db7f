"""The collectives of a compiled program, read from its text."""

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
_LINE = re.compile(rf"= (.*?) ({KINDS})(?:-start)?\(")
_SHAPE = re.compile(r"[a-z]+(\d+)\[([\d,]*)\]")
_PLACE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One collective: its kind, result shapes, bytes, and where it was traced."""

    kind: str
    shapes: list[tuple[int, ...]]
    bytes: int
    place: str

    @property
    def in_pass(self):
        """Whether it is repeated in every pass of the one loop."""
        return "one_pass" in self.place


def collectives(compiled):
    """List the collectives of a `jax.stages.Compiled`."""
    found = []
    for line in compiled.as_text().splitlines():
        if match := _LINE.search(line):
            results = [
                (int(bits) // 8, tuple(int(n) for n in dims.split(",") if n))
                for bits, dims in _SHAPE.findall(match[1])
            ]
            size = sum(width * math.prod(shape) for width, shape in results)
            shapes = [shape for _, shape in results]
            place = _PLACE.search(line)
            found.append(Collective(match[2], shapes, size, place[1] if place else ""))
    return found


def count(found):
    """How many there are of each kind."""
    return Counter(each.kind for each in found)


def entries(found):
    """Largest number of entries that any of them returns."""
    sizes = [math.prod(shape) for each in found for shape in each.shapes]
    return max(sizes, default=0)
