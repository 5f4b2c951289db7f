"""Innovations and their tests against statsmodels."""

import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.stattools import jarque_bera
from statsmodels.tsa.statespace.structural import UnobservedComponents
from statsmodels.tsa.statespace.varmax import VARMAX
from statsmodels.tsa.stattools import breakvar_heteroskedasticity_test

import elk_ssm as elk


def both(gap=None):
    """The same model at the same parameters: theirs smoothed, ours observed."""
    data = sm.datasets.macrodata.load_pandas().data
    y = np.log(data["realgdp"].to_numpy())
    if gap is not None:
        y[gap] = np.nan
    model = UnobservedComponents(
        y, level="local linear trend", seasonal=4, use_exact_diffuse=True
    )
    # It holds a filter for settled by an absolute tolerance, too wide for variances
    # as small as these.
    model.ssm.tolerance = 0
    values = [1e-5, 2e-5, 3e-6, 4e-6]
    names = ("noise.variance", "trend.level_variance", "trend.slope_variance")
    ours = elk.models.local_linear_trend() + elk.models.seasonal(4)
    ours = ours.replace(**dict(zip((*names, "seasonal.variance"), values)))
    return model.smooth(values), elk.Observed(ours, y)


@pytest.mark.usefixtures("x64")
def test_innovations_and_tests_are_those_of_statsmodels():
    theirs, ours = both()
    found, filtered = elk.innovations(ours), theirs.filter_results
    d = theirs.nobs_diffuse
    assert np.isnan(found.standardised[:d]).all()
    expected = filtered.standardized_forecasts_error[0, d:]
    np.testing.assert_allclose(found.standardised[d:], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        found.errors[d:], filtered.forecasts_error[0, d:], atol=1e-9
    )
    variances = filtered.forecasts_error_cov[0, 0, d:]
    np.testing.assert_allclose(found.variances[d:], variances, rtol=1e-6)
    tests = elk.diagnostics(ours, lags=12)
    box = theirs.test_serial_correlation("ljungbox", lags=12)[0]
    np.testing.assert_allclose(jnp.stack(tests.serial_correlation), box, rtol=1e-6)
    bera, p_value, skewness, kurtosis = theirs.test_normality("jarquebera")[0]
    np.testing.assert_allclose(tests.normality, [bera, p_value], rtol=1e-6)
    np.testing.assert_allclose(tests.skewness, skewness, rtol=1e-6)
    np.testing.assert_allclose(tests.kurtosis, kurtosis, rtol=1e-6)
    ratio = theirs.test_heteroskedasticity("breakvar")[0]
    np.testing.assert_allclose(tests.heteroskedasticity, ratio, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_gaps_stay_gaps():
    theirs, ours = both(gap=slice(40, 52))
    found, d = elk.innovations(ours), theirs.nobs_diffuse
    # It gives zeros for what is missing, and would count them in its tests.
    expected = theirs.filter_results.standardized_forecasts_error[0].copy()
    expected[[*range(d), *range(40, 52)]] = np.nan
    np.testing.assert_allclose(found.standardised, expected, atol=1e-7)
    assert np.isnan(found.variances[40:52]).all()
    tests, seen = found.tests(), expected[np.isfinite(expected)]
    np.testing.assert_allclose(tests.normality, jarque_bera(seen)[:2], rtol=1e-6)
    ratio = breakvar_heteroskedasticity_test(expected[d:], subset_length=66)
    np.testing.assert_allclose(tests.heteroskedasticity, ratio, rtol=1e-6)
    assert np.isfinite(tests.serial_correlation.statistic).all()
    assert int(tests.num_observed) == len(seen)


@pytest.mark.usefixtures("x64")
def test_several_emissions_are_made_white_together():
    data = sm.datasets.macrodata.load_pandas().data
    y = np.diff(np.log(data[["realgdp", "realcons"]].to_numpy()), axis=0) * 100
    y[10, 0] = np.nan
    model = VARMAX(y, order=(1, 0), trend="n")
    values = np.array([0.2, 0.1, 0.1, 0.3, 0.7, 0.2, 0.5])
    theirs = model.smooth(values)
    F, L = values[:4].reshape(2, 2), np.array([[0.7, 0.0], [0.2, 0.5]])
    ours = elk.LGSSM(
        jnp.zeros(2), elk.Stationary(), F, L @ L.T, jnp.eye(2), jnp.zeros((2, 2))
    )
    found = elk.innovations(elk.Observed(ours, y))
    expected = theirs.filter_results.standardized_forecasts_error.T
    np.testing.assert_allclose(found.standardised[:10], expected[:10], atol=1e-6)
    np.testing.assert_allclose(found.standardised[12:], expected[12:], atol=1e-6)
    assert np.isnan(found.errors[10, 0])
    assert np.isfinite(found.errors[10, 1])
    np.testing.assert_allclose(
        found.standardised[10, 1],
        found.errors[10, 1] / np.sqrt(found.variances[10, 1]),
    )
    assert found.tests(4).serial_correlation.statistic.shape == (4, 2)


def test_white_noise_passes_and_a_walk_does_not():
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.normal(size=300), jnp.float32)
    still = elk.models.local_level().replace(
        **{"level.variance": 0.0, "noise.variance": 1.0}
    )
    good = elk.diagnostics(elk.Observed(still, noise))
    bad = elk.diagnostics(elk.Observed(still, jnp.cumsum(noise)))
    assert good.serial_correlation.p_value[-1] > 0.01
    assert bad.serial_correlation.p_value[-1] < 1e-6
    with pytest.raises(ValueError, match="lags must be from 1 to 299"):
        elk.diagnostics(elk.Observed(still, noise), lags=300)
