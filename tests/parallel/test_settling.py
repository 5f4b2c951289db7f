"""Runs that leap over what repeats find what a plain loop finds."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from elk_ssm.parallel.settling import (
    BLOCK,
    Settling,
    equal_until,
    rows_at,
    run_settling,
    write_rows,
)

LENGTH = 16


def step(state, entry):
    """p <- a p + 1, which comes to rest, and x <- a x + p u, which u enters."""
    (p, x), (a, u) = state, entry
    p = a * p + 1
    x = a * x + p * u
    return (p, x), (p, x)


def before(outputs, i):
    return tuple(jnp.where(i == 0, 0, y[i - 1]) for y in outputs[:2])


@dataclass(frozen=True)
class Toy(Settling):
    rates: jax.Array
    series: jax.Array
    same: jax.Array
    length: int = LENGTH

    def block(self, outputs, i):
        entries = rows_at((self.rates, self.series), i, BLOCK)
        found = lax.scan(step, before(outputs, i), entries)[1]
        return write_rows(outputs, (*found, jnp.zeros(BLOCK, bool)), i)

    def still(self, outputs, i, j):
        return abs(outputs[0][i] - outputs[0][j]) < 1e-12

    def rest(self, outputs, i):
        return (self.rates[i - 1], outputs[0][i - 1]), jnp.array(True)

    def leap(self, constant, outputs, i):
        a, p = constant
        n = jnp.arange(LENGTH)
        powers = jnp.where(n[:, None] >= n, a ** (n[:, None] - n), 0)
        x = powers @ (p * rows_at(self.series, i, LENGTH))
        x = x + a ** (n + 1) * before(outputs, i)[1]
        found = jnp.full(LENGTH, p), x, jnp.ones(LENGTH, bool)
        return write_rows(outputs, found, i)


def toy(rates, series):
    total = len(series)
    same = jnp.concatenate([jnp.zeros(1, bool), rates[1:] == rates[:-1]])
    nothing = jnp.zeros(total), jnp.zeros(total), jnp.zeros(total, bool)
    found = run_settling(Toy(rates, series, same), nothing)
    return found, lax.scan(step, (0.0, 0.0), (rates, series))[1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("total", [128, 401])
@pytest.mark.parametrize("changes", [(), (70,), (3, 100, 101, 120), range(0, 128, 9)])
def test_finds_what_a_loop_finds(total, changes):
    rates = np.full(total, 0.3)
    for k, at in enumerate(changes):
        rates[at:] = 0.2 + 0.1 * (k % 3)
    series = np.random.default_rng(0).normal(size=total)
    (p, x, leapt), expected = jax.jit(toy)(jnp.asarray(rates), jnp.asarray(series))
    np.testing.assert_allclose(p, expected[0], rtol=1e-11)
    np.testing.assert_allclose(x, expected[1], rtol=1e-10, atol=1e-12)
    rare = len(changes) > 4
    assert bool(leapt.any()) is (total > 128 or not rare)
    if total == 401 and len(changes) < 2:
        assert leapt.mean() > 0.6
    # No step is leapt that is unlike the one before.
    assert not np.any(np.asarray(leapt)[1:] & (rates[1:] != rates[:-1]))


@pytest.mark.usefixtures("x64")
def test_a_batch_leaps_where_all_of_it_rests():
    rates = np.full((2, 300), 0.3)
    rates[1, 200:] = 0.6
    series = np.random.default_rng(1).normal(size=(2, 300))
    many, expected = jax.jit(jax.vmap(toy))(jnp.asarray(rates), jnp.asarray(series))
    np.testing.assert_allclose(many[1], expected[1], rtol=1e-10, atol=1e-12)
    assert many[2].any()
    np.testing.assert_array_equal(many[2][0], many[2][1])


def test_equal_steps_are_counted_up_to_the_first_that_is_not():
    same = jnp.array([False, True, True, True, False, True, True])
    counts = [int(equal_until(same, max(0, i - 2), 4, i)) for i in range(6)]
    # From steps 0, 0, 0, 1, 2, 3; of at most four, and not past the end.
    assert counts == [0, 4, 4, 3, 2, 4]


@pytest.mark.usefixtures("x64")
def test_the_last_leap_of_equal_steps_ends_with_them():
    rates = np.full(200, 0.3)
    rates[150:] = 0.2
    series = np.random.default_rng(2).normal(size=200)
    found, expected = jax.jit(toy)(jnp.asarray(rates), jnp.asarray(series))
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-10, atol=1e-12)
    assert found[2][149]
    assert not found[2][150]
