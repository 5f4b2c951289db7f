"""Parallel draws equal a loop with the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.nssm.oracle import pendulum

from elk_ssm.draws import draw_states, sample
from elk_ssm.linalg.structure import ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.posed import pose

pytestmark = pytest.mark.usefixtures("x64")


def test_draws_equal_a_sequential_loop_with_the_same_noise():
    model = pendulum()
    noise = np.random.default_rng(0).normal(size=(60, 2))
    posed = pose(model, jnp.zeros((60, 1)))
    states, status = draw_states(posed, jnp.asarray(noise))
    root = np.linalg.cholesky(np.asarray(model.dynamics_covariance))
    state, expected = np.asarray(model.initial_mean) + np.sqrt(0.1) * noise[0], []
    for t in range(60):
        if t:
            state = np.asarray(model.dynamics(state, None)) + root @ noise[t]
        expected.append(state)
    assert int(status) == 0
    np.testing.assert_allclose(states, expected, atol=1e-9)


def test_inputs_drive_the_transition_into_their_step():
    tiny = ScaledIdentity(1e-18)
    model = NonlinearSSM(
        jnp.zeros(1), tiny, lambda z, u: z + u, tiny, lambda z, u: z + 10 * u, tiny
    )
    drawn = sample(model, jax.random.key(0), 3, jnp.array([[1.0], [2.0], [4.0]]))
    np.testing.assert_allclose(drawn.states[:, 0], [0, 2, 6], atol=1e-6)
    np.testing.assert_allclose(drawn.emissions[:, 0], [10, 22, 46], atol=1e-6)


def test_moments_of_many_draws():
    one = ScaledIdentity(1.0)
    model = NonlinearSSM(
        jnp.zeros(1), one, lambda z, u: 0.5 * z, lambda z, u: one, None, one
    )
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: sample(model, key, 3))(keys)
    np.testing.assert_allclose(jnp.var(drawn.states[:, 2, 0]), 1.3125, rtol=0.1)
    np.testing.assert_allclose(jnp.var(drawn.emissions[:, 2, 0]), 2.3125, rtol=0.1)


def test_a_log_density_needs_draw():
    one = ScaledIdentity(1.0)
    model = NonlinearSSM(
        jnp.zeros(1), one, lambda z, u: z, one, log_density=lambda h, y, u: -h[0] * y[0]
    )
    with pytest.raises(ValueError, match="draw"):
        sample(model, jax.random.key(0), 3)
