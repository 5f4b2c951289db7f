"""One recursion finds the same numbers wherever, and in whatever direction, it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.parallel.toy import expected, toy

from elk_ssm.parallel.driver import run
from elk_ssm.parallel.time_axis import LOCAL

pytestmark = pytest.mark.usefixtures("x64")
PLACES = {
    "one shard": {"backend": "sequential"},
    "lanes": {"backend": "sequential", "lanes": 4},
    "more lanes than there may be steps": {"backend": "sequential", "lanes": 16},
    "prefix": {"backend": "associative"},
    "as the platform has it": {"backend": "auto", "lanes": 3},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 13, 16, 22])
def test_every_place_and_direction_finds_the_same(place, reverse, length):
    states = run(toy(length), reverse=reverse, **PLACES[place])
    np.testing.assert_allclose(states, expected(length, reverse), rtol=1e-12)


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
    assert LOCAL.place == 0
    assert not LOCAL.is_spread
    assert LOCAL.lanes(3).size == 3
