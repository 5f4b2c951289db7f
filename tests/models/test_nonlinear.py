"""Linear models seen by other emissions, against GLMs, quadrature and recovery."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm

import elk_ssm as elk
from elk_ssm.models import Parameter
from elk_ssm.models.bijections import positive
from elk_ssm.models.emissions import KINDS

pytestmark = pytest.mark.usefixtures("x64")


def counts(steps=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(np.exp(1 + 0.2 * np.cumsum(rng.normal(size=steps)))) * 1.0


def test_without_noise_of_the_states_it_is_poisson_regression():
    rng = np.random.default_rng(1)
    X = np.column_stack([np.ones(50), rng.normal(size=50), np.arange(50) / 10])
    y = rng.poisson(np.exp(X @ [0.3, 0.5, 0.2])) * 1.0
    theirs = sm.GLM(y, X, family=sm.families.Poisson()).fit()
    model = elk.models.regression(3).with_emission("poisson", mean=False, width=1e4)
    found = model.smooth(y, X)
    assert bool(found.converged)
    # All steps have the same coefficients, those of the regression, and their errors.
    np.testing.assert_allclose(found.means[0], theirs.params, rtol=1e-5)
    np.testing.assert_allclose(found.means[-1], found.means[0], rtol=1e-9)
    errors = np.sqrt(np.diagonal(found.covariances[-1]))
    np.testing.assert_allclose(errors, theirs.bse, rtol=1e-4)


def laplace(log_variance, y, model):
    """-log p(y) of a Poisson level, by dense matrices and SciPy."""
    steps, ssm = len(y), model.nonlinear(y)
    mean, P = float(ssm.initial_mean[0]), float(ssm.initial_covariance.array[0, 0])
    rows = np.minimum.outer(np.arange(steps), np.arange(steps))
    K = P + np.exp(log_variance) * rows
    inverse = np.linalg.inv(K)

    def loss(h):
        away = h - mean
        data = y @ h - np.exp(h).sum() - scipy.special.gammaln(y + 1).sum()
        return 0.5 * away @ inverse @ away - data

    def slope(h):
        return inverse @ (h - mean) - y + np.exp(h)

    def curvature(h):
        return inverse + np.diag(np.exp(h))

    begin = np.full(steps, mean)
    h = scipy.optimize.minimize(
        loss, begin, jac=slope, hess=curvature, method="trust-exact"
    ).x
    half = 0.5 * np.linalg.slogdet(curvature(h) @ K)[1]
    return loss(h) + half


def test_a_fit_has_the_maximum_of_laplaces_likelihood():
    y, model = counts(), elk.models.poisson_counts()
    fitted = elk.fit(model, y)
    assert bool(fitted.converged), fitted.message
    theirs = scipy.optimize.minimize_scalar(
        laplace, (-4.0, -2.0), args=(y, model), tol=1e-9
    )
    np.testing.assert_allclose(fitted.log_likelihood, -theirs.fun, rtol=1e-8)
    variance = float(fitted.parameters["level.variance"])
    np.testing.assert_allclose(np.log(variance), theirs.x, atol=1e-3)
    e = 1e-3
    around = [laplace(theirs.x + d, y, model) for d in (-e, 0, e)]
    error = variance / np.sqrt((around[0] - 2 * around[1] + around[2]) / e**2)
    ours = fitted.standard_errors["level.variance"]
    np.testing.assert_allclose(ours, error, rtol=2e-2)


def test_the_parameters_of_volatility_are_recovered():
    steps, key = 1500, jax.random.key(2)
    true = elk.models.stochastic_volatility().replace(
        **{"autoregressive.variance": 0.06, "emission.mean": -1.0}
    )
    y = elk.sample(true.nonlinear(), key, steps).emissions
    fitted = elk.fit(elk.models.stochastic_volatility(), y)
    assert bool(fitted.converged), fitted.message
    for name, value in true.parameters.items():
        away = np.abs(fitted.parameters[name] - value)
        assert (away < 4 * fitted.standard_errors[name]).all(), name


def test_seasons_trends_and_gaps_have_singular_noise():
    y = counts(48)
    y[[5, 20, 21]] = np.nan
    model = elk.models.local_linear_trend() + elk.models.seasonal(4)
    model = model.with_emission("negative_binomial")
    assert model.state_names[0] == "trend.level"
    assert model.slices["seasonal"] == slice(2, 5)
    fitted = elk.fit(model.fix(**{"trend.slope_variance": 0.0}), y)
    assert bool(fitted.converged), fitted.message
    assert float(fitted.parameters["trend.slope_variance"]) == 0
    assert np.isfinite(fitted.log_likelihood)
    # The slope does not move, as it has no noise.
    found = fitted.model.smooth(y)
    np.testing.assert_allclose(found.means[:, 1], found.means[0, 1], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "values", "theirs"),
    [
        ("poisson", {}, lambda h: scipy.stats.poisson(np.exp(h))),
        (
            "negative_binomial",
            {"dispersion": 0.3},
            lambda h: scipy.stats.nbinom(1 / 0.3, 1 / (1 + 0.3 * np.exp(h))),
        ),
        ("bernoulli", {}, lambda h: scipy.stats.bernoulli(1 / (1 + np.exp(-h)))),
        (
            "student_t",
            {"scale": 0.7, "degrees": 4.0},
            lambda h: scipy.stats.t(4, loc=h, scale=0.7),
        ),
        ("volatility", {}, lambda h: scipy.stats.norm(0, np.exp(h / 2))),
    ],
)
def test_emissions_are_the_distributions_of_scipy(name, values, theirs):
    kind, h = KINDS[name](1), np.array([0.4])
    values = {k: jnp.asarray(v) for k, v in values.items()}
    other = theirs(h)
    for y in (0.0, 1.0):
        ours = kind.log_density(values, jnp.asarray(h), jnp.array([y]))
        log = other.logpmf if hasattr(other, "pmf") else other.logpdf
        np.testing.assert_allclose(ours, log(y)[0], rtol=1e-9)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(lambda key: kind.draw(values, key, jnp.asarray(h)))(keys)
    spread = float(other.std()[0])
    assert abs(draws.mean() - other.mean()[0]) < 4 * spread / 4000**0.5
    np.testing.assert_allclose(draws.std(), spread, rtol=0.25)


def test_without_dispersion_counts_are_poisson():
    kind, h, y = KINDS["negative_binomial"](1), jnp.array([0.4]), jnp.array([7.0])
    poisson = KINDS["poisson"](1).log_density({}, h, y)
    ours = kind.log_density({"dispersion": jnp.array(1e-14)}, h, y)
    np.testing.assert_allclose(ours, poisson, rtol=1e-10)
    # Either side of where one formula takes over from the other.
    for size in (29.9, 30.1):
        ours = kind.log_density({"dispersion": jnp.array(1 / size)}, h, y)
        theirs = scipy.stats.nbinom(size, size / (size + np.exp(0.4))).logpmf(7)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_a_density_of_ones_own_has_parameters_of_its_own():
    def log_density(h, y, parameters):
        away = (y - h) ** 2 / parameters["variance"]
        return jnp.sum(-0.5 * (away + jnp.log(2 * jnp.pi * parameters["variance"])))

    y = np.cumsum(np.random.default_rng(3).normal(size=40))
    y = y + np.random.default_rng(4).normal(size=40)
    own = {"variance": Parameter(1.0, positive)}
    level = elk.models.local_level()
    model = level.with_emission(log_density, parameters=own, width=1e3)
    fitted, plain = elk.fit(model, y), elk.fit(level, y)
    # Laplace is exact here, and the prior so wide that it is nearly diffuse.
    for ours, theirs in (
        ("emission.variance", "noise.variance"),
        ("level.variance", "level.variance"),
    ):
        np.testing.assert_allclose(
            fitted.parameters[ours], plain.parameters[theirs], rtol=1e-3
        )


def test_the_face_is_that_of_a_linear_model():
    model = elk.models.autoregressive(2).with_emission("student_t")
    assert model.free[-3:] == ("emission.mean", "emission.scale", "emission.degrees")
    held = model.fix(**{"emission.degrees": 4.0})
    assert "emission.degrees" not in held.unconstrained
    assert held.release("emission.degrees").free == model.free
    back = model.with_unconstrained(model.unconstrained)
    for name, value in model.parameters.items():
        np.testing.assert_allclose(back.parameters[name], value, rtol=1e-9, atol=1e-9)
    prior = model.default_prior(np.arange(20.0))
    assert np.isfinite(prior(model.unconstrained))
    assert model.nonlinear().state_dim == 2


def test_mistakes_are_said():
    level = elk.models.local_level()
    for make, message in (
        (lambda: level.with_emission("gamma"), "emission must be one of poisson"),
        (lambda: level.with_emission("poisson", draw=max), "for log density functions"),
        (lambda: level.with_emission("poisson", width=0), "width must be a positive"),
        (lambda: elk.models.bernoulli("walk"), "latent must be one of level"),
        (lambda: elk.fit(elk.models.bernoulli(), np.arange(9.0)), "must be 0 or 1"),
        (lambda: elk.fit(elk.models.poisson_counts(), np.arange(9.0) / 2), "integers"),
        (lambda: elk.fit(elk.models.poisson_counts(), np.arange(9.0) - 2), "got -2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
