"""A grid of noises in one compiled call."""

import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk


def f(x, u):
    return jnp.tanh(1.2 * x + u)


INPUTS = jnp.sin(jnp.arange(30.0))[:, None] * jnp.ones(2)
GRID = jnp.array([0.1, 10.0, 1e4, jnp.inf])


def sweep(noises=GRID, **options):
    return elk.sweep_noise(f, jnp.zeros(2), INPUTS, noises, **options)


def test_equals_one_evaluation_each():
    found = sweep(history=5)
    for i, noise in enumerate(GRID):
        sol = elk.evaluate(
            f, jnp.zeros(2), INPUTS, method=elk.quasi_elk(noise), history=5
        )
        assert int(found.num_iters[i]) == int(sol.num_iters)
        assert int(found.status[i]) == int(sol.status)
        np.testing.assert_allclose(
            found.history[i], sol.history.residual_norm, rtol=1e-4, atol=1e-6
        )


def test_another_grid_of_the_same_length_compiles_nothing(compilations):
    other = jnp.array([0.2, 20.0, 2e4, 7.0])
    sweep()
    with compilations() as count:
        sweep(other)
    assert count == [0]


def test_best_is_the_converged_one_with_the_fewest_iterations():
    found = sweep()
    best = int(found.best)
    assert int(found.status[best]) == elk.Status.converged
    assert int(found.num_iters[best]) == int(found.num_iters.min())
    assert int(sweep(max_iters=1).best) == -1


def test_bad_grids():
    with pytest.raises(ValueError, match="positive"):
        sweep([1.0, -1.0])
    with pytest.raises(ValueError, match="one-dimensional"):
        sweep(jnp.ones((2, 2)))
    with pytest.raises(TypeError, match="auto"):
        sweep(method=elk.auto())
    with pytest.raises(TypeError, match="noises must be numbers; got '1e2'"):
        sweep("1e2")
