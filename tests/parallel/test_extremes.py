"""Largest and smallest entries of several arrays, and where conditions first hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.parallel.extremes import extremes
from elk_ssm.parallel.time_axis import LOCAL


def test_each_operand_has_its_own_extreme():
    rng = np.random.default_rng(0)
    sizes = jnp.asarray(rng.uniform(size=(3, 50, 4)))
    places = jnp.asarray(rng.integers(0, 1000, size=(2, 50, 4)))
    largest, smallest = jax.jit(extremes)(tuple(sizes), tuple(places))
    np.testing.assert_array_equal(largest, sizes.max(axis=(1, 2)))
    np.testing.assert_array_equal(smallest, places.min(axis=(1, 2)))


@pytest.mark.parametrize("first", [0, 7, 19, None])
@pytest.mark.parametrize("marked", [False, True])
def test_a_survey_finds_the_first_row_and_whether_it_is_marked(first, marked):
    condition, mark = np.zeros((20, 3), bool), np.zeros((20, 3), bool)
    if first is not None:
        condition[first:, 1] = True
        condition[first, 2] = mark[first, 2] = marked
        # Of later rows, and where no condition holds, a mark does not count.
        mark[first + 1 :] = mark[first, 0] = True
    sizes = jnp.asarray(np.arange(60.0).reshape(20, 3))
    pair = jnp.asarray(condition), jnp.asarray(mark)
    (largest,), ((row, is_marked),) = LOCAL.survey((sizes,), (pair,))
    assert float(largest) == 59
    assert int(row) == (20 if first is None else first)
    assert bool(is_marked) == (first is not None and marked)
