"""dynamax's objects on our core: what dynamax computes, and what it lacks.

The checks of dynamax's own tests of these classes (`models_test.py`,
`input_timing_test.py`) are made on the accelerated objects.
"""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from dynamax.generalized_gaussian_ssm import (
    EKFIntegrals,
    GeneralizedGaussianSSM,
    ParamsGGSSM,
    conditional_moments_gaussian_filter,
    conditional_moments_gaussian_smoother,
)
from dynamax.linear_gaussian_ssm import LinearGaussianConjugateSSM, LinearGaussianSSM
from dynamax.linear_gaussian_ssm.inference_test_utils import (
    assert_sample_moments,
    make_timing_case,
)
from dynamax.nonlinear_gaussian_ssm import (
    NonlinearGaussianSSM,
    ParamsNLGSSM,
    extended_kalman_filter,
    extended_kalman_smoother,
)

import elk_ssm as elk
from elk_ssm.interop.dynamax import accelerate, from_dynamax

pytestmark = pytest.mark.usefixtures("x64")

CLASSES = [LinearGaussianSSM, LinearGaussianConjugateSSM]


def close(found, expected, tol=1e-8):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tol, rtol=tol)


def simulated(cls=LinearGaussianSSM, inputs=False, steps=40, **options):
    """An object, its parameters and properties, emissions and inputs."""
    model = cls(state_dim=2, emission_dim=3, input_dim=int(inputs), **options)
    weights = jnp.full((2, 1), 0.3), jnp.full((3, 1), -0.5)
    given = (
        {"dynamics_input_weights": weights[0], "emission_input_weights": weights[1]}
        if inputs
        else {}
    )
    params, props = model.initialize(jr.PRNGKey(0), **given)
    u = jnp.sin(jnp.arange(steps))[:, None] if inputs else None
    _, y = model.sample(params, jr.PRNGKey(1), steps, u)
    start, _ = model.initialize(jr.PRNGKey(2), **given)
    return model, start, props, y, u


@pytest.mark.parametrize("inputs", [False, True])
def test_computes_what_the_object_computes(inputs):
    model, params, _, y, u = simulated(inputs=inputs)
    ours = accelerate(model)
    assert isinstance(ours, LinearGaussianSSM)
    names = ["smoother", "filter", "marginal_log_prob", "e_step"]
    # dynamax leaves the inputs out of the predicted emission.
    names += [] if inputs else ["posterior_predictive"]

    def every(model, params, y, u):
        return [getattr(model, name)(params, y, u) for name in names]

    run = jax.jit(every, static_argnums=0)
    found, expected = run(ours, params, y, u), run(model, params, y, u)
    close(found, expected)
    for a, b in zip(found, expected):
        assert type(a) is type(b)
    assert found[0].smoothed_cross_covariances.shape == (39, 2, 2)


def test_forecasts():
    model, params, _, y, _ = simulated()
    found = accelerate(model).forecast(params, y, 4)
    # dynamax observes the future with a variance of 1e8.
    close(found, model.forecast(params, y, 4), 1e-6)


@pytest.mark.parametrize("has_inputs", [False, True])
def test_forecast_matches_expected_moments(has_inputs):
    model = accelerate(LinearGaussianSSM(1, 1, int(has_inputs)))
    one, width = jnp.eye(1), int(has_inputs)
    params, _ = model.initialize(
        initial_mean=jnp.zeros(1),
        initial_covariance=one,
        dynamics_weights=0.5 * one,
        dynamics_covariance=one,
        dynamics_input_weights=jnp.ones((1, width)),
        emission_weights=one,
        emission_covariance=one,
    )
    weights = params.dynamics.input_weights if has_inputs else None
    dynamics = params.dynamics._replace(bias=None, input_weights=weights)
    params = params._replace(dynamics=dynamics)
    now = jnp.zeros((1, 1)) if has_inputs else None
    later = jnp.array([[10.0], [20.0], [30.0]]) if has_inputs else None
    run = jax.jit(partial(model.forecast, num_forecast_timesteps=3))
    found = run(params, jnp.array([[4.88]]), inputs=now, forecast_inputs=later)
    means = [11.22, 25.61, 42.805] if has_inputs else [1.22, 0.61, 0.305]
    spreads = np.array([1.125, 1.28125, 1.3203125])[:, None, None]
    means = np.array(means)[:, None]
    close(found, (means, spreads, means, spreads + 1))


@pytest.mark.parametrize("num_timesteps", [1, 3])
def test_time_varying_parameters_and_inputs(num_timesteps):
    params, y, u, expected = make_timing_case(num_timesteps)
    model = accelerate(LinearGaussianSSM(*params.emissions.weights.shape[-2:][::-1]))
    found = model.smoother(params, y, u)._asdict()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5, rtol=2e-5)
    draw = jax.vmap(lambda key: model.posterior_sample(key, params, y, u))
    samples = jax.jit(draw)(jr.split(jr.PRNGKey(13), 12_000))
    moments = expected["smoothed_means"], expected["joint_covariance"]
    assert_sample_moments(samples, *moments)


