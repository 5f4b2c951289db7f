r"""Runs through time that do not compute again what they have computed before.

Steps with and without an emission, the days of a week: where the steps of a recursion
are of a few kinds, and the part of its state that no data enter (a covariance) forgets
what it was, that part depends on the kinds of the last w steps only, and these recur.
So there is a table of one state for each pattern of kinds that occurs, computed where
it is seen first, from the state that the table has for the step before.

Whether a pattern is long enough, is decided while the program runs, by what makes the
states of the table those of the recursion to rounding:

    at every step, the state of the step before is, to rounding, the one from which the
    state of this step was computed where its pattern was seen first, and
    over every pattern, a change of the state shrinks to a tenth or less.

Otherwise longer patterns are tried, as much longer as what is left of a difference
says, a few times and until there are too many of them. They are told apart by their
last kinds and by hashes of 32 bits; two whose hashes are alike by accident are found
out by the first condition.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.parallel.kinds import Distinct, patterns_of

# The state after a step, leaves without a leading axis.
State: TypeAlias = Any

_SHORTEST, _ATTEMPTS = 6, 8
# To what squared changes of the state have to shrink over a pattern, in its scales.
_FORGOTTEN = 0.1


class Table(NamedTuple):
    """States that recur.

    Attributes:
        states: Leaves `(capacity, ...)`.
        slots: `(T,)`, which of them each step has.
        holds: Whether these are the states of the recursion, `()`.
    """

    states: State
    slots: Array
    holds: Array


class Recurring(ABC):
    """A recursion whose steps may be of a few kinds; positions as in the run.

    Attributes:
        kinds: `(T,)` integers; steps of one kind are equal, data and offsets aside.
        rounding: Which part of a state is lost in roundings.
    """

    kinds: Array
    rounding: float

    @abstractmethod
    def step(self, before: State, i: Array) -> tuple[State, Array]:
        """Return the state after step i, and whether it has its digits, `()`.

        Step 0 does not depend on the state before, whatever its kind.
        """

    @abstractmethod
    def difference(self, one: State, other: State) -> Array:
        """Return by which part of themselves two states differ at most, `()`."""

    @abstractmethod
    def scales(self, state: State) -> Array:
        """Return units of a change of the state, `(D,)`; NaN if that is none."""

    @abstractmethod
    def adjoint(self, state: State, i: Array, direction: Array) -> Array:
        """Return A' w, `(D,)`, where A takes changes over step i to this state.

        Zero for step 0.
        """


def tabulate(how: Recurring, empty: State, wanted: Array) -> Table:
    """Find the states of a recursion that recur.

    Args:
        how: The recursion.
        empty: Zeros of the table's shapes, leaves `(capacity, ...)`.
        wanted: Whether to look at all, `()`.
    """
    capacity = jax.tree.leaves(empty)[0].shape[0]
    # The first step is like no other.
    kinds = how.kinds.at[0].set(jnp.max(how.kinds) + 1)

    def attempt(carry: tuple) -> tuple:
        tried, length, states, *_ = carry
        distinct = Distinct.of((patterns_of(kinds, length), kinds), capacity)
        fits = distinct.total <= capacity
        states, good = _filled(how, states, distinct, fits)
        table = Table(states, distinct.which, good)
        most = _difference(how, table, distinct)
        same = good & (most <= how.rounding)
        # The dearer of the two questions, and seldom the one that says no.
        holds = _forgets(how, table._replace(holds=same), distinct, length)
        longer = jnp.where(same, 2 * length, _enough(length, most, how.rounding))
        more = good & ~holds & (tried + 1 < _ATTEMPTS)
        return tried + 1, longer, states, distinct.which, holds, more

    start = (
        jnp.zeros((), jnp.int32),
        jnp.asarray(_SHORTEST, jnp.int32),
        empty,
        jnp.zeros(how.kinds.shape, jnp.int32),
        jnp.zeros((), bool),
        wanted,
    )
    *_, states, slots, holds, _ = lax.while_loop(lambda c: c[-1], attempt, start)
    return Table(states, slots, holds)


def _filled(
    how: Recurring, states: State, distinct: Distinct, fits: Array
) -> tuple[State, Array]:
    """Compute the state of every pattern, and say whether all have their digits."""

    def fill(carry: tuple) -> tuple:
        k, states, _ = carry
        step = distinct.first[k]
        state, good = how.step(_at(states, _slot_before(distinct.which, step)), step)
        states = jax.tree.map(lambda xs, x: xs.at[k].set(x), states, state)
        return k + 1, states, good

    zero = jnp.zeros((), jnp.int32)
    _, states, good = lax.while_loop(
        lambda c: c[2] & (c[0] < distinct.total), fill, (zero, states, fits)
    )
    return states, good


def _forgets(how: Recurring, table: Table, distinct: Distinct, length: Array) -> Array:
    """Whether changes shrink enough over every pattern.

    Two directions stand for all: together they have a share of one of every dimension,
    so that one that does not shrink among many that do is not lost in their sum.
    """
    states, slots, good = table

    def look_back(carry: tuple) -> tuple:
        k, _ = carry
        here = distinct.first[k]
        scales = how.scales(_at(states, k))
        angles = jnp.arange(scales.shape[0], dtype=scales.dtype)
        units = jnp.cos(angles), jnp.sin(angles)
        least = jnp.maximum(here - length, -1)

        def back(carry: tuple) -> tuple:
            i, directions = carry
            state = _at(states, slots[i])
            # One by one: a batch is not compiled in one piece.
            return i - 1, tuple(how.adjoint(state, i, w) for w in directions)

        # NaN and infinity stay, and nothing is less than they are.
        start = here, tuple(jnp.where(scales == 0, 0, w / scales) for w in units)
        i, directions = lax.while_loop(lambda c: c[0] > least, back, start)
        left = jnp.stack(directions) * how.scales(_at(states, slots[jnp.maximum(i, 0)]))
        return k + 1, jnp.sum(left**2) <= _FORGOTTEN

    start = jnp.zeros((), jnp.int32), good
    return lax.while_loop(lambda c: c[1] & (c[0] < distinct.total), look_back, start)[1]


def _difference(how: Recurring, table: Table, distinct: Distinct) -> Array:
    """Return by which part states differ at most from those they were computed from."""
    states, slots, good = table
    own = jnp.append(slots[:1], slots[:-1])
    used = own[distinct.first][slots]
    # As many as there are edges between patterns: those before one differ by one kind.
    pairs = Distinct.of((own, used), 4 * len(distinct.first))

    def compare(carry: tuple) -> tuple:
        k, most = carry
        i = pairs.first[k]
        other = how.difference(_at(states, own[i]), _at(states, used[i]))
        return k + 1, jnp.maximum(most, other)

    zero = jnp.zeros((), jnp.int32)
    start = zero, jnp.zeros((), how.scales(_at(states, zero)).dtype)
    fits = pairs.total <= len(pairs.first)
    total = jnp.where(good & fits, pairs.total, 0)
    most = lax.while_loop(lambda c: c[0] < total, compare, start)[1]
    return jnp.where(fits, most, jnp.inf)


def _enough(length: Array, most: Array, rounding: float) -> Array:
    """Return which pattern leaves a rounding of what this one leaves so much of."""
    known = jnp.minimum(most, rounding**0.5)
    longer = jnp.ceil(length * (math.log(rounding) / jnp.log(known)))
    longer = jnp.clip(longer, length + 1 + length // 8, 2 * length)
    return longer.astype(length.dtype)


def _slot_before(slots: Array, step: Array) -> Array:
    return slots[jnp.maximum(step - 1, 0)]


def _at(states: State, k: Array) -> State:
    return jax.tree.map(lambda x: x[k], states)
