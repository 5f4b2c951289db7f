r"""Where the values of a program are cut into tiles.

A register tile cannot be sliced, joined or indexed. So no slice is ever taken: the
value is cut where the slice begins and ends, and so is all that it is computed from,

    (h W)[a:b] = h W[:, a:b],    (g + k)[a:b] = g[a:b] + k[a:b],

up to the constants, inputs and the state, which are loaded and carried in parts. Axes
whose entries correspond are linked; the cuts of one are then those of the other, which
is a fixed point, reached because there are finitely many places to cut.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from elk_ssm._jax import Literal

Cuts: TypeAlias = tuple[tuple[int, ...], ...]
"""For each axis the places 0 = p_0 < p_1 < ... < n where tiles begin and end."""

MOST_PARTS = 256
"""Parts of one axis: each is a register of its own, and an operation of its own."""


class Link(NamedTuple):
    """Entries `start + i` of one axis are entries `other_start + i` of another."""

    variable: Any
    axis: int
    start: int
    other: Any
    other_axis: int
    other_start: int
    size: int


def link_whole(a: Any, axis: int, b: Any, other_axis: int) -> list[Link]:
    """Two axes of the same size that correspond entry by entry."""
    if isinstance(a, Literal) or isinstance(b, Literal):
        return []
    return [Link(a, axis, 0, b, other_axis, 0, a.aval.shape[axis])]


def find_cuts(
    equations: list[Any],
    variables: Iterable[Any],
    links_of: Callable[[Any], list[Link]],
    more: list[Link],
) -> dict[Any, Cuts] | None:
    """Cut every variable so that linked axes are cut alike, or give up.

    Args:
        equations: The program.
        variables: Variables that it reads without defining them.
        links_of: Which axes an equation links.
        more: Links besides, such as those of the state before and after a step.
    """
    everything = [*variables, *(v for e in equations for v in e.outvars)]
    cuts = {v: [{0, n} for n in v.aval.shape] for v in everything}
    found = (link for e in equations for link in links_of(e))
    links = [link for link in (*found, *more) if link.size > 0]
    for link in links:
        cuts[link.variable][link.axis] |= {link.start, link.start + link.size}
        ends = {link.other_start, link.other_start + link.size}
        cuts[link.other][link.other_axis] |= ends
    while sum(_exchange(link, cuts) for link in links):
        if max(len(axis) for axes in cuts.values() for axis in axes) > MOST_PARTS:
            return None
    return {v: tuple(tuple(sorted(axis)) for axis in axes) for v, axes in cuts.items()}


def _exchange(link: Link, cuts: dict[Any, list[set[int]]]) -> bool:
    """Bring the cuts of both axes together; say whether there were new ones."""
    here, there = cuts[link.variable][link.axis], cuts[link.other][link.other_axis]
    shift, before = link.other_start - link.start, len(here) + len(there)
    low, high = link.start, link.start + link.size
    there |= {p + shift for p in here if low <= p <= high}
    here |= {p - shift for p in there if low <= p - shift <= high}
    return len(here) + len(there) > before
