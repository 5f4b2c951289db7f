"""Plans that cannot fit on the device are avoided, and named where asked for."""

import jax
import jax.numpy as jnp
import pytest

import elk_ssm as elk
from elk_ssm import _memory, _options
from elk_ssm.solve import auto

T, D = 64, 8
MATRICES = T * D * D * 4


def f(x, u):
    return jnp.tanh(0.5 * jnp.roll(x, 1) + u)


@pytest.fixture
def room(monkeypatch):
    """Give the device so many bytes."""

    def give(number):
        monkeypatch.setattr(_options, "left_bytes", lambda: number)
        monkeypatch.setattr(auto, "device_bytes", lambda: number)

    return give


def run(method):
    return elk.evaluate(f, jnp.zeros(D), jnp.ones((T, D)), method=method)


def test_the_machine_says_what_it_holds():
    assert _memory.device_bytes() > 2**28


def test_jacobians_that_cannot_fit_are_named(room):
    room(MATRICES - 1)
    says = r"64 nodes in 8 dimensions.*quasi_deer.*BlockDiagonalJacobian.*block_size=2"
    with pytest.raises(ValueError, match=says):
        run(elk.deer())
    with pytest.raises(ValueError, match="a device holds"):
        jax.make_jaxpr(lambda: run(elk.elk(10.0)).states)()
    for fitting in (elk.deer(block_size=2), elk.quasi_deer()):
        elk.raise_if_failed(run(fitting))
    room(MATRICES)
    elk.raise_if_failed(run(elk.deer()))


def test_where_nothing_is_known_nothing_is_refused(room):
    room(None)
    elk.raise_if_failed(run(elk.deer()))
    assert elk.Auto().newton(1000, D).block_size == 16


def test_the_default_takes_blocks_that_fit(room):
    length = 10_000
    for number in (10**5, 10**6, 10**9):
        room(number)
        size = elk.Auto().newton(length, D).block_size
        assert length / size * D * D * 8 <= number
    assert size == 16
    room(10**5)
    assert elk.Auto(block_size=20).newton(length, D).block_size == 20
    assert elk.Auto().newton(length, D, 10).block_size == 10
    assert elk.Auto().newton(length, 1000).block_size == 16
