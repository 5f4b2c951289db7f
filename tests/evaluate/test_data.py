"""Kinds of states and inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.evaluate.cases import decay

import elk_ssm as elk


def test_scalar_state_and_no_inputs(reference, close):
    solution = elk.evaluate(lambda x, _: jnp.cos(x), 0.5, length=12, method=elk.deer())
    expected = reference(lambda x, _: jnp.cos(x), jnp.asarray(0.5), None, 12)
    assert solution.states.shape == (12,)
    np.testing.assert_allclose(solution.states, expected, atol=1e-6)


def test_integer_and_boolean_inputs(reference, close):
    def f(x, u):
        return jnp.where(u["on"], jnp.tanh(0.5 * x + u["count"]), x)

    inputs = {"count": jnp.arange(9), "on": jnp.arange(9) % 2 == 0}
    x0 = jnp.zeros(2)
    solution = elk.evaluate(f, x0, inputs, method=elk.deer())
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_counters_and_keys_in_the_state(wrap, reference, close):
    @wrap
    def f(state, u):
        key, now = jax.random.split(state["key"])
        kick = 0.1 * jax.random.normal(now, (2,))
        h = jnp.tanh(0.5 * state["h"] + u + kick) * (1 + 0.1 * state["n"])
        return {"h": h, "n": state["n"] + 1, "key": key}

    x0 = {"h": jnp.zeros(2), "n": jnp.asarray(0), "key": jax.random.PRNGKey(3)}
    inputs = jnp.ones((9, 2))
    solution = elk.evaluate(f, x0, inputs, method=elk.deer())
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-4)


def test_typed_keys_in_the_state(reference):
    def f(state, u):
        h, key = state
        key, now = jax.random.split(key)
        return jnp.tanh(0.5 * h + u + jax.random.normal(now, (2,))), key

    x0, inputs = (jnp.zeros(2), jax.random.key(3)), jnp.ones((9, 2))
    states, keys = elk.evaluate(f, x0, inputs, method=elk.deer()).states
    expected, expected_keys = reference(f, x0, inputs)
    np.testing.assert_allclose(states, expected, atol=1e-5)
    np.testing.assert_array_equal(
        jax.random.key_data(keys), jax.random.key_data(expected_keys)
    )


def test_leaves_of_two_precisions(x64, reference, close):
    def f(state, u):
        a, b = state
        return jnp.tanh(0.5 * a + u), jnp.tanh(0.5 * b + a.astype(jnp.float64))

    x0 = jnp.zeros(2, jnp.float32), jnp.zeros(2)
    inputs = jnp.ones((9, 2), jnp.float32)
    solution = elk.evaluate(f, x0, inputs, method=elk.deer())
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-6)


def test_single_precision_under_x64(x64):
    x0 = jnp.zeros(2, jnp.float32)
    inputs = jnp.ones((9, 2), jnp.float32)
    solution = elk.evaluate(decay, x0, inputs, method=elk.elk(1.0))
    assert solution.states.dtype == jnp.float32
    assert solution.status == elk.Status.converged
