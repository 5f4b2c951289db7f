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


class Fitted(NamedTuple):
    """What the passes ended in.

    Attributes:
        rolled: What the last pass gave.
        started: Where its blocks started, `(n, D)`.
        left: M of it.
        passes: How many there were.
    """

    rolled: Any
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
    roll: Callable[[Array], Any],
    follow: Callable[[Any], Array],
    left: Callable[[Array, Any], Array],
    before: Any,
    most: ArrayLike,
) -> Fitted:
    """Run passes until the blocks fit, or until that is not to be expected any more.

    Args:
        roll: Rolls all blocks out from where they start, `(n, D)`; what it returns is
            kept of the last pass only.
        follow: Of what a pass gave, where the next one starts, `(n, D)`. It is asked
            anew instead of kept, which saves an accelerator a copy a pass.
        left: M, of where the blocks started and what the pass gave.
        before: What the pass before the first one would have given.
        most: Largest number of passes, at least 1.
    """

    def one_pass(carry: _Carry) -> _Carry:
        before = carry.fitted
        starts = follow(before.rolled)
        rolled = roll(starts)
        digits, passes = left(starts, rolled), before.passes + 1
        to_come = digits / (before.left - digits)
        left_over = jnp.asarray(most - passes, digits.dtype)
        doubtful = ~((to_come >= 0) & (to_come <= left_over))
        doubts = jnp.where(doubtful & (passes > _FIRST_DOUBT), carry.doubts + 1, 0)
        going = (digits > 0) & (doubts < _PATIENCE) & (passes < most)
        # One flag for a batch: what fits already only gets better.
        return _Carry(Fitted(rolled, starts, digits, passes), doubts, anywhere(going))

    starts = jax.eval_shape(follow, before)
    unknown, none = jnp.asarray(jnp.inf, starts.dtype), jnp.asarray(0, jnp.int32)
    begin = Fitted(before, jnp.zeros(starts.shape, starts.dtype), unknown, none)
    carry = _Carry(begin, none, jnp.asarray(True))
    return jax.lax.while_loop(lambda c: c.going, one_pass, carry).fitted
