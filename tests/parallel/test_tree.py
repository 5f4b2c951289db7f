"""A recursion by a tree gives what a scan gives, with any number of branches.

The oracle is the recursion's own step, one after the other.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.parallel.toy import RunningMean, toy

from elk_ssm.kalman.affine import affine_scan
from elk_ssm.linalg.structure import Dense, Diagonal
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.tree import climb, descend, group_size, whole


@dataclass(frozen=True)
class Branching(RunningMean):
    """The toy, joined `branches` at a time."""

    branches: int = 2

    @property
    def fan_in(self):
        return self.branches


def branching(length, branches):
    recursion = toy(length)
    return Branching(recursion.entries, recursion.initial, branches)


@pytest.mark.parametrize("branches", [2, 3, 16])
@pytest.mark.parametrize("length", [1, 2, 15, 17, 50])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_tree_gives_what_steps_give(length, branches, reverse, x64):
    recursion = branching(length, branches)
    found = run(recursion, backend="associative", reverse=reverse)
    expected = run(recursion, backend="sequential", reverse=reverse)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_levels_shrink_by_the_fan_in_and_end_below_it(x64):
    recursion = branching(50, 3)
    tree = climb(recursion, jax.vmap(recursion.element)(recursion.entries))
    assert [len(level[0]) for level in tree.levels] == [50, 17, 6, 2]
    everything = whole(recursion, tree)
    np.testing.assert_allclose(everything[2], np.mean(recursion.entries), rtol=1e-12)
    after = descend(recursion, tree, recursion.initial)
    np.testing.assert_allclose(after[0], 2 + np.arange(1, 51))


@pytest.mark.parametrize(("length", "counts"), [(50, [50, 32]), (49, [64, 32])])
def test_pairs_are_filled_up_once(length, counts, x64):
    recursion = branching(length, 2)
    tree = climb(recursion, jax.vmap(recursion.element)(recursion.entries))
    assert [len(level[0]) for level in tree.levels] == [*counts, 16, 8, 4, 2]
    everything = whole(recursion, tree)
    np.testing.assert_allclose(everything[2], np.mean(recursion.entries), rtol=1e-12)
    after = descend(recursion, tree, recursion.initial)
    np.testing.assert_allclose(after[0], 2 + np.arange(1, length + 1))


@pytest.mark.parametrize("structure", ["dense", "diagonal"])
def test_a_zero_passes_through_products_that_overflow(structure):
    # An exact prefix is a zero increment, and maps behind it may be as wild as can be.
    size, length = 2, 40
    wild = jnp.full((length, size), 1e30)
    operator = Diagonal(wild)
    if structure == "dense":
        operator = Dense(wild[..., None] * jnp.eye(size))
    offsets = jnp.zeros((length, size)).at[-1].set(1.0)
    found = affine_scan(operator, offsets, backend="associative")
    np.testing.assert_array_equal(found, offsets)


def test_a_zero_passes_through_a_map_that_is_not_a_number():
    maps = Dense(jnp.asarray([[jnp.nan, 2.0], [jnp.inf, 3.0]]))
    states = jnp.asarray([[0.0, 1.0], [-0.0, 0.0], [1.0, 0.0]])
    found = jax.vmap(maps.push)(states)
    np.testing.assert_array_equal(found[:2], [[2.0, 3.0], [0.0, 0.0]])
    assert not np.isfinite(found[2]).any()
    onto = jax.vmap(maps.push_onto)(states, jnp.ones((3, 2)))
    np.testing.assert_array_equal(onto[:2], [[3.0, 4.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("length", "size"),
    [(1, 3), (2, 3), (3, 3), (512, 3), (513, 3), (1200, 3), (1024, 16), (1500, 16)],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_dense_maps_are_doubled_at_the_top(length, size, reverse, x64):
    rng = np.random.default_rng(length)
    matrices = rng.normal(size=(length, size, size)) / size**0.5
    operator = Dense(jnp.asarray(0.8 * matrices))
    offsets = jnp.asarray(rng.normal(size=(length, size)))
    found, expected = (
        affine_scan(operator, offsets, reverse=reverse, backend=backend)
        for backend in ("associative", "sequential")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_as_few_are_joined_as_leave_the_fewest_levels():
    sizes = [group_size(count, 24) for count in (1, 24, 25, 1_000, 100_000)]
    assert sizes == [2, 24, 5, 10, 18]
