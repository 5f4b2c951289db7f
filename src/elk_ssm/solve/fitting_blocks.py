r"""Passes over blocks until every one starts where the one before ended.

    E_k = F_k(S_k),        S_{k+1} <- E_k,        S_1 known

M says how much is left to do, in digits: zero or less once the blocks fit. Where maps
contract it falls by the same amount in every pass, so M / (fall of M) says how many are
to come; two such predictions in a row beyond what is allowed, and it is given up. With
r passes left after this one, allowed is M <= r / (1 + r) of the last M. A misfit that
is not a number leaves M one too, which ends the passes, and fits nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._loop import in_place_of
from elk_ssm._types import Array, ArrayLike
from elk_ssm.parallel.anywhere import anywhere

_PATIENCE, _FIRST_DOUBT, _FITS = 2, 2, -1


class Fitted(NamedTuple):
    """What the passes ended in.

    Attributes:
        rolled: The last pass.
        started: Where its blocks started, `(n, D)`.
        fits: Whether the blocks fit together, `()`.
        passes: How many there were.
    """

    rolled: Any
    started: Array
    fits: Array
    passes: Array


class _Carry(NamedTuple):
    """What travels through the passes.

    Nothing that an accelerator would make a kernel or a copy for: numbers that the
    test of `going` makes on its way.

    Attributes:
        rolled: The last pass.
        started: Where its blocks started.
        owed: M of it, times the passes that are left.
        doubts: How often in a row M was more than expected; below zero if blocks fit.
        passes: How many there were.
        going: Whether another follows, one flag for a whole batch.
    """

    rolled: Any
    started: Array
    owed: Array
    doubts: Array
    passes: Array
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
        roll: Rolls all blocks out from where they start, `(n, D)`.
        follow: Where they start next, after they were rolled out. It is asked anew
            instead of kept, which saves an accelerator a copy a pass.
        left: M, from where the blocks started and how they were rolled out.
        before: What the first pass follows; arrays like those of a pass.
        most: Largest number of passes, at least 1.
    """

    def one_pass(carry: _Carry) -> _Carry:
        # Kept, or an accelerator keeps a copy of the ends for all that asks for them.
        starts = lax.optimization_barrier(follow(carry.rolled))
        rolled = roll(starts)
        digits, passes = left(starts, rolled), carry.passes + 1
        before, after = (
            jnp.asarray(most - done, digits.dtype) for done in (carry.passes, passes)
        )
        doubtful = ~(digits <= carry.owed / before * (after / before))
        doubts = jnp.where(doubtful & (passes > _FIRST_DOUBT), carry.doubts + 1, 0)
        doubts = jnp.where(digits <= 0, _FITS, doubts)
        owed = in_place_of(carry.owed, digits * after)
        # One flag for a batch: what fits already only gets better.
        going = anywhere((owed > 0) & (doubts < _PATIENCE))
        return _Carry(rolled, starts, owed, doubts, passes, going)

    shape = jax.eval_shape(follow, before)
    unknown, none = jnp.asarray(jnp.inf, shape.dtype), jnp.asarray(0, jnp.int32)
    first = before, jnp.zeros(shape.shape, shape.dtype)
    begin = _Carry(*first, unknown, none, none, jnp.asarray(True))
    found = lax.while_loop(lambda c: c.going, one_pass, begin)
    fits = found.doubts == _FITS
    return Fitted(found.rolled, found.started, fits, found.passes)
