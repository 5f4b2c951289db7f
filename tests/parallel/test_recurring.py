"""States that recur are computed once, and are those of a plain loop."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.parallel.kinds import Distinct, kinds_of
from elk_ssm.parallel.recurring import Recurring, tabulate

STEPS, CAPACITY = 400, 100
pytestmark = pytest.mark.usefixtures("x64")


@dataclass(frozen=True)
class Toy(Recurring):
    """p <- a^2 p + b of the kind, from zero on."""

    rates: jax.Array
    kinds: jax.Array
    good: bool = True
    rounding: float = 1e-13

    def step(self, before, i):
        # The first step has the kind of others.
        a = jnp.where(i == 0, 0.0, self.rates[self.kinds[i]])
        return {"p": a**2 * before["p"] + 1 + self.kinds[i], "a": a}, self.good

    def difference(self, one, other):
        return abs(one["p"] - other["p"]) / one["p"]

    def scales(self, state):
        return jnp.sqrt(state["p"])[None]

    def adjoint(self, state, i, direction):
        return state["a"] * direction


def plain(rates, kinds):
    p, found = 0.0, []
    for k in kinds:
        p = rates[k] ** 2 * p + 1 + k
        found.append(p)
    return np.array(found)


@jax.jit
def found(rates, kinds, good=True, wanted=True):
    zeros = jnp.zeros(CAPACITY)
    how = Toy(rates, kinds, good)
    return tabulate(how, {"p": zeros, "a": zeros}, jnp.asarray(wanted))


def weekly():
    return (np.arange(STEPS) % 7 >= 5).astype(np.int32)


def now_and_then():
    return (np.random.default_rng(0).random(STEPS) < 0.02).astype(np.int32)


@pytest.mark.parametrize("kinds", [weekly(), now_and_then()])
def test_the_states_are_those_of_a_loop(kinds):
    rates = np.array([0.2, 0.3])
    table = found(rates, kinds)
    assert table.holds
    exact = plain(rates, kinds)
    np.testing.assert_allclose(table.states["p"][table.slots], exact, rtol=1e-12)
    # Of few steps, each of which is computed once.
    assert int(table.slots.max()) < 60


def test_what_forgets_slowly_is_not_taken_for_resting():
    # Two states in a row differ by a rounding, and from the limit by many.
    rates = np.array([1 - 1e-6, 1 - 1e-6])
    assert not found(rates, weekly()).holds


def test_a_longer_memory_needs_longer_patterns_of_the_same_week():
    rates = np.array([0.7, 0.8])
    table = found(rates, weekly())
    assert table.holds
    exact = plain(rates, weekly())
    np.testing.assert_allclose(table.states["p"][table.slots], exact, rtol=1e-11)
    assert int(table.slots.max()) > 40


def test_there_is_no_table_of_what_does_not_recur():
    kinds = np.random.default_rng(1).integers(0, 2, STEPS).astype(np.int32)
    assert not found(np.array([0.9, 0.9]), kinds).holds
    assert not found(np.array([0.2, np.nan]), weekly()).holds
    assert not found(np.array([0.2, 0.3]), weekly(), good=False).holds
    assert not found(np.array([0.2, 0.3]), weekly(), wanted=False).holds


def test_equal_entries_are_told_from_others():
    rng = np.random.default_rng(2)
    one, other = (rng.integers(0, 9, 500).astype(np.int32) for _ in range(2))
    same = jax.jit(lambda a, b: Distinct.of((a, b), 500))(one, other)
    first = np.asarray(same.first)[np.asarray(same.which)]
    pairs = list(zip(one.tolist(), other.tolist()))
    assert [pairs[i] for i in first] == pairs
    # No more than a few are told apart that are equal.
    assert len(set(pairs)) <= int(same.total) <= len(set(pairs)) + 5
    few = Distinct.of((jnp.arange(50),), 20)
    assert int(few.total) > 20


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool])
def test_kinds_are_those_of_equal_entries(dtype):
    rng = np.random.default_rng(3)
    few = (
        rng.normal(size=(5, 2, 3)) > 0 if dtype is bool else rng.normal(size=(5, 2, 3))
    )
    which = rng.integers(0, 5, 200)
    entries, other = few[which].astype(dtype), (which % 2).astype(np.int32)
    kinds = np.asarray(kinds_of((jnp.asarray(entries), jnp.asarray(other)), 200))
    for t, k in enumerate(kinds):
        assert k <= t
        np.testing.assert_array_equal(entries[k], entries[t])
        assert other[k] == other[t]
    assert len(np.unique(kinds)) < 15
    assert (np.asarray(kinds_of((), 4)) == 0).all()
