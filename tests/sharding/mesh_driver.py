"""The driver on eight devices, with lanes in each or none; see `test_on_a_mesh`."""

import jax
import numpy as np
import pytest
from benchmarks.collectives import collectives, count
from jax.sharding import Mesh
from tests.parallel.toy import RunningMean, expected, toy

from elk_ssm.parallel.driver import run
from elk_ssm.parallel.mesh import Shards, on_mesh

P_ = 8
pytestmark = pytest.mark.usefixtures("x64")
PLACES = {
    "devices": {"backend": "sequential"},
    "lanes inside devices": {"backend": "sequential", "lanes": 2},
    "prefixes": {"backend": "associative"},
}


def on_devices(length, **options):
    """Run the toy with its entries over the devices; T must fill them."""
    shards = Shards(Mesh(np.array(jax.devices()), ("time",)), "time")
    recursion = toy(length)

    def body(entries, initial):
        found = run(RunningMean(entries, initial), axis=shards.axis, **options)
        return found, ()

    def program(entries):
        return on_mesh(shards, body, entries, recursion.initial, length)[0]

    return program, recursion.entries


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("piece", [1, 5])
def test_every_place_and_direction_finds_the_same(place, piece):
    length = P_ * piece
    for reverse in (False, True):
        program, entries = on_devices(length, reverse=reverse, **PLACES[place])
        found = jax.jit(program)(entries)
        np.testing.assert_allclose(found, expected(length, reverse), rtol=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_one_gather_is_all_that_is_sent(place):
    program, entries = on_devices(P_ * 6, **PLACES[place])
    found = collectives(jax.jit(program).lower(entries).compile())
    assert dict(count(found)) == {"all-gather": 1}
