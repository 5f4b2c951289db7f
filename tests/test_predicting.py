"""Predicted passes beside those that the methods take."""

import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.predicting import passes_at, stretch_looked_at

METHODS = {
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "picard": elk.picard(),
    "jacobi": elk.jacobi(),
}


def rotation(scale, length):
    turn = scale * np.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])
    matrix = jnp.asarray(turn)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(length, 2)))
    return (lambda x, u: jnp.tanh(matrix @ x + u)), jnp.zeros(2), inputs


def test_within_a_factor_of_what_it_takes(x64):
    f, start, inputs = rotation(0.7, 200)
    predicted = elk.diagnose(f, start, inputs).predictions
    for name, method in METHODS.items():
        taken = int(elk.evaluate(f, start, inputs, method=method).num_iters)
        assert max(predicted[name] / taken, taken / predicted[name]) < 1.5, name


def test_a_linear_recurrence_takes_two_passes_of_newton(x64):
    f = lambda x, u: 1.01 * jnp.roll(x, 1) + u  # noqa: E731
    found = elk.diagnose(f, jnp.ones(3), jnp.ones((100, 3)))
    assert found.predictions["deer"] == 2
    assert found.predictions["jacobi"] == 100


def slow(x, u):
    """Slow and nearly diagonal, but what is off the diagonal adds up over time."""
    return 0.98 * x + 0.1 * jnp.tanh(jnp.stack([-x[1], x[0]])) + 0.05 * u


def test_deer_is_recommended_where_it_takes_a_tenth_of_the_iterations(x64):
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(500, 2)))
    found = elk.diagnose(slow, jnp.zeros(2), inputs)
    assert float(found.off_diagonal_share) < 0.3
    assert found.recommendation.startswith("deer()")
    taken = {
        name: int(elk.evaluate(slow, jnp.zeros(2), inputs, method=method).num_iters)
        for name, method in METHODS.items()
        if name.endswith("deer")
    }
    for name, count in taken.items():
        assert max(found.predictions[name] / count, count / found.predictions[name]) < 2


def test_the_least_pull_is_where_products_stop_growing(x64):
    free = elk.diagnose(lambda x, _: 1.25 * x, jnp.ones(1), length=100)
    assert free.least_alpha == pytest.approx(0.2, abs=1e-6)
    assert elk.diagnose(lambda x, _: 0.5 * x, jnp.ones(1), length=100).least_alpha == 0
    data = jnp.ones((100, 1))
    for alpha, grows in ((0.19, True), (0.21, False)):
        g = elk.forced(lambda x, _: 1.25 * x, alpha)
        found = elk.diagnose(g, jnp.ones(1), g.inputs(jnp.ones(1), data))
        assert (float(found.lyapunov_exponent) > 0) == grows


def test_passes_grow_with_the_length_where_the_stretch_says_so():
    assert passes_at(jnp.array([50, 100]), 512, 512) == 100
    assert passes_at(jnp.array([50, 100]), 500, 1000) == 200
    assert passes_at(jnp.array([20, 20]), 512, 100_000) == 20
    assert passes_at(jnp.array([256, 512]), 512, 2000) == 2000


def test_wide_states_are_looked_at_over_fewer_steps():
    assert stretch_looked_at(2000, 4) == 512
    assert stretch_looked_at(2000, 256) == 64
    assert stretch_looked_at(20, 4096) == 20
