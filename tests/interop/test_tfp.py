import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_probability.substrates.jax as tfp
from tests.kalman import oracle

from elk_ssm.interop.tfp import from_tfp, to_tfp
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import Diagonal, ScaledIdentity


@pytest.fixture(scope="module", params=[True, False], ids=["varying", "static"])
def case(request):
    data = oracle.random_data(T=5, varying=request.param)
    model = jax.tree.map(jnp.float32, oracle.as_model(data, static=not request.param))
    y, u = jnp.float32(data.y), jnp.float32(data.u)
    return model, y, u, to_tfp(model, 5, u)


def test_index_convention(case):
    """TFP's t maps z_t to z_{t+1}; ours maps z_{t-1} to z_t."""
    model, _, _, distribution = case
    weights = model.dynamics_weights.matrix
    if weights.ndim == 3:
        assert np.array_equal(distribution.transition_matrix(0).to_dense(), weights[1])
        assert np.array_equal(
            distribution.observation_matrix(2).to_dense(),
            model.emission_weights.matrix[2],
        )
    else:
        assert np.array_equal(distribution.transition_matrix, weights)


def test_likelihood_and_smoother_agree(case):
    model, y, u, distribution = case
    found = lgssm_smoother(model, y, u)
    means, covs = distribution.posterior_marginals(y)
    assert np.allclose(distribution.log_prob(y), found.log_likelihood, rtol=1e-4)
    assert np.allclose(means, found.smoothed_means, rtol=1e-3, atol=1e-3)
    assert np.allclose(covs, found.smoothed_covariances.matrix, rtol=1e-3, atol=1e-3)


def test_round_trip_keeps_the_posterior(case):
    model, y, u, distribution = case
    back = lgssm_smoother(from_tfp(distribution), y)
    here = lgssm_smoother(model, y, u)
    assert np.allclose(back.log_likelihood, here.log_likelihood, rtol=1e-4)
    assert np.allclose(back.smoothed_means, here.smoothed_means, rtol=1e-3, atol=1e-3)


def test_initial_step_is_where_tfp_starts_counting(case):
    _, y, _, distribution = case
    weights = jnp.stack([(1 + t) * jnp.eye(1) for t in range(10)])
    tfd = type(distribution)
    operator = tfp.tf2jax.linalg.LinearOperatorFullMatrix
    normal = to_tfp(LGSSM(jnp.zeros(1), *(ScaledIdentity(1.0),) * 5), 3)
    shifted = tfd(
        num_timesteps=3,
        transition_matrix=lambda t: operator(weights[t]),
        transition_noise=normal.transition_noise,
        observation_matrix=normal.observation_matrix,
        observation_noise=normal.observation_noise,
        initial_state_prior=normal.initial_state_prior,
        initial_step=4,
    )
    model = from_tfp(shifted)
    assert model.dynamics_weights.matrix[1:, 0, 0].tolist() == [5.0, 6.0]
    y = y[:3, :1]
    found = lgssm_smoother(model, y).log_likelihood
    assert np.allclose(found, shifted.log_prob(y), rtol=1e-4)


def test_diagonal_and_singular_covariances():
    zero = ScaledIdentity(0.0)
    noise = Diagonal(jnp.array([0.5, 1.0]))
    eye = jnp.eye(2)
    model = LGSSM(jnp.ones(2), eye, 0.5 * eye, zero, eye, noise)
    y = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    found = lgssm_smoother(model, y).log_likelihood
    assert np.allclose(to_tfp(model, 2).log_prob(y), found, rtol=1e-4)


class Surrogate:
    def to_lgssm(self):
        one = ScaledIdentity(1.0)
        return LGSSM(jnp.zeros(1), one, one, one, one, one), jnp.ones((4, 1))


def test_anything_with_to_lgssm_is_accepted():
    distribution, emissions = to_tfp(Surrogate())
    assert distribution.event_shape == emissions.shape


def test_what_cannot_be_read_is_refused():
    one = ScaledIdentity(1.0)
    model = LGSSM(jnp.zeros(1), one, one, one, one, one)
    with pytest.raises(TypeError, match="num_timesteps"):
        to_tfp(model)
    plain = to_tfp(model, 3)
    masked = plain.copy(mask=jnp.zeros(3, bool))
    with pytest.raises(ValueError, match="mask"):
        from_tfp(masked)
