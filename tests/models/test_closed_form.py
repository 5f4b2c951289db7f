"""Expectation maximisation of models: it rises, and ends where the slope is zero."""

import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm

import elk_ssm as elk
from elk_ssm.models.closed_form import fit_variances

pytestmark = pytest.mark.usefixtures("x64")


def series():
    rng = np.random.default_rng(0)
    y = np.cumsum(rng.normal(size=120)) + 2 * rng.normal(size=120)
    y[5:9] = np.nan
    return y


def test_it_ends_at_the_optimum_of_gradients():
    y = np.asarray(sm.datasets.nile.load_pandas().data["volume"], float)
    model = elk.models.local_level()
    ours = elk.fit(model, y, method="em", max_iters=3000, tol=1e-12)
    best = elk.fit(model, y)
    np.testing.assert_allclose(ours.log_likelihood, best.log_likelihood, atol=1e-5)
    for name, value in best.parameters.items():
        np.testing.assert_allclose(ours.parameters[name], value, rtol=0.02)
        np.testing.assert_allclose(
            ours.standard_errors[name], best.standard_errors[name], rtol=0.05
        )


def test_shared_and_fixed_variances_rise_at_every_iteration():
    model = elk.models.local_level() + elk.models.seasonal(4, harmonics=2)
    model = model + elk.models.autoregressive(1)
    model = model.fix("autoregressive.ar", **{"autoregressive.variance": 0.3})
    y = jnp.asarray(series())[:, None]
    found, path = fit_variances(model.start(y), y, None, None, (60, None))
    n = int(path.num_iters)
    path = np.asarray(path.log_likelihoods)[: n + 1]
    assert (np.diff(path) >= 0).all()
    assert path[-1] > path[0] + 1
    assert float(found.parameters["autoregressive.variance"]) == 0.3
    np.testing.assert_allclose(found.log_likelihood(y), path[-1], rtol=1e-9)
    # All three states of the season have the one variance that it has.
    Q = found.lgssm().dynamics_covariance.variances()
    np.testing.assert_allclose(Q[1:4], found.parameters["seasonal.variance"])
    assert float(found.parameters["seasonal.variance"]) != float(
        model.start(y).parameters["seasonal.variance"]
    )


def test_an_lgssm_is_fitted_by_expectation_maximisation():
    one = elk.ScaledIdentity(1.0)
    model = elk.LGSSM(jnp.zeros(1), elk.Diffuse(), one, one, jnp.ones((1, 1)), one)
    y = jnp.asarray(series())[:, None]
    held = ("dynamics_weights", "emission_weights")
    ours = elk.fit(model, y, fixed=held, num_iters=20)
    theirs = elk.lgssm_em(model, y, fixed=held, num_iters=20)
    np.testing.assert_array_equal(ours.log_likelihoods, theirs.log_likelihoods)
    with pytest.raises(ValueError, match="fitted by method='em'; got 'lbfgs'"):
        elk.fit(model, y, method="lbfgs")


def test_what_has_no_closed_form_is_named():
    y, level = series(), elk.models.local_level()
    cycle = level + elk.models.cycle(4, 20)
    for model, options, message in (
        (elk.models.autoregressive(1), {}, "form for autoregressive.variance, which"),
        (cycle, {}, "no closed form for cycle.variance"),
        (level, {"prior": True}, "method='em' takes no prior"),
        (level, {"times": np.arange(120.0)}, "takes no times="),
        (elk.models.poisson_counts(), {}, "linear models with Gaussian noise"),
    ):
        with pytest.raises(ValueError, match=message):
            elk.fit(model, np.abs(np.round(y)), method="em", **options)
