import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle
from tests.kalman.test_filtering import BACKENDS, TIGHT, diagonal_model

import elk_ssm as elk
from elk_ssm.kalman.forecasting import lgssm_predict
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.linalg.structure import Diagonal, ScaledIdentity, to_dense


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_joint_gaussian_given_the_data(backend):
    data = oracle.with_gaps(oracle.random_data(T=8))
    known = data._replace(y=data.y.copy())
    known.y[5:] = np.nan
    means, cov, _ = oracle.posterior(known)
    with jax.enable_x64(True):
        model = oracle.as_model(data)
        found = lgssm_predict(model, data.y[:5], 3, data.u, backend=backend)
    for h, t in enumerate(range(5, 8)):
        H = data.H[t]
        emission = H @ means[t] + data.d[t] + data.D[t] @ data.u[t]
        spread = H @ cov[t, :, t] @ H.T + data.R[t]
        assert np.allclose(found.state_means[h], means[t], **TIGHT)
        assert np.allclose(found.state_covariances.matrix[h], cov[t, :, t], **TIGHT)
        assert np.allclose(found.emission_means[h], emission, **TIGHT)
        assert np.allclose(found.emission_covariances.matrix[h], spread, **TIGHT)


def test_diagonal_equals_dense():
    with jax.enable_x64(True):
        model, data = diagonal_model(T=6)
        dense = {
            k: to_dense(v) for k, v in model._asdict().items() if type(v) is Diagonal
        }
        small = lgssm_predict(model, data.y[:4], 2, data.u)
        large = lgssm_predict(model._replace(**dense), data.y[:4], 2, data.u)
    assert np.allclose(small.lower, large.lower, **TIGHT)
    assert np.allclose(small.upper, large.upper, **TIGHT)


ONE = ScaledIdentity(1.0)
WALK = LGSSM(jnp.zeros(1), ONE, ONE, ONE, ONE, ONE)


@pytest.mark.parametrize(("level", "reach"), [(0.95, 1.959964), (0.5, 0.674490)])
def test_the_band_is_a_normal_quantile(level, reach):
    found = lgssm_predict(WALK, jnp.ones((3, 1)), 2, level=level)
    deviation = np.sqrt(found.emission_covariances.diagonal)
    assert np.allclose(found.upper - found.emission_means, reach * deviation, rtol=1e-4)
    assert np.allclose(found.emission_means - found.lower, reach * deviation, rtol=1e-4)


def test_without_data_it_is_the_prior():
    found = lgssm_predict(WALK, jnp.zeros((0, 1)), 3)
    assert np.allclose(found.state_covariances.diagonal[:, 0], [1.0, 2.0, 3.0])


def test_a_masked_series_forecasts_like_one_with_nan():
    y = jnp.array([[1.0], [5.0], [2.0]])
    mask = jnp.array([True, False, True])
    masked = lgssm_predict(WALK, y, 1, mask=mask)
    gap = lgssm_predict(WALK, y.at[1].set(jnp.nan), 1)
    assert np.array_equal(masked.emission_means, gap.emission_means)


def test_no_horizon_is_refused():
    with pytest.raises(ValueError, match="horizon"):
        lgssm_predict(WALK, jnp.ones((3, 1)), 0)


def test_what_is_open_is_infinite_only_where_it_is_seen():
    """Two levels of which nobody has seen the second; one emission sees each alone."""
    model = elk.LGSSM(
        jnp.zeros(2),
        elk.Diffuse(),
        jnp.eye(2),
        0.5 * jnp.eye(2),
        jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, -2.0]]),
        jnp.eye(3),
    )
    gap = jnp.nan
    ahead = elk.lgssm_predict(model, jnp.array([[1.0, gap, gap], [2.0, gap, gap]]), 2)
    variances = np.diagonal(ahead.emission_covariances.to_dense(), axis1=1, axis2=2)
    np.testing.assert_array_equal(np.isinf(variances), [[False, True, True]] * 2)
    # The level after two values: 1 / (1 / 1.5 + 1) of noise 1, moved twice.
    np.testing.assert_allclose(variances[:, 0], 0.6 + np.array([1.5, 2.0]), rtol=1e-5)
    plain = elk.LGSSM(*model[:2], *[elk.Diagonal(jnp.ones(2))] * 4)
    ahead = elk.lgssm_predict(plain, jnp.array([[1.0, gap]]), 1)
    np.testing.assert_allclose(ahead.emission_covariances.diagonal, [[3, np.inf]])
