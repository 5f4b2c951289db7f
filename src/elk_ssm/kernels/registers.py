r"""How many lanes and warps a kernel is started with.

Registers bound everything: a multiprocessor has 65,536, a thread at most 255, and 128
when a program has 16 warps. A program holds through all steps the matrices, once, and
for every lane the state and the entry of the next step; a product of L lanes with a
K x N matrix passes through L K N of them.

- Few lanes get a program each: they run at the same time on different multiprocessors,
  and none waits for another. A matrix is then spread over the threads.
- Many lanes share a program, 16 by the hardware's matrix product, which repeats the
  matrices in many threads and so takes only small ones, else 4 where they fit.
- Without products a lane is a thread, or as many as its state has entries.

The numbers are those with which the compiler spills nothing (`benchmarks/
kernel_report.py`); none has been timed.
"""

from collections.abc import Iterator
from typing import NamedTuple

from elk_ssm.kernels.products import MATRIX
from elk_ssm.kernels.tiles import power_of_two

WARP = 32

HELD, PASSING, COMPUTED = 104, 64, 16
"""Registers of a thread for what is held, for one product, for one elementwise tile."""

ALONE, TOGETHER = 16, 8
"""Most warps of a program with one lane, and with several lanes and products."""

FEW_LANES = 1024
"""Below, every lane has a program of its own."""

SMALL, SQUARE, SHARED = 256, 32, 8192
"""What 16 lanes can share: products so small are written out, matrices have at most so
many rows, and all of them together so many entries."""


class Launch(NamedTuple):
    """How a kernel is started: lanes of a program, and its warps of 32 threads."""

    lanes: int
    warps: int


class Load(NamedTuple):
    """What a step takes, in words of 32 bits.

    Attributes:
        held: Of the matrices and all else that lanes share.
        each: Of state and entry, for each lane.
        tile: Of the largest value of one lane that is computed entry by entry.
        product: K x N of the largest product, 0 without products.
    """

    held: int
    each: int
    tile: int
    product: int


def choose(load: Load, lanes: int) -> Launch | str:
    """The lanes and warps for a load of `lanes` lanes, or why there are none."""
    for size, most in _sizes(load, lanes):
        warps = power_of_two(-(-_threads(load, size) // WARP))
        if warps <= most:
            return Launch(size, warps)
    return (
        f"matrices and state of {load.held + load.each:,} words, and products of "
        f"{load.product:,}, do not fit the registers"
    )


def _sizes(load: Load, lanes: int) -> Iterator[tuple[int, int]]:
    """Lanes to try, with the most warps for them."""
    if load.product == 0:
        yield min(power_of_two(lanes), max(1, WARP // load.tile)), ALONE
        return
    if lanes >= FEW_LANES:
        if load.product <= SQUARE**2 and load.held <= SHARED:
            yield MATRIX, TOGETHER
        yield 4, TOGETHER
    yield 1, ALONE


def _threads(load: Load, size: int) -> int:
    """Threads over which everything is spread without spilling."""
    passing = 2 * PASSING if size == MATRIX and load.product > SMALL else PASSING
    return max(
        -(-(load.held + size * load.each) // HELD),
        -(-size * load.tile // COMPUTED),
        -(-size * load.product // passing),
    )
