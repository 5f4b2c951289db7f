"""Methods and recurrences that several of these modules use."""

import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

METHODS = {
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "elk": elk.elk(1e2),
    "elk_smoother": elk.elk(1e2, estimate="smoother"),
    "quasi_elk": elk.quasi_elk(1e2),
    "quasi_elk_smoother": elk.quasi_elk(1e2, estimate="smoother"),
    "picard": elk.picard(),
    "jacobi": elk.jacobi(),
}
CELLS = ["gru", "lstm", "rnn", "linear"]
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
undamped = pytest.mark.parametrize("name", ["deer", "quasi_deer", "picard", "jacobi"])


def decay(x, u):
    return jnp.tanh(0.5 * x + u)


def nan_above(x, u):
    """NaN on the true trajectory where an input exceeds 5."""
    return jnp.where(u > 5, jnp.nan, jnp.tanh(0.5 * x + 0.1 * u))


def small_integers(length):
    """A kinked recurrence whose every intermediate is an exact float32."""
    rng = np.random.default_rng(2)
    weights = jnp.asarray([[1.0, -1.0], [1.0, 1.0]])
    inputs = jnp.asarray(rng.integers(-3, 4, size=(length, 2)), jnp.float32)

    def step(x, u):
        return jnp.abs((weights * x).sum(-1) + u) / 2

    return step, jnp.asarray([1.0, 2.0]), inputs