def test_inputs_are_part_of_the_predicted_emission():
    model, params, _, y, u = simulated(inputs=True)
    means, deviations = accelerate(model).posterior_predictive(params, y, u)
    found = model.smoother(params, y, u)
    H, R = params.emissions.weights, params.emissions.cov
    drive = u @ params.emissions.input_weights.T + params.emissions.bias
    close(means, found.smoothed_means @ H.T + drive)
    spread = np.einsum("ei,tij,ej->te", H, found.smoothed_covariances, H)
    close(deviations, np.sqrt(spread + np.diagonal(R)))


@pytest.mark.parametrize("cls", CLASSES)
def test_fits_as_the_object_does(cls):
    model, params, props, y, _ = simulated(cls)
    for fit, options in (
        ("fit_em", {"num_iters": 3, "verbose": False}),
        ("fit_sgd", {"num_epochs": 3}),
    ):
        found = getattr(accelerate(model), fit)(params, props, y, **options)
        close(found, getattr(model, fit)(params, props, y, **options), 1e-5)
        if fit == "fit_em":
            assert (np.diff(found[1]) > 0).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_frozen_parameters(cls):
    model = accelerate(cls(state_dim=2, emission_dim=3))
    params, props = model.initialize(jr.PRNGKey(0))
    props.dynamics.weights.trainable = False
    with pytest.raises(NotImplementedError):
        model.m_step(params, props, None, None)
    for group in props:
        for prop in group:
            prop.trainable = False
    close(model.m_step(params, props, None, None)[0], params)


def test_blocked_gibbs_runs():
    model, params, _, y, _ = simulated(LinearGaussianConjugateSSM, steps=4)
    y = jnp.stack([y, -y])
    accelerate(model).fit_blocked_gibbs(jr.PRNGKey(0), params, 3, y)


def with_gaps(y):
    return y.at[1, 0].set(jnp.nan).at[2, 1:].set(jnp.nan).at[5:9].set(jnp.nan)


@pytest.mark.parametrize("diagonal", [False, True])
def test_missing_emissions_are_integrated_out(diagonal):
    model, params, props, y, u = simulated(inputs=True)
    R = jnp.array([0.1, 0.2, 0.3]) if diagonal else params.emissions.cov + 0.05
    params = params._replace(emissions=params.emissions._replace(cov=R))
    ours, gaps = accelerate(model), with_gaps(y)
    stats, value = jax.jit(ours.e_step)(params, gaps, u)
    linear = from_dynamax(params)
    close(value, elk.lgssm_log_likelihood(linear, gaps, u))
    stats = jax.tree.map(lambda x: jnp.asarray(x)[None], stats)
    new = from_dynamax(ours.m_step(params, props, stats, None)[0])
    # `lgssm_em` is tested against the moments of one big Gaussian.
    full = linear._replace(emission_covariance=elk.Dense(jnp.atleast_2d(R)))
    if diagonal:
        full = linear._replace(emission_covariance=elk.Dense(jnp.diag(R)))
    expected = elk.lgssm_em(full, gaps, u, num_iters=1).model
    close(jax.tree.leaves(new), jax.tree.leaves(expected), 1e-6)


def test_several_series_with_gaps_are_fitted_together():
    model, params, props, y, _ = simulated()
    both = jnp.stack([with_gaps(y), 2 - y])
    ours = accelerate(model)
    fitted, values = ours.fit_em(params, props, both, num_iters=6, verbose=False)
    assert (np.diff(values) > 0).all()
    found = elk.lgssm_em(from_dynamax(params), both, num_iters=6)
    close(values, found.log_likelihoods[:6], 1e-6)
    # What dynamax itself finds here for the start is no covariance.
    theirs, _ = model.fit_em(params, props, jnp.stack([y, 2 - y]), num_iters=1)
    assert np.linalg.eigvalsh(theirs.initial.cov)[0] < -0.1
    assert np.linalg.eigvalsh(fitted.initial.cov)[0] > 0


def test_sgd_over_gaps_stays_finite():
    model, params, props, y, _ = simulated()
    props.dynamics.weights.trainable = False
    ours = accelerate(model)
    fitted, losses = ours.fit_sgd(params, props, with_gaps(y), num_epochs=5)
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(fitted.dynamics.weights, params.dynamics.weights)
    assert not jnp.allclose(fitted.dynamics.cov, params.dynamics.cov)


def test_the_slope_of_a_batch_where_covariances_come_to_rest():
    model = LinearGaussianSSM(3, 4)
    params, _ = model.initialize(jr.PRNGKey(0))
    y = jr.normal(jr.PRNGKey(1), (2, 150, 4))

    def slope(model):
        def total(params):
            each = jax.vmap(partial(model.marginal_log_prob, params))
            return jnp.sum(each(y))

        found = jax.jit(jax.grad(total))(params)
        # Only the symmetric part of a slope by a covariance means something.
        return [part._replace(cov=part.cov + part.cov.T) for part in found]

    close(slope(accelerate(model)), slope(model), 1e-4)


