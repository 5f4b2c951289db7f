"""Forecasts against statsmodels, against NumPy, and against the model run longer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import norm
from statsmodels.tsa.statespace.structural import UnobservedComponents

import elk_ssm as elk

LEVEL = elk.models.local_level()


def nile():
    return np.array(sm.datasets.nile.load_pandas().data["volume"], float)


@pytest.mark.usefixtures("x64")
def test_a_forecast_of_the_nile_is_that_of_statsmodels():
    model = UnobservedComponents(nile(), level="local level", use_exact_diffuse=True)
    theirs = model.smooth([15099.0, 1469.1]).get_forecast(12)
    ours = LEVEL.replace(**{"noise.variance": 15099.0, "level.variance": 1469.1})
    found = elk.forecast(elk.Observed(ours, nile()), 12)
    np.testing.assert_allclose(found.mean, theirs.predicted_mean, rtol=1e-9)
    np.testing.assert_allclose(found.variance, theirs.var_pred_mean, rtol=1e-9)
    band = theirs.conf_int(alpha=0.05)
    np.testing.assert_allclose(found.lower, band[:, 0], rtol=1e-9)
    np.testing.assert_allclose(found.upper, band[:, 1], rtol=1e-9)
    wide = elk.forecast(elk.Observed(ours, nile()), 12, level=0.99)
    reach = (wide.upper - wide.lower) / (found.upper - found.lower)
    np.testing.assert_allclose(reach, norm.ppf(0.995) / norm.ppf(0.975), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_a_forecast_with_a_seasonal_and_inputs_is_that_of_statsmodels():
    data = sm.datasets.macrodata.load_pandas().data
    y, rate = np.log(data["realgdp"].to_numpy()), data["tbilrate"].to_numpy()
    y = y.copy()
    y[20:25] = np.nan
    known, ahead = slice(0, 190), slice(190, 203)
    model = UnobservedComponents(
        y[known],
        level="local linear trend",
        seasonal=4,
        exog=rate[known],
        mle_regression=False,
        use_exact_diffuse=True,
    )
    variances = [1e-5, 2e-5, 3e-6, 4e-6]
    theirs = model.smooth(variances).get_forecast(13, exog=rate[ahead, None])
    names = ("noise.variance", "trend.level_variance", "trend.slope_variance")
    ours = (
        elk.models.local_linear_trend()
        + elk.models.seasonal(4)
        + elk.models.regression(name="rate")
    )
    ours = ours.replace(**dict(zip((*names, "seasonal.variance"), variances)))
    seen = elk.Observed(ours, y[known], rate[known])
    found = elk.forecast(seen, 13, rate[ahead])
    np.testing.assert_allclose(found.mean, theirs.predicted_mean, rtol=1e-6)
    np.testing.assert_allclose(found.variance, theirs.var_pred_mean, rtol=1e-6)
    with pytest.raises(ValueError, match=r"inputs=, \(13, 1\).* for rate"):
        elk.forecast(seen, 13)
    with pytest.raises(ValueError, match=r"\(13, 1\) for rate; got shape \(12, 1\)"):
        elk.forecast(seen, 13, rate[ahead][:12])


@pytest.mark.usefixtures("x64")
def test_a_forecast_at_times_is_that_of_steps_between_them():
    rng = np.random.default_rng(0)
    y = np.cumsum(rng.normal(size=40)) + rng.normal(size=40)
    kept = np.array([0, 1, 4, 6, 7, 11, 20, 31, 33, 39])
    holes = np.full(40, np.nan)
    holes[kept] = y[kept]
    every = elk.forecast(elk.Observed(LEVEL, holes), 9)
    some = elk.Observed(LEVEL, y[kept], times=kept)
    found = elk.forecast(some, 3, times=[41, 42, 48])
    at = np.array([1, 2, 8])
    np.testing.assert_allclose(found.mean, every.mean[at], rtol=1e-9)
    np.testing.assert_allclose(found.variance, every.variance[at], rtol=1e-9)
    with pytest.raises(ValueError, match=r"needs times=, \(3,\)"):
        elk.forecast(some, 3)
    with pytest.raises(ValueError, match="comes 38"):
        elk.forecast(some, 2, times=[38, 40])
    with pytest.raises(ValueError, match="without times"):
        elk.forecast(elk.Observed(LEVEL, y), 2, times=[41, 42])


@pytest.mark.usefixtures("x64")
def test_a_fit_remembers_its_mask_and_its_times():
    y = nile()
    y[60:70] = np.nan
    mask, filled = ~np.isnan(y), np.where(np.isnan(y), 1e6, y)
    times = 1871.5 + np.arange(100.0)
    holes = elk.fit(LEVEL, y, standard_errors=False)
    masked = elk.fit(LEVEL, filled, mask=mask, times=times, standard_errors=False)
    np.testing.assert_array_equal(masked.times, times)
    ours = elk.forecast(masked, 5, times=times[-1] + np.arange(1.0, 6.0))
    plain = elk.forecast(holes, 5)
    np.testing.assert_allclose(ours.mean, plain.mean, rtol=1e-6)
    np.testing.assert_allclose(ours.variance, plain.variance, rtol=1e-4)


def test_a_model_as_matrices_has_several_emissions_and_inputs():
    half, one = elk.ScaledIdentity(0.5), elk.ScaledIdentity(1.0)
    model = elk.LGSSM(
        jnp.zeros(2), one, half, one, one, half, emission_input_weights=jnp.eye(2)
    )
    y = jax.random.normal(jax.random.key(0), (20, 2))
    seen = elk.Observed(model, y, jnp.zeros((20, 2)))
    found = elk.forecast(seen, 4, jnp.ones((4, 2)))
    plain = elk.lgssm_predict(model._replace(emission_input_weights=None), y, 4)
    np.testing.assert_allclose(found.mean, plain.emission_means + 1, rtol=1e-5)
    assert found.lower.shape == (4, 2)
    with pytest.raises(ValueError, match="for this LGSSM"):
        elk.forecast(seen, 4)


def test_a_forecast_may_be_traced():
    y = jnp.asarray(nile(), jnp.float32)

    @jax.jit
    def widths(y, level):
        found = elk.forecast(elk.Observed(LEVEL, y), 3, level=level)
        return found.upper - found.lower

    plain = elk.forecast(elk.Observed(LEVEL, y), 3, level=0.8)
    np.testing.assert_allclose(widths(y, 0.8), plain.upper - plain.lower, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((0,), {}, "steps must be a positive integer; got 0"),
        ((2.5,), {}, "steps must be a positive integer; got 2.5"),
        ((2,), {"level": 1.0}, "between 0 and 1"),
        ((2, np.ones((2, 1))), {}, "takes none"),
    ],
)
def test_what_cannot_be_forecast_is_said(arguments, options, said):
    with pytest.raises(ValueError, match=said):
        elk.forecast(elk.Observed(LEVEL, nile()), *arguments, **options)


def test_what_is_no_linear_gaussian_fit_is_named():
    with pytest.raises(TypeError, match=r"forecast takes what elk.fit .*got Model"):
        elk.forecast(LEVEL, 3)
    with pytest.raises(TypeError, match="got one of int"):
        elk.decompose(elk.Observed(0, nile()))
