r"""Passes over blocks until every one starts where the one before ended.

    E_k = F_k(S_k),        S_{k+1} <- E_k,        S_1 known

M says how much is left to do, in digits: zero or less once the blocks fit. Where maps
contract it falls by the same amount in every pass, so M / (fall of M) says how many are
to come; two such predictions in a row beyond what is allowed, and it is given up. A
misfit that is not a number leaves M one too, which ends the passes, and fits nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, ArrayLike
from elk_ssm.parallel.anywhere import anywhere

_PATIENCE, _FIRST_DOUBT = 2, 2


class Rolled(NamedTuple):
    """One pass over all blocks.

    Attributes:
        ends: Where they ended, `(n, D)`.
        outputs: What else is kept of the pass.
    """

    ends: Array
    outputs: Any


class Fitted(NamedTuple):
    """What the passes ended in.

    Attributes:
        rolled: The last pass.
        started: Where its blocks started, `(n, D)`.
        left: M of it.
        passes: How many there were.
    """

    rolled: Rolled
    started: Array
    left: Array
    passes: Array

    @property
    def fits(self) -> Array:
        """Whether the blocks fit together, `()`."""
        return self.left <= 0


class _Carry(NamedTuple):
    """What travels through the passes; `going` is one flag for a whole batch."""

    fitted: Fitted
    doubts: Array
    going: Array


def fit_blocks(
    roll: Callable[[Array], Rolled],
    follow: Callable[[Array], Array],
    left: Callable[[Array, Rolled], Array],
    ends: Array,
    most: ArrayLike,
) -> Fitted:
    """Run passes until the blocks fit, or until that is not to be expected any more.

    Args:
        roll: Rolls all blocks out from where they start, `(n, D)`.
        follow: Where they start next, of where they ended. It is asked anew instead of
            kept, which saves an accelerator a copy a pass.
        left: M, from where the blocks started and how they were rolled out.
        ends: Where they would have ended before the first pass, `(n, D)`.
        most: Largest number of passes, at least 1.
    """

    def one_pass(carry: _Carry) -> _Carry:
        before = carry.fitted
        starts = follow(before.rolled.ends)
        rolled = roll(starts)
        digits, passes = left(starts, rolled), before.passes + 1
        to_come = digits / (before.left - digits)
        left_over = jnp.asarray(most - passes, digits.dtype)
        doubtful = ~((to_come >= 0) & (to_come <= left_over))
        doubts = jnp.where(doubtful & (passes > _FIRST_DOUBT), carry.doubts + 1, 0)
        going = (digits > 0) & (doubts < _PATIENCE) & (passes < most)
        # One flag for a batch: what fits already only gets better.
        return _Carry(Fitted(rolled, starts, digits, passes), doubts, anywhere(going))

    shapes = jax.eval_shape(roll, ends)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    unknown, none = jnp.asarray(jnp.inf, ends.dtype), jnp.asarray(0, jnp.int32)
    before = nothing._replace(ends=ends)
    begin = Fitted(before, jnp.zeros_like(ends), unknown, none)
    carry = _Carry(begin, none, jnp.asarray(True))
    return jax.lax.while_loop(lambda c: c.going, one_pass, carry).fitted
