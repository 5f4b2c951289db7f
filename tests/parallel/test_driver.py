"""One recursion finds the same numbers wherever, and in whatever direction, it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.parallel.toy import Counts, expected, toy

from elk_ssm.parallel.driver import run
from elk_ssm.parallel.time_axis import LOCAL

pytestmark = pytest.mark.usefixtures("x64")
PLACES = {
    "one shard": {"backend": "sequential"},
    "lanes": {"backend": "sequential", "lanes": 4},
    "prefix": {"backend": "associative"},
    "as the platform has it": {"backend": "auto", "lanes": 3},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("length", [1, 13, 16])
def test_every_place_and_direction_finds_the_same(place, length):
    @jax.jit
    def both():
        recursion = toy(length)
        directions = {"reverse": False}, {"reverse": True}
        return [run(recursion, **way, **PLACES[place]) for way in directions]

    for found, reverse in zip(both(), (False, True), strict=True):
        np.testing.assert_allclose(found, expected(length, reverse), rtol=1e-12)


def test_states_before_are_those_after_one_step_earlier():
    for place in PLACES.values():
        counts = run(Counts(jnp.ones(5), jnp.asarray(0.0)), before=True, **place)
        assert counts.tolist() == [0, 1, 2, 3, 4]
        counts = run(
            Counts(jnp.ones(5), jnp.asarray(0.0)), before=True, reverse=True, **place
        )
        assert counts.tolist() == [4, 3, 2, 1, 0]


def test_one_shard_is_one_scan():
    program = jax.make_jaxpr(lambda: run(toy(13), backend="sequential"))()
    names = [equation.primitive.name for equation in program.eqns]
    assert names == ["scan"]


def test_derivatives_pass_through_lanes():
    def loss(entries, **where):
        recursion = toy(13)
        recursion = type(recursion)(entries, recursion.initial)
        return jnp.sum(run(recursion, **where) ** 2)

    entries = toy(13).entries
    plain = jax.grad(loss)(entries, backend="sequential")
    lanes = jax.grad(loss)(entries, backend="sequential", lanes=4)
    np.testing.assert_allclose(lanes, plain, rtol=1e-11)


def test_one_device_has_one_place():
    assert LOCAL.axis_index == 0
    assert not LOCAL.is_sharded
    assert LOCAL.lanes(3).size == 3
