import jax
import jax.numpy as jnp
import numpy as np
from tests.kalman import oracle
from tests.kalman.test_filtering import TIGHT, diagonal_model

from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.sampling import lgssm_sample
from elk_ssm.linalg.structure import ScaledIdentity


def test_moments_are_those_of_the_posterior():
    data = oracle.with_gaps(oracle.random_data(T=5, D=2))
    model = jax.tree.map(jnp.float32, oracle.as_model(data))
    y, u = jnp.float32(data.y), jnp.float32(data.u)
    count = 20_000
    samples = lgssm_sample(model, jax.random.key(0), y, u, num_samples=count)
    mean, cov, _ = oracle.posterior(data)
    root = np.linalg.cholesky(cov.reshape(mean.size, mean.size))
    white = np.linalg.solve(root, (np.asarray(samples) - mean).reshape(count, -1).T)
    # Five standard errors of a mean and of a variance.
    assert np.abs(white.mean(1)).max() < 5 / np.sqrt(count)
    assert np.abs(np.cov(white) - np.eye(mean.size)).max() < 5 * np.sqrt(2 / count)


def test_both_backends_draw_the_same_trajectory():
    data = oracle.with_gaps(oracle.random_data())
    with jax.enable_x64(True):
        key, model = jax.random.key(1), oracle.as_model(data)
        draw = lambda b: lgssm_sample(model, key, data.y, data.u, backend=b)  # noqa: E731
        assert np.allclose(draw("sequential"), draw("associative"), **TIGHT)


def test_a_diagonal_model_draws_what_its_dense_form_draws():
    with jax.enable_x64(True):
        key, (model, data) = jax.random.key(1), diagonal_model()
        small = lgssm_sample(model, key, data.y, data.u)
        dense = model._replace(
            dynamics_weights=jax.vmap(jnp.diag)(model.dynamics_weights.diagonal)
        )
        large = lgssm_sample(dense, key, data.y, data.u)
    assert np.allclose(small, large, **TIGHT)


def test_what_is_observed_exactly_is_drawn_exactly():
    one, zero = ScaledIdentity(1.0), ScaledIdentity(0.0)
    model = LGSSM(jnp.zeros(2), jnp.eye(2), 0.5 * jnp.eye(2), one, one, zero)
    y = jnp.array([[1.0, 2.0], [jnp.nan, 3.0], [4.0, 5.0]])
    samples = lgssm_sample(model, jax.random.key(0), y, num_samples=3)
    seen = ~np.isnan(y)
    # A variance of zero is met up to one rounding, so its square root to sqrt(eps).
    assert np.allclose(samples[:, seen], np.broadcast_to(y[seen], (3, 5)), atol=1e-3)
    assert np.std(samples[:, 1, 0]) > 0.1
