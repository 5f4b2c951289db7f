"""The collectives of a compiled program, read from its text."""

import re
from collections import Counter
from typing import NamedTuple

KINDS = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
_LINE = re.compile(rf"= (.*?) ({KINDS})(?:-start)?\(")
_SHAPE = re.compile(r"[a-z]+\d+\[([\d,]*)\]")
_PLACE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One collective: its kind, result shapes, and the traced operation it is from."""

    kind: str
    shapes: list[tuple[int, ...]]
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
            shapes = [
                tuple(int(n) for n in dims.split(",") if n)
                for dims in _SHAPE.findall(match[1])
            ]
            place = _PLACE.search(line)
            found.append(Collective(match[2], shapes, place[1] if place else ""))
    return found


def count(found):
    """How many there are of each kind."""
    return Counter(each.kind for each in found)


def entries(found):
    """Largest number of entries that any of them returns."""
    sizes = [1]
    for each in found:
        for shape in each.shapes:
            size = 1
            for n in shape:
                size *= n
            sizes.append(size)
    return max(sizes)