class Louder(LinearGaussianSSM):
    """A class of a user, with a method of its own."""

    def filter(self, params, emissions, inputs=None):
        return "mine"


def test_a_class_of_a_user_keeps_its_methods():
    model = accelerate(Louder(1, 1))
    params, _ = model.initialize()
    assert isinstance(model, Louder)
    assert model.filter(params, jnp.ones((3, 1))) == "mine"
    assert np.isfinite(model.marginal_log_prob(params, jnp.full((3, 1), jnp.nan)))


def test_copies_keep_what_they_are():
    model = LinearGaussianSSM(2, 3, has_dynamics_bias=False)
    ours = accelerate(accelerate(model))
    assert type(ours) is type(accelerate(model))
    assert type(model) is LinearGaussianSSM
    again = pickle.loads(pickle.dumps(ours))
    assert type(again) is type(ours)
    assert again.__dict__ == model.__dict__
    with pytest.raises(TypeError, match=r"LinearGaussianSSM.*got int"):
        accelerate(3)


def pendulum(with_input=False, varying=None):
    def f(z, u=0.0):
        force = jnp.sum(jnp.asarray(u))
        return jnp.array([z[0] + 0.1 * z[1], z[1] - 0.5 * jnp.sin(z[0]) + force])

    Q = 0.05 * jnp.eye(2)
    if varying:
        Q = Q * jnp.linspace(1, 2, varying)[:, None, None]
    R = jnp.array([[0.3, 0.1], [0.1, 0.2]])
    h = lambda z, u=0.0: jnp.stack([jnp.sin(z[0]), z[1] * z[0]])  # noqa: E731
    alone = [f, h] if with_input else [lambda z: f(z), lambda z: h(z)]
    return ParamsNLGSSM(jnp.array([0.5, 0.1]), jnp.eye(2), alone[0], Q, alone[1], R)


@pytest.mark.parametrize("given", [False, True])
def test_nonlinear_objects_run_the_extended_smoother(given):
    steps = 12
    params = pendulum(given, steps if given else None)
    model = accelerate(NonlinearGaussianSSM(2, 2))
    u = 0.1 * jnp.ones((steps, 1)) if given else None
    y = 0.5 * jr.normal(jr.PRNGKey(0), (steps, 2))
    found = model.filter(params, y, u)
    expected = extended_kalman_filter(params, y, inputs=u)
    assert type(found) is type(expected)
    close(found, expected)
    close(model.smoother(params, y, u), extended_kalman_smoother(params, y, inputs=u))
    close(model.marginal_log_prob(params, y, u), expected.marginal_loglik)
    assert model.posterior_sample(jr.PRNGKey(1), params, y, u).shape == (steps, 2)
    # A missing step is one that is observed with a variance of 1e12.
    gaps = y.at[3:5].set(jnp.nan)
    R = jnp.where(jnp.isnan(gaps[:, :1, None]), 1e12 * jnp.eye(2), 1.0)
    R = jnp.where(R == 1.0, params.emission_covariance, R)
    vague = params._replace(emission_covariance=R)
    expected = extended_kalman_smoother(vague, y, inputs=u)
    found = model.smoother(params, gaps, u)
    close(found.smoothed_means, expected.smoothed_means, 1e-6)
    close(found.smoothed_covariances, expected.smoothed_covariances, 1e-6)


def counts():
    """The model of dynamax's test, and where its emissions are drawn from."""
    import tensorflow_probability.substrates.jax.distributions as tfd

    keys = jr.split(jr.PRNGKey(0), 3)
    weights = jr.normal(keys[0], (1, 3)) / jnp.sqrt(3)
    rate = lambda z: jnp.exp(weights @ z)  # noqa: E731
    poisson = {"emission_dist": lambda mean, _: tfd.Poisson(log_rate=jnp.log(mean))}
    start = jr.normal(keys[1], (3,)), jnp.eye(3)
    dynamics = (lambda z: 0.99 * z, 0.001 * jnp.eye(3))
    return ParamsGGSSM(*start, *dynamics, rate, rate, **poisson), keys[2]


def test_generalized_objects_match_the_conditional_moments():
    model = accelerate(GeneralizedGaussianSSM(3, 1))
    poisson, key = counts()
    gaussian = poisson._replace(
        emission_dist=ParamsGGSSM._field_defaults["emission_dist"]
    )
    _, y = model.sample(poisson, key, num_timesteps=100)
    values = []
    for params in (poisson, gaussian):
        rule = params, EKFIntegrals(), y
        found = model.filter(params, y)
        expected = conditional_moments_gaussian_filter(*rule)
        assert type(found) is type(expected)
        # dynamax adds 1e-9 to the diagonals of what it solves for.
        close(found, expected, 1e-6)
        smoothed = conditional_moments_gaussian_smoother(*rule)
        close(model.smoother(params, y), smoothed, 1e-5)
        values.append(found.marginal_loglik)
    assert values[0] > values[1]
    gaps = y.at[4:9].set(jnp.nan)
    found = model.smoother(poisson, gaps)
    assert np.isfinite(found.smoothed_means).all()
    assert float(found.marginal_loglik) > float(values[0])
