"""Leaves that are not floating point, as unknowns of an iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.interop import blackjax as chain
from elk_ssm.interop.discrete import Digits, in_digits

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("floats", ["float32", "float64"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_digits_say_every_integer_exactly(dtype, floats, x64):
    info = np.iinfo(dtype)
    values = [info.min, info.max, 0, 1, 77, info.max // 3, info.min // 3]
    leaf = jnp.asarray(np.array(values, dtype))
    how = Digits(leaf.dtype, jnp.dtype(floats))
    digits = how.write(leaf)
    assert digits.dtype == floats
    assert digits.shape == (len(values), len(how.ranges))
    np.testing.assert_array_equal(how.read(digits), leaf)
    np.testing.assert_array_equal(how.read(digits + 0.3), leaf)
    assert how.read(digits).dtype == leaf.dtype


def test_digits_say_booleans_and_stay_in_range():
    how = Digits(jnp.dtype(bool), jnp.dtype("float32"))
    np.testing.assert_array_equal(
        how.read(how.write(jnp.array([True, False]))), [True, False]
    )
    how = Digits(jnp.dtype("int8"), jnp.dtype("float32"))
    found = how.read(jnp.array([[1e9], [-1e9], [3.4]]))
    np.testing.assert_array_equal(found, [127, -128, 3])


def test_only_what_follows_from_floats_is_an_unknown():
    def f(state, key):
        x = 0.5 * state["x"]
        return {
            "x": x,
            "alone": state["alone"] + 1,
            "after": state["after"] + state["follows"],
            "follows": jnp.asarray(x > 0, jnp.int32),
            "key": jax.random.split(state["key"])[0],
        }

    zero = jnp.zeros((), jnp.int32)
    state = {"x": jnp.ones(()), "alone": zero, "after": zero, "follows": zero}
    state["key"] = jax.random.key(0)
    found = in_digits(f, state, jax.random.key(1))
    names = [name for name, how in zip(sorted(state), found.leaves) if how]
    assert names == ["after", "follows"]


def test_a_key_that_depends_on_floats_is_refused():
    def step(key, state):
        x, own = state
        return 0.5 * x, jax.random.fold_in(own, jnp.asarray(x > 0, jnp.int32))

    state = jnp.ones(()), jax.random.key(0)
    with pytest.raises(TypeError, match="Let the step use its own key"):
        chain.to_recurrence(step, state, jax.random.key(1), 5)


def gibbs(key, state):
    """Draw components and means of a mixture of two in turns, and count moves."""
    data = jnp.array([-2.1, -1.7, -2.4, 1.9, 2.2, 2.6, 0.1])
    means, labels, moves = state
    one, two = jax.random.split(key)
    odds = 0.5 * ((data - means[0]) ** 2 - (data - means[1]) ** 2)
    draws = jax.random.uniform(one, data.shape)
    new = jnp.asarray(draws < jax.nn.sigmoid(odds), labels.dtype)
    count = jnp.stack([jnp.sum(1 - new), jnp.sum(new)])
    total = jnp.stack([jnp.sum((1 - new) * data), jnp.sum(new * data)])
    noise = jax.random.normal(two, (2,))
    means = total / (count + 0.1) + noise / jnp.sqrt(count + 0.1)
    return means, new, moves + jnp.sum(new != labels, dtype=moves.dtype)


def test_gibbs_with_labels_and_counts_is_the_chain(reference, close, x64):
    state = jnp.array([-1.0, 1.0]), jnp.zeros(7, jnp.int32), jnp.zeros((), jnp.int32)
    key = jax.random.key(0)
    found = elk.raise_if_failed(elk.chains(gibbs, state, key, 50, 1, method=elk.deer()))
    keys = jax.random.split(jax.random.split(key, 1)[0], 50)
    expected = reference(lambda state, key: gibbs(key, state), state, keys)
    alone = jax.tree.map(lambda x: x[0], found.states)
    np.testing.assert_array_equal(alone[1], expected[1])
    np.testing.assert_array_equal(alone[2], expected[2])
    close(alone, expected, atol=1e-10)
    assert int(expected[2][-1]) > 5
    assert int(found.num_iters[0]) < 50


def test_a_chain_of_spins_alone(reference):
    def sweep(key, spins):
        field = 0.3 * (jnp.roll(spins, 1) + jnp.roll(spins, -1))
        up = jax.random.uniform(key, spins.shape) < jax.nn.sigmoid(2 * field)
        even = jnp.arange(spins.size) % 2 == 0
        return jnp.where(even, 2 * up.astype(spins.dtype) - 1, jnp.roll(spins, 1))

    key, spins = jax.random.key(1), jnp.ones(6, jnp.int8)
    found = elk.chains(sweep, spins, key, 40, 1, method=elk.jacobi())
    keys = jax.random.split(jax.random.split(key, 1)[0], 40)
    expected = reference(lambda spins, key: sweep(key, spins), spins, keys)
    np.testing.assert_array_equal(found.states[0], expected)
    assert found.states.dtype == jnp.int8
    assert int(found.status[0]) == 0
