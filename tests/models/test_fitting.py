"""Fits against statsmodels, and what becomes of series that cannot be fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import statsmodels.api as sm
from statsmodels.tsa.statespace.structural import UnobservedComponents

import elk_ssm as elk
from elk_ssm.models.descent import Search, climb

LEVEL = elk.models.local_level()


def nile():
    return np.asarray(sm.datasets.nile.load_pandas().data["volume"], float)


@pytest.fixture(scope="module")
def theirs():
    model = UnobservedComponents(nile(), level="local level", use_exact_diffuse=True)
    return model, model.fit(disp=0)


def test_a_fit_does_not_depend_on_the_unit_of_the_series():
    """In float32, in which the square of a variance of 1e20 is inf."""
    y = jnp.asarray(nile(), jnp.float32)
    plain = elk.fit(LEVEL, y)
    for power in (-56, 40, 52):
        unit = 2.0**power
        fitted = elk.fit(LEVEL, unit * y)
        assert bool(fitted.converged)
        for found in ("parameters", "standard_errors"):
            for name, value in getattr(plain, found).items():
                seen = getattr(fitted, found)[name] / unit / unit
                np.testing.assert_allclose(seen, value, rtol=2e-3)


@pytest.mark.usefixtures("x64")
def test_the_optimum_is_that_of_statsmodels_or_better(theirs):
    model, found = theirs
    fitted = elk.fit(LEVEL, nile())
    assert bool(fitted.converged), fitted.message
    assert fitted.log_likelihood > found.llf - 1e-4
    values = fitted.parameters
    at = [float(values["noise.variance"]), float(values["level.variance"])]
    np.testing.assert_allclose(fitted.log_likelihood, model.loglike(at), rtol=1e-9)
    hessian = -model.hessian(np.array(at), transformed=True, method="approx")
    deviations = np.sqrt(np.diag(np.linalg.inv(hessian * 100)))
    errors = fitted.standard_errors
    ours = [float(errors[k]) for k in ("noise.variance", "level.variance")]
    np.testing.assert_allclose(ours, deviations, rtol=2e-3)
    np.testing.assert_allclose(fitted.aic, found.aic, rtol=1e-6)
    np.testing.assert_allclose(fitted.bic, found.bic, rtol=1e-6)


def test_many_series_at_once_are_fitted_as_each_by_itself():
    rng = np.random.default_rng(0)
    ys = np.cumsum(rng.normal(size=(4, 60)), axis=1) + rng.normal(size=(4, 60))
    ys[1, 5:9] = np.nan
    ys = jnp.asarray(ys, jnp.float32)
    together = jax.jit(jax.vmap(lambda y: elk.fit(LEVEL, y)))(ys)
    assert together.converged.all()
    for i in (0, 1):
        alone = elk.fit(LEVEL, ys[i])
        gap = alone.log_likelihood - together.log_likelihood[i]
        assert abs(gap) < 1e-2
    for name in LEVEL.parameters:
        assert np.isfinite(together.parameters[name]).all()


@pytest.mark.usefixtures("x64")
def test_starts_at_once_give_the_best_of_their_ends():
    y = np.asarray(sm.datasets.macrodata.load_pandas().data["infl"], float)
    model = LEVEL + elk.models.autoregressive(2)
    fitted = elk.fit(model, y, num_starts=4, key=jax.random.key(0))
    assert fitted.objectives.shape == (4,)
    np.testing.assert_allclose(fitted.objectives.max(), fitted.log_likelihood)
    assert fitted.log_likelihood > elk.fit(model, y).log_likelihood - 1e-6


@pytest.mark.usefixtures("x64")
def test_a_variance_that_goes_to_zero_has_no_standard_error():
    fitted = elk.fit(elk.models.local_linear_trend(), nile())
    assert bool(fitted.at_boundary["trend.slope_variance"])
    assert np.isnan(fitted.standard_errors["trend.slope_variance"])
    assert np.isfinite(fitted.standard_errors["noise.variance"])
    assert bool(fitted.converged)


@pytest.mark.usefixtures("x64")
def test_a_prior_is_added_and_what_is_fixed_stays():
    model = LEVEL.fix(**{"noise.variance": 1e4})
    plain = elk.fit(model, nile(), standard_errors=False)
    prior = model.default_prior(nile())
    held = elk.fit(model, nile(), prior=True, standard_errors=False)
    same = elk.fit(model, nile(), prior=lambda x: prior(x), standard_errors=False)
    assert held.log_likelihood < plain.log_likelihood
    np.testing.assert_allclose(held.objectives, same.objectives, rtol=1e-9)
    np.testing.assert_allclose(held.objectives[0], held.log_likelihood + held.log_prior)
    assert float(held.parameters["noise.variance"]) == 1e4


@pytest.mark.usefixtures("x64")
def test_any_transformation_of_optax_climbs():
    best = elk.fit(LEVEL, nile(), standard_errors=False).log_likelihood
    fitted = elk.fit(
        LEVEL, nile(), method=optax.adam(0.1), tol=1e-7, standard_errors=False
    )
    assert bool(fitted.converged)
    np.testing.assert_allclose(fitted.log_likelihood, best, atol=1e-4)
    short = elk.fit(LEVEL, nile(), max_iters=2, standard_errors=False)
    assert not bool(short.converged)
    assert "max_iters" in short.message


@pytest.mark.usefixtures("x64")
def test_steps_to_where_there_is_no_number_are_refused_and_counted():
    def cliff(x):
        # Its maximum lies at one, and beyond a quarter more it is no number.
        return jnp.sum(jnp.where(x < 1.25, -((x - 1) ** 2) * 40, jnp.nan))

    found = climb(cliff, jnp.array([0.6]), Search())
    assert int(found.status) == elk.Status.converged
    assert int(found.num_refused) > 0
    np.testing.assert_allclose(found.x, 1, atol=1e-5)
    np.testing.assert_allclose(found.information, 80, rtol=1e-4)
    nowhere = climb(cliff, jnp.array([2.0]), Search(information=False))
    assert int(nowhere.status) == elk.Status.nonfinite
    np.testing.assert_array_equal(nowhere.x, 2.0)


@pytest.mark.parametrize("tool", [None, optax.sgd(0.5)])
def test_a_search_that_ends_before_a_wall_has_not_converged(tool):
    """The objective rises up to where it is no number any more."""

    def cliff(x):
        return jnp.where(x[0] < 1, 2 * x[0], jnp.nan)

    found = climb(cliff, jnp.array([0.5]), Search(tool, information=False))
    assert int(found.status) != elk.Status.converged
    assert int(found.num_refused) > 10
    assert 0.999 < float(found.x[0]) < 1
    assert float(found.slope[0]) == 2


def test_series_that_cannot_be_fitted_are_said_to_be_none():
    y = np.arange(10.0)
    gap = np.full(10, np.nan)
    one = gap.copy()
    one[3] = 1.0
    weekly = LEVEL + elk.models.seasonal(52, harmonics=2)
    for model, series, options, message in (
        (LEVEL, np.full(10, 3.0), {}, "series is constant, 3 throughout"),
        (LEVEL, gap, {}, "no observed value: all of it is missing"),
        (LEVEL, one, {}, "has 1 observed value, and this model needs more than 2"),
        (LEVEL, y, {"mask": np.zeros(10, bool)}, "no observed value"),
        (LEVEL, np.append(y, np.inf), {}, "infinite at step 10"),
        (weekly, y, {}, "seasonal needs a series of at least 52 steps; got 10"),
        (LEVEL, y[:, None, None], {}, r"must be \(T,\) or \(T, 1\); got \(10, 1, 1\)"),
        (LEVEL, np.ones((10, 2)), {}, r"must be \(T,\) or \(T, 1\); got \(10, 2\)"),
        (LEVEL, y, {"times": np.arange(9.0)}, "times must have as many steps as the"),
        (LEVEL, y, {"num_starts": 2}, "needs a key"),
        (LEVEL, y, {"method": "newton"}, "method must be one of auto, lbfgs"),
        (LEVEL, y, {"start": "there"}, "start must be 'data', 'model' or values"),
        (LEVEL.fix(*LEVEL.parameters), y, {}, "every parameter is fixed"),
        (elk.models.regression(1), y, {}, r"needs inputs of shape \(10, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            elk.fit(model, series, **options)


def test_what_is_wrong_with_traced_values_leaves_parameters_finite():
    ys = jnp.stack([jnp.full(40, 3.0), jnp.full(40, jnp.nan), jnp.arange(40.0) % 3])
    found = jax.jit(jax.vmap(lambda y: elk.fit(LEVEL, y)))(ys)
    for values in found.parameters.values():
        assert np.isfinite(values).all()
    assert bool(found.converged[2])


def test_what_is_no_series_is_named():
    y, model = np.arange(6.0), elk.models.local_level()
    dates = np.arange("2000-01", "2000-07", dtype="M8[M]")
    for call, message in (
        (lambda: elk.fit(y, model), r"got ndarray. The order is fit\(model, y, inputs"),
        (lambda: elk.fit(model, np.array(["a", "b", "c"])), "numbers; got <U1"),
        (lambda: elk.fit(model, np.array([1, None, "c"], object)), "got object"),
        (lambda: elk.fit(model, y, times=dates), r"times must be .*t\[0\].*days"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match=r"tol must be .*; got '1e-3'"):
        elk.fit(model, y, tol="1e-3")
    with pytest.raises(TypeError, match=r"max_iters must be an integer; got 9\.0"):
        elk.fit(model, y, max_iters=9.0)
    with pytest.raises(ValueError, match="period must be at least 2; got '12'"):
        elk.models.seasonal("12")


@pytest.mark.parametrize("method", ["lbfgs", "em"])
def test_in_float32_the_unit_of_a_series_does_not_matter(method):
    """Squares of variances of 1e20 are no numbers of float32."""
    found = []
    for unit in (1.0, 1e-8, 1e8):
        y = jnp.asarray(nile() * unit, jnp.float32)
        fitted = elk.fit(LEVEL, y, method=method)
        assert bool(fitted.converged), fitted.message
        value = float(fitted.log_likelihood) + (len(y) - 1) * np.log(unit)
        errors = {k: float(v) / unit**2 for k, v in fitted.standard_errors.items()}
        found.append((value, errors))
    for value, errors in found:
        # The optimum in float64; expectation maximisation stops short of it.
        np.testing.assert_allclose(
            value, -633.4646, atol={"lbfgs": 0.01, "em": 0.1}[method]
        )
        for name, error in errors.items():
            np.testing.assert_allclose(error, found[0][1][name], rtol=0.15)
