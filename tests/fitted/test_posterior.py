"""Draws of parameters against a posterior integrated on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

SETTINGS = {"num_samples": 300, "num_chains": 2, "num_warmup": 150}
MODEL = elk.models.local_level().fix(**{"level.variance": 0.0})


@pytest.fixture(scope="module")
def series():
    return jnp.asarray(np.random.default_rng(0).normal(size=40) * 2, jnp.float32)


def exact(y, log_prior):
    """Mean and deviation of log v by quadrature: y ~ N(b, v), b unknown."""
    y = np.asarray(y, float)
    x = np.linspace(-2, 5, 4001)
    n, squares = len(y), np.sum((y - y.mean()) ** 2)
    log_density = -0.5 * (n - 1) * x - 0.5 * squares * np.exp(-x) + log_prior(x)
    weights = np.exp(log_density - log_density.max())
    mean = np.average(x, weights=weights)
    return mean, np.sqrt(np.average((x - mean) ** 2, weights=weights))


def check(draws, y, log_prior):
    x = np.log(np.asarray(draws.parameters["noise.variance"]))
    mean, deviation = exact(y, log_prior)
    # Some 200 independent draws: four standard errors of their mean.
    assert abs(x.mean() - mean) < 4 * deviation / np.sqrt(200)
    np.testing.assert_allclose(x.std(), deviation, rtol=0.25)


def test_draws_of_a_fit_are_those_of_its_posterior(series):
    fitted = elk.fit(MODEL, series, prior=True, standard_errors=False)
    draws = elk.sample_posterior(fitted, None, jax.random.key(0), **SETTINGS)
    assert draws.parameters["noise.variance"].shape == (2, 300)
    assert set(draws.parameters) == {"noise.variance"}
    prior = fitted.model.default_prior(series)
    centre, width = prior.centres["noise.variance"], prior.widths["noise.variance"]
    check(draws, series, lambda x: -0.5 * ((x - float(centre)) / width) ** 2)
    mode = np.log(fitted.parameters["noise.variance"])
    mean = np.log(draws.parameters["noise.variance"]).mean()
    assert abs(mean - mode) < 0.1
    assert draws.acceptance_rate.mean() > 0.5
    data = draws.inference_data()
    assert dict(data.posterior["noise.variance"].sizes) == {"chain": 2, "draw": 300}
    assert "diverging" in data.sample_stats


def test_a_prior_of_constrained_parameters_brings_its_jacobian(series):
    # Exponential in v: in x = log v its density is exp(-v) v.
    draws = elk.sample_posterior(
        MODEL,
        series,
        jax.random.key(1),
        constrained_prior=lambda p: -p["noise.variance"],
        **SETTINGS,
    )
    check(draws, series, lambda x: x - np.exp(x))


def test_what_cannot_be_sampled_is_said(series):
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="needs a key"):
        elk.sample_posterior(MODEL, series)
    with pytest.raises(ValueError, match="needs y"):
        elk.sample_posterior(MODEL, None, key)
    with pytest.raises(ValueError, match="not both"):
        elk.sample_posterior(
            MODEL, series, key, prior=lambda x: 0.0, constrained_prior=lambda p: 0.0
        )
    with pytest.raises(ValueError, match="a fit has its data"):
        elk.sample_posterior(elk.Observed(MODEL, series), series, key)
    with pytest.raises(ValueError, match="nothing is left to sample"):
        elk.sample_posterior(elk.Observed(MODEL.fix("noise.variance"), series), key=key)
    with pytest.raises(TypeError, match="got int"):
        elk.sample_posterior(3, series, key)
