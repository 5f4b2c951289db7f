import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.parallel.prefix import prefix_scan


def affine(first, second):
    return second[0] * first[0], second[0] * first[1] + second[1]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 27, 100, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_a_loop(length, reverse):
    rng = np.random.default_rng(length)
    elements = rng.normal(size=(2, length)).astype(np.float32)
    found = prefix_scan(affine, tuple(map(jnp.asarray, elements)), reverse=reverse)
    state, states = 0.0, []
    order = slice(None, None, -1 if reverse else 1)
    for a, b in zip(*elements.astype(np.float64)[:, order]):
        state = a * state + b
        states.append(state)
    assert np.allclose(found[1], states[order], rtol=1e-4, atol=1e-5)


def test_the_operator_is_traced_a_fixed_number_of_times():
    calls = []

    def counted(first, second):
        calls.append(1)
        return affine(first, second)

    counts = []
    for length in (100, 10_000):
        calls.clear()
        jax.make_jaxpr(lambda e: prefix_scan(counted, e))((jnp.ones(length),) * 2)
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_derivatives_pass_through():
    def last(a):
        return prefix_scan(affine, (jnp.full(9, a), jnp.ones(9)))[1][-1]

    expected = sum(k * 0.5 ** (k - 1) for k in range(1, 9))
    assert np.allclose(jax.jit(jax.grad(last))(0.5), expected, rtol=1e-5)
