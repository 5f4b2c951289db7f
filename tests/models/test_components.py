"""Sums of components against statsmodels, SciPy and steps without data."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import statsmodels.api as sm
from statsmodels.tsa.statespace.sarimax import SARIMAX
from statsmodels.tsa.statespace.structural import UnobservedComponents

import elk_ssm as elk
from elk_ssm.models.bijections import (
    between,
    fraction,
    invertible,
    positive,
    stationary,
)

parse = elk.models.parse
TREND = ("trend.level_variance", "trend.slope_variance")
AR = ("autoregressive.variance", "autoregressive.ar")


def macro(name):
    return np.asarray(sm.datasets.macrodata.load_pandas().data[name], float)


def nile():
    return np.asarray(sm.datasets.nile.load_pandas().data["volume"], float)


def with_gaps(y):
    y = y.copy()
    y[[3, 40, 41]] = np.nan
    return y


# Our sum, theirs, the series, and our parameters in the order of theirs.
CASES = {
    "level": ("level", {"level": "local level"}, nile, ("level.variance",)),
    "trend": (
        "level + trend",
        {"level": "local linear trend"},
        lambda: 100 * np.log(macro("realgdp")),
        TREND,
    ),
    "harmonics": (
        "level + seasonal(4, harmonics=2)",
        {"level": "local level", "freq_seasonal": [{"period": 4, "harmonics": 2}]},
        lambda: macro("unemp"),
        ("level.variance", "seasonal.variance"),
    ),
    "dummies": (
        "level + seasonal(4)",
        {"level": "local level", "seasonal": 4},
        lambda: macro("unemp"),
        ("level.variance", "seasonal.variance"),
    ),
    "cycle": (
        "level + cycle(6, 48, start='diffuse')",
        {
            "level": "local level",
            "cycle": True,
            "stochastic_cycle": True,
            "damped_cycle": True,
        },
        nile,
        ("level.variance", "cycle.variance", "cycle.period", "cycle.damping"),
    ),
    "autoregressive": (
        "level + autoregressive(2)",
        {"level": "local level", "autoregressive": 2},
        lambda: macro("infl"),
        ("level.variance", *AR),
    ),
    "regression": (
        "level + regression(2)",
        {"level": "local level", "mle_regression": False},
        lambda: macro("infl"),
        ("level.variance",),
    ),
}


def in_their_order(parameters, names):
    found = []
    for name in ("noise.variance", *names):
        value = np.atleast_1d(np.asarray(parameters[name], float))
        found.extend(2 * np.pi / value if name.endswith("period") else value)
    return np.array(found)


def exogenous(kind):
    if kind != "regression":
        return None
    return np.stack([macro("tbilrate"), macro("unemp")], axis=1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", CASES)
def test_the_likelihood_is_the_exact_diffuse_one_of_statsmodels(kind):
    text, theirs, series, names = CASES[kind]
    y, x = with_gaps(series()), exogenous(kind)
    model = parse(text).start(y)
    if kind == "autoregressive":
        model = model.replace(**{"autoregressive.ar": [0.5, -0.3]})
    reference = UnobservedComponents(y, exog=x, use_exact_diffuse=True, **theirs)
    expected = reference.loglike(in_their_order(model.parameters, names))
    found = model.log_likelihood(y, x)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    # And so is that of the matrices, by the filter that keeps the first state apart.
    direct = elk.lgssm_log_likelihood(model.lgssm(x), jnp.asarray(y)[:, None])
    np.testing.assert_allclose(direct, expected, rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("p", "q"), [(1, 0), (0, 2), (2, 1)])
def test_arma_is_that_of_sarimax(p, q):
    y = macro("infl") - macro("infl").mean()
    values = {"ar": [0.5, 0.2][:p], "ma": [0.4, -0.1][:q], "variance": 3.0}
    values = {f"arma.{k}": v for k, v in values.items() if np.size(v)}
    model = elk.models.arma(p, q).replace(**values)
    order = np.concatenate([np.atleast_1d(values[k]) for k in values])
    expected = SARIMAX(y, order=(p, 0, q)).loglike(order)
    np.testing.assert_allclose(model.log_likelihood(y), expected, rtol=1e-9)


def matern_kernel(nu, distance, lengthscale):
    r = np.sqrt(2 * nu) * distance / lengthscale
    polynomial = {0.5: 1, 1.5: 1 + r, 2.5: 1 + r + r**2 / 3}[nu]
    return polynomial * np.exp(-r)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_matern_is_the_gaussian_process_at_irregular_times(nu):
    rng = np.random.default_rng(0)
    # Gaps from a ten thousandth to ten times the length scale.
    times = np.cumsum(np.exp(rng.uniform(-8, 3.5, size=40)))
    y = rng.normal(size=40)
    values = {"matern.variance": 2.0, "noise.variance": 0.3}
    model = elk.models.matern(nu, lengthscale=3.0).replace(**values)
    distance = np.abs(times[:, None] - times)
    covariance = 2.0 * matern_kernel(nu, distance, 3.0) + 0.3 * np.eye(40)
    expected = scipy.stats.multivariate_normal(np.zeros(40), covariance).logpdf(y)
    found = model.log_likelihood(y, times=times)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    noise = model.lgssm(times=times).dynamics_covariance.to_dense()
    assert np.linalg.eigvalsh(noise)[1:].min() > -1e-16
    slope = jax.grad(
        lambda s: model.replace(**{"matern.lengthscale": s}).log_likelihood(
            y, times=times
        )
    )
    assert np.isfinite(slope(3.0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", [2, 3])
def test_motion_over_a_gap_is_its_stochastic_differential_equation(order):
    names = {2: elk.models.constant_velocity, 3: elk.models.constant_acceleration}
    model = names[order](2).lgssm(times=[0.0, 1.0, 1.7])
    generator = np.eye(order, k=1)
    noise = np.zeros((order, order))
    noise[-1, -1] = 1.0
    # Van Loan: both at once from one exponential.
    both = np.block([[-generator, noise], [np.zeros_like(noise), generator.T]])
    both = scipy.linalg.expm(0.7 * both)
    F = both[order:, order:].T
    expected = np.kron(np.eye(2), F), np.kron(np.eye(2), F @ both[:order, order:])
    np.testing.assert_allclose(model.dynamics_weights.to_dense()[2], expected[0])
    found = model.dynamics_covariance.to_dense()[2]
    np.testing.assert_allclose(found, expected[1], atol=1e-15)
    assert model.emission_weights.shape[-2] == 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "text", ["level", "cycle(4, 20)", "seasonal(7, harmonics=3)", "matern(1.5)"]
)
def test_a_gap_is_the_steps_that_are_left_out(text):
    y = np.random.default_rng(1).normal(size=30)
    kept = np.setdiff1d(np.arange(30), [4, 5, 11, 20, 21, 22])
    missing = np.full(30, np.nan)
    missing[kept] = y[kept]
    model = parse(text)
    expected = model.log_likelihood(missing)
    found = model.log_likelihood(y[kept], times=kept.astype(float))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_a_sum_is_its_parts_side_by_side():
    parts = [parse("trend"), parse("seasonal(5)"), parse("arma(1, 1)")]
    whole = parts[0] + parts[1] + parts[2]
    matrices = whole.lgssm()
    for name in ("dynamics_weights", "dynamics_covariance"):
        each = [getattr(part.lgssm(), name).to_dense() for part in parts]
        found = getattr(matrices, name).to_dense()
        np.testing.assert_array_equal(found, scipy.linalg.block_diag(*each))
    dims, first = matrices.initial_covariance
    assert dims.tolist() == [True] * 6 + [False] * 2
    assert (np.asarray(first.to_dense())[:6] == 0).all()
    assert whole.slices["seasonal"] == slice(2, 6)
    assert len(whole.state_names) == whole.lgssm().state_dim == 8
    assert whole.num_diffuse == 6
    level = parse("level").lgssm()
    assert isinstance(level.dynamics_weights, elk.Diagonal)
    assert isinstance(level.dynamics_covariance, elk.Diagonal)


@pytest.mark.usefixtures("x64")
def test_bijections_undo_themselves_and_reach_only_what_is_allowed():
    x = jnp.asarray(np.random.default_rng(3).normal(size=4))
    for one in (positive, fraction, stationary, invertible, between(2.0, 5.0)):
        value = one.forward(x)
        assert one.holds(np.asarray(value))
        np.testing.assert_allclose(one.inverse(value), x, rtol=1e-9)


def test_parameters_have_names_and_are_checked():
    model = parse("level + seasonal(4) + seasonal(7, harmonics=2)")
    assert list(model.parameters) == [
        *("level.variance", "seasonal.variance", "seasonal_2.variance"),
        "noise.variance",
    ]
    fixed = model.fix("noise.variance", **{"level.variance": 0.0})
    assert fixed.free == ("seasonal.variance", "seasonal_2.variance")
    assert fixed.release("noise.variance").free == (*fixed.free, "noise.variance")
    assert float(fixed.parameters["level.variance"]) == 0
    moved = fixed.with_unconstrained({name: jnp.log(3.0) for name in fixed.free})
    np.testing.assert_allclose(moved.parameters["seasonal.variance"], 3, rtol=1e-6)
    doubled = jax.tree.map(lambda x: 2 * x, model)
    assert float(doubled.parameters["level.variance"]) == 2
    for wrong, message in (
        ({"level.varianse": 1.0}, "no parameter 'level.varianse'; there are level.var"),
        ({"level.variance": -1.0}, "level.variance must be at least 0; got -1.0"),
        ({"level.variance": [1.0, 2.0]}, r"must have shape \(\); got \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.replace(**wrong)
    with pytest.raises(ValueError, match="stationary: the roots"):
        parse("ar(2)").replace(**{"autoregressive.ar": [1.5, 0.2]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("level + sesonal(3)", "no component 'sesonal'; there are level, trend, seas"),
        ("level + level", "one level only, as no data could tell two apart"),
        ("level - trend", "a sum of names such as"),
        ("level.__class__", "a sum of names such as"),
        ("seasonal(__import__('os'))", "takes numbers and words only"),
        ("seasonal(1)", "period must be at least 2; got 1"),
        ("seasonal(12, harmonics=7)", "from 1 to 6, half the period; got 7"),
        ("seasonal(4.5)", "no integer needs harmonics"),
        ("seasonal", r"argument: 'period'; it is seasonal\(period, harm"),
        ("arma(0, 0)", "not both of them 0"),
        ("matern(2)", "nu must be 0.5, 1.5 or 2.5; got 2"),
        ("cycle(10, 5)", "2 < shortest < longest; got 10 and 5"),
        ("constant_velocity(2) + level", "equally many emissions; got 2 and 1"),
        ("level +", "a model is a sum such as"),
    ],
)
def test_a_text_that_is_no_model_is_said_to_be_none(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_times_and_inputs_that_do_not_fit_are_said():
    y = np.arange(6.0)
    for text, options, message in (
        ("seasonal(4)", {"times": y}, "dummy form has no times"),
        ("ar(1)", {"times": y}, "matern is their counterpart"),
        ("seasonal(4, harmonics=2)", {"times": y}, "fewer than 2 harmonics"),
        ("level", {"times": y[::-1]}, "times must increase; at 1 comes 4.0 after 5.0"),
        ("level", {"inputs": y}, "without a regression"),
        ("regression(2)", {"inputs": y}, r"inputs must be \(T, 2\)"),
        ("regression(2)", {}, "needs inputs of 2 columns; got none"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text).log_likelihood(y, **options)


def test_float32_holds_a_series_far_from_zero():
    warnings.simplefilter("ignore")
    y = sm.datasets.co2.load_pandas().data["co2"].to_numpy()[:600]
    text = "trend + seasonal(52, harmonics=3)"
    values = {TREND[0]: 8e-3, TREND[1]: 5e-6, "seasonal.variance": 6e-5}
    values["noise.variance"] = 9e-2

    def run(y):
        model = parse(text).replace(**values)
        return jax.value_and_grad(
            lambda v: model.replace(**{TREND[0]: v}).log_likelihood(y)
        )(values[TREND[0]])

    single = run(jnp.asarray(y, jnp.float32))
    with jax.enable_x64(True):
        double = run(jnp.asarray(y, jnp.float64))
    np.testing.assert_allclose(single[0], double[0], rtol=1e-5)
    np.testing.assert_allclose(single[1], double[1], rtol=1e-3)


def test_what_no_data_could_tell_apart_is_no_sum():
    seasonal = elk.models.seasonal
    for other in (seasonal(4), seasonal(12, harmonics=3), seasonal(8)):
        with pytest.raises(
            ValueError, match="seasonal both have a harmonic of 4 steps"
        ):
            seasonal(4, harmonics=1) + other
    both = seasonal(12, harmonics=2) + seasonal(4) + seasonal(7)
    assert both.lgssm().state_dim == 4 + 3 + 6


def test_a_model_is_read_whatever_stands_for_a_space():
    for text in ("\tlevel\n  + seasonal( 4 )\n", "level\u00a0+ seasonal(4)"):
        assert elk.models.parse(text) == elk.models.parse("level + seasonal(4)")
    whole = np.int64(3)
    model = elk.models.seasonal(np.int64(12), np.int64(2))
    model = model + elk.models.autoregressive(whole) + elk.models.regression(whole)
    assert model.num_inputs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "a model to parse is a text; got None"),
        ("seasonal('4')", "period must be at least 2; got '4'"),
        ("seasonal(1e400)", "period must be at least 2; got inf"),
        ("ar(True)", "order must be a positive integer; got True"),
        ("matern(1.5, 0)", "lengthscale must be positive; got 0"),
        (
            "level(name='')",
            "called by a word without a dot that is not 'noise'; got ''",
        ),
        ("level(name='noise')", "that is not 'noise'; got 'noise'"),
        ("level(name='a.b')", "without a dot that is not 'noise'; got 'a.b'"),
    ],
)
def test_a_part_that_cannot_be_is_said_to_be_none(text, message):
    with pytest.raises(ValueError, match=message):
        elk.models.parse(text)


def test_times_are_finite_numbers():
    model = elk.models.matern(0.5)
    days = np.datetime64("2020-01-01") + np.arange(3)
    with pytest.raises(TypeError, match=r"must be numbers; got datetime64\[D\]"):
        model.lgssm(times=days)
    for times, message in (
        (np.array([0.0, np.nan, 2.0]), "times must be finite; at 1 is nan"),
        (np.array([0.0, 1.0, np.inf]), "times must be finite; at 2 is inf"),
    ):
        with pytest.raises(ValueError, match=message):
            model.lgssm(times=times)
