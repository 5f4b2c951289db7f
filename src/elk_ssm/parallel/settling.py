r"""Runs through time that leap over what repeats itself.

The steps of many recursions are the same map over and over, and a part of the state
that no data enter, such as a covariance, comes to rest under it. Everything else is
then linear in the data with constant coefficients, which many steps do at once. So a
run takes turns:

    blocks     a few steps at a time, until that part is at rest and the next leap is
               of equal steps
    leaps      many steps at a time, as long as they are equal; then blocks again

Which it is, is decided while the program runs: a gap in the data costs the blocks that
it takes to come to rest again. What never rests is run in blocks from end to end, at
the cost of a `lax.scan`. A block or leap that would pass the end begins earlier and
repeats some steps, so it reads the state that it begins with from the outputs.
"""

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.parallel.anywhere import anywhere

BLOCK = 8
# So many steps of a kind are run before they may be found at rest.
_FEWEST = 16
# What all steps have given so far, leaves with a leading axis T.
Outputs: TypeAlias = Any


class Settling(ABC):
    """A recursion that may settle; positions are in the order of the run.

    Attributes:
        same: `(T,)` whether a step is equal to the one before, data and offsets aside.
        length: How many steps a leap takes, a power of two.
    """

    same: Array
    length: int

    @abstractmethod
    def block(self, outputs: Outputs, i: Array) -> Outputs:
        """Return the outputs with steps i to i + `BLOCK` - 1 done."""

    @abstractmethod
    def still(self, outputs: Outputs, i: Array, j: Array) -> Array:
        """Whether what should come to rest is the same after steps i and j, `()`."""

    @abstractmethod
    def rest(self, outputs: Outputs, i: Array) -> tuple[Any, Array]:
        """Return what is constant from here on, step i - 1 being done.

        Also whether a small change of the state would die out.
        """

    @abstractmethod
    def leap(self, constant: Any, outputs: Outputs, i: Array) -> Outputs:
        """Return the outputs with steps i to i + `length` - 1 done."""


def run_settling(how: Settling, outputs: Outputs, begun: Array | int = 0) -> Outputs:
    """Run through all steps.

    Args:
        how: The recursion, of no fewer steps than a leap has.
        outputs: Arrays to write into, leading axis T.
        begun: How many steps are done: none or all.

    Returns:
        The outputs.
    """
    total = how.same.shape[0]
    # A batch leaps as one.
    same = ~anywhere(~how.same)
    zero = jnp.zeros((), jnp.int32)

    def next_leap(i: Array) -> Array:
        # One that ends where the equal steps do, or the series, begins that much
        # earlier. There is none where step i is not like the one before.
        start = jnp.minimum(i, total - how.length)
        return start - (how.length - equal_until(same, start, how.length, i))

    def may_leap(i: Array, resting: Array, begun: Array) -> Array:
        # Not before the first step that was found at rest.
        start = next_leap(i)
        ready = resting & (start >= begun) & (start + how.length > i)
        return (i < total) & ~anywhere(~ready)

    def steps(carry: tuple) -> tuple:
        i, outputs, first, _ = carry
        start = jnp.minimum(i, total - BLOCK)
        outputs = how.block(outputs, start)
        i = start + BLOCK
        # Where the steps of this kind began: over the last quarter of them, what is
        # left of a slow approach is less than what is seen of it.
        others = ~rows_at(same, start, BLOCK)
        last = jnp.max(
            jnp.where(others, start + jnp.arange(BLOCK, dtype=start.dtype), 0)
        )
        first = jnp.maximum(first, last)
        done = i - 1 - first
        still = how.still(outputs, i - 1, first + 3 * done // 4)
        return i, outputs, first, may_leap(i, still & (done >= _FEWEST), i)

    def turn(carry: tuple) -> tuple:
        i, outputs, first = carry
        no = jnp.zeros((), bool)
        i, outputs, first, _ = lax.while_loop(
            lambda c: (c[0] < total) & ~c[3], steps, (i, outputs, first, no)
        )
        (constant, stable), begun = how.rest(outputs, i), i

        def leap(carry: tuple) -> tuple:
            i, outputs = carry
            start = next_leap(i)
            return start + how.length, how.leap(constant, outputs, start)

        i, outputs = lax.while_loop(
            lambda c: may_leap(c[0], stable, begun), leap, (i, outputs)
        )
        return i, outputs, first

    start = jnp.asarray(begun, jnp.int32), outputs, zero
    return lax.while_loop(lambda c: c[0] < total, turn, start)[1]


def equal_until(same: Array, start: Array, length: int, i: Array) -> Array:
    """Return how many steps there are before the first that is not `same`, from i on.

    Args:
        same: `(T,)` boolean.
        start: The first step that is counted.
        length: The most that are.
        i: The first step that is asked about, not before `start`.

    Example:
        >>> import jax.numpy as jnp
        >>> same = jnp.array([False, True, True, False])
        >>> [int(equal_until(same, 0, 4, i)) for i in range(4)]
        [0, 3, 3, 3]
    """
    index = jnp.arange(length, dtype=jnp.int32)
    known = rows_at(same, start, length) | (start + index < i)
    return jnp.min(jnp.where(known, length, index))


def rows_at(tree: Any, start: Array, count: int) -> Any:
    """Return `count` entries of arrays with a leading axis of time."""

    def one(x: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, start, count)

    return jax.tree.map(one, tree)


def write_rows(tree: Any, rows: Any, start: Array) -> Any:
    """Return the arrays with some of their entries written."""

    def one(x: Array, y: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(x, y, start, 0)

    return jax.tree.map(one, tree, rows)
