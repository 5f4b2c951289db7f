import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle
from tests.kalman.test_filtering import BACKENDS, TIGHT, diagonal_model

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
