from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.parallel.prefix import _rounds, prefix_scan, written_out


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


def matrices(first, second):
    mapped = jnp.einsum("...ij,...j->...i", second[0], first[1])
    return second[0] @ first[0], mapped + second[1]


def refuse(_):
    raise AssertionError("an element of few entries is written out")


@pytest.mark.parametrize("length", [1, 2, 5, 8, 64, 101])
def test_small_elements_written_out_are_the_same(length):
    rng = np.random.default_rng(length)
    A, b = 0.6 * rng.normal(size=(length, 2, 2)), rng.normal(size=(length, 2))
    with jax.enable_x64(True):

        def last(scan, A):
            return scan((A, jnp.asarray(b)))

        A = jnp.asarray(A)
        ways = partial(written_out, matrices, refuse), partial(prefix_scan, matrices)
        for way in (lambda f: f, jax.jit, jax.jacrev):
            found, expected = (way(lambda A, s=s: last(s, A))(A) for s in ways)
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
                np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_the_rounds_bring_all_that_is_earlier_to_every_element(size, count):
    held = np.array([[{i * size + j} for i in range(count)] for j in range(size)])
    for source, target, reach in _rounds(size, count):
        earlier = [set()] * reach + list(held[source][: count - reach])
        held[target] = [x | y for x, y in zip(earlier, held[target])]
    for (j, i), seen in np.ndenumerate(held):
        assert seen == set(range(i * size + j + 1))
