"""Smoothed components against statsmodels, and that they add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.tsa.statespace.structural import UnobservedComponents

import elk_ssm as elk


@pytest.mark.usefixtures("x64")
def test_components_are_those_of_statsmodels():
    data = sm.datasets.macrodata.load_pandas().data
    y, rate = np.log(data["realgdp"].to_numpy()), data["tbilrate"].to_numpy()
    y = y.copy()
    y[20:25] = np.nan
    model = UnobservedComponents(
        y,
        level="local linear trend",
        seasonal=4,
        exog=rate,
        mle_regression=False,
        use_exact_diffuse=True,
    )
    variances = [1e-5, 2e-5, 3e-6, 4e-6]
    theirs = model.smooth(variances)
    names = ("noise.variance", "trend.level_variance", "trend.slope_variance")
    ours = (
        elk.models.local_linear_trend()
        + elk.models.seasonal(4)
        + elk.models.regression()
    )
    ours = ours.replace(**dict(zip((*names, "seasonal.variance"), variances)))
    found = elk.decompose(elk.Observed(ours, y, rate))
    assert found.names == ("trend", "seasonal", "regression")
    for name, part in (("trend", theirs.level), ("seasonal", theirs.seasonal)):
        np.testing.assert_allclose(found[name].mean, part.smoothed, atol=1e-8)
        variance = found[name].variance
        np.testing.assert_allclose(variance, part.smoothed_cov, rtol=1e-6)
    beta = theirs.smoother_results.smoothed_state[-1, 0]
    np.testing.assert_allclose(found["regression"].mean, beta * rate, rtol=1e-6)
    signal = theirs.get_prediction(information_set="smoothed", signal_only=True)
    np.testing.assert_allclose(found.signal.mean, signal.predicted_mean, atol=1e-8)
    np.testing.assert_allclose(found.signal.variance, signal.var_pred_mean, rtol=1e-6)
    np.testing.assert_allclose(found.mean.sum(0), found.signal.mean, atol=1e-10)
    np.testing.assert_allclose(found.residual, y - found.signal.mean, atol=1e-10)
    assert np.isnan(found.residual[20:25]).all()


def test_float32_holds_a_series_far_from_zero():
    rng = np.random.default_rng(0)
    y = 340 + np.cumsum(rng.normal(size=80)) * 0.1 + rng.normal(size=80) * 0.05
    model = elk.models.local_level() + elk.models.seasonal(4)
    model = model.replace(
        **{"level.variance": 0.01, "noise.variance": 0.0025, "seasonal.variance": 1e-4}
    )
    single = elk.decompose(elk.Observed(model, jnp.asarray(y, jnp.float32)))
    with jax.enable_x64(True):
        double = elk.decompose(elk.Observed(model.astype(jnp.float64), y))
    np.testing.assert_allclose(single.mean, double.mean, atol=2e-3)
    np.testing.assert_allclose(single.variance, double.variance, rtol=2e-3)


@pytest.mark.usefixtures("x64")
def test_every_dimension_of_matrices_is_a_component():
    rng = np.random.default_rng(1)
    F, H = np.array([[0.9, 0.2], [0.0, 0.5]]), np.array([[1.0, 2.0], [0.5, 0.0]])
    bias = np.array([3.0, -1.0])
    model = elk.LGSSM(
        jnp.zeros(2), jnp.eye(2), F, jnp.eye(2), H, jnp.eye(2), emission_bias=bias
    )
    y = rng.normal(size=(6, 2))
    found = elk.decompose(elk.Observed(model, y))
    assert found.names == ("state 0", "state 1", "offset")
    assert found.mean.shape == (3, 6, 2)
    # Dense, in NumPy: prior covariance of all states, and its conditioning on y.
    T, blocks = 6, [np.eye(2)]
    for _ in range(T - 1):
        blocks.append(F @ blocks[-1] @ F.T + np.eye(2))
    prior = np.zeros((T, 2, T, 2))
    for s in range(T):
        for t in range(s, T):
            prior[t, :, s] = np.linalg.matrix_power(F, t - s) @ blocks[s]
            prior[s, :, t] = prior[t, :, s].T
    prior, wide = prior.reshape(2 * T, 2 * T), np.kron(np.eye(T), H)
    gain = prior @ wide.T @ np.linalg.inv(wide @ prior @ wide.T + np.eye(2 * T))
    states = (gain @ (y - bias).ravel()).reshape(T, 2)
    cov = (prior - gain @ wide @ prior).reshape(T, 2, T, 2)
    for i in range(2):
        np.testing.assert_allclose(
            found.mean[i], states[:, i : i + 1] * H[:, i], atol=1e-9
        )
        variance = np.array([cov[t, i, t, i] for t in range(T)])
        expected = variance[:, None] * H[:, i] ** 2
        np.testing.assert_allclose(found.variance[i], expected, atol=1e-9)
    spread = np.array([np.diag(H @ cov[t, :, t] @ H.T) for t in range(T)])
    np.testing.assert_allclose(found.signal.variance, spread, atol=1e-9)
    np.testing.assert_allclose(found.mean.sum(0), found.signal.mean, atol=1e-12)


def test_what_the_data_leave_open_is_open():
    model = elk.models.local_level() + elk.models.regression()
    found = elk.decompose(elk.Observed(model, jnp.ones(5), jnp.zeros((5, 1))))
    # A column of zeros says nothing of its coefficient, which does not matter.
    np.testing.assert_array_equal(found["regression"].variance, 0)
    assert np.isfinite(found["level"].variance).all()


def test_a_component_is_found_by_its_name():
    found = elk.decompose(elk.Observed(elk.models.local_level(), jnp.ones(5)))
    with pytest.raises(KeyError, match="no component 'trend'; there are level"):
        found["trend"]
    again = jax.jit(lambda x: x)(found)
    assert again.names == ("level",)
