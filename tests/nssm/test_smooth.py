"""The iterated smoother against dense, SciPy and dynamax answers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares
from tests.nssm.oracle import emissions_of, linear, pendulum, pendulum_residuals

from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import Dense, Diagonal, ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.smoothing import extended_smoother, log_prob
from elk_ssm.smoothing import smooth as smooth_any
from elk_ssm.solution import Status
from elk_ssm.surrogate.noise import Constant, ResidualProportional

pytestmark = pytest.mark.usefixtures("x64")
T = 40


def smooth(*args, **options):
    """Smooth by the backend that compiles faster."""
    return smooth_any(*args, **{"backend": "sequential", **options})


@pytest.fixture
def model():
    return pendulum()


@pytest.fixture
def emissions(model):
    return emissions_of(model, T).at[jnp.array([5, 6, 30])].set(jnp.nan)


@pytest.fixture
def smoothed(model, emissions):
    return smooth(model, emissions)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"linearization": "cubature"},
        {"linearization": "unscented", "noise": None, "safeguard": False},
    ],
    ids=["taylor", "cubature", "unscented"],
)
def test_a_linear_model_gives_the_kalman_smoother(options):
    F, H, Q, R = linear()
    y = jnp.asarray(np.random.default_rng(1).normal(size=(20, 2)))
    y = y.at[3, 0].set(jnp.nan).at[7].set(jnp.nan)
    u = jnp.asarray(np.random.default_rng(2).normal(size=(20, 2)))
    model = NonlinearSSM(
        jnp.ones(2), jnp.eye(2), lambda z, v: F @ z + v, Q, lambda z, _: H @ z, R
    )
    exact = LGSSM(
        jnp.ones(2), jnp.eye(2), F, Q, H, R, dynamics_input_weights=jnp.eye(2)
    )
    expected = lgssm_smoother(exact, y, u)
    result = smooth(model, y, u, **options)
    assert int(result.status) == Status.converged
    pairs = [
        (result.means, expected.smoothed_means),
        (result.covariances, expected.smoothed_covariances.matrix),
        (result.log_likelihood, expected.log_likelihood),
        (result.filtered_means, expected.filtered_means),
    ]
    for actual, wanted in pairs:
        np.testing.assert_allclose(actual, wanted, atol=1e-8)


def test_converges_to_the_dense_least_squares_mode(model, emissions, smoothed):
    residuals = pendulum_residuals(model, emissions)
    zeros = np.zeros(2 * T)
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    dense = least_squares(residuals, np.asarray(smoothed.means).ravel() + 0.01, **tight)
    assert int(smoothed.status) == Status.converged
    np.testing.assert_allclose(smoothed.means, dense.x.reshape(T, 2), atol=1e-6)
    # The posterior covariance is the inverse of the dense Gauss-Newton matrix.
    covariance = np.linalg.inv(dense.jac.T @ dense.jac)
    blocks = [covariance[2 * t : 2 * t + 2, 2 * t : 2 * t + 2] for t in range(T)]
    np.testing.assert_allclose(smoothed.covariances, blocks, atol=1e-6)
    constant = float(smoothed.log_posterior) + 0.5 * np.sum(dense.fun**2)
    at_zero = log_prob(model, jnp.zeros((T, 2)), emissions)
    np.testing.assert_allclose(
        at_zero, constant - 0.5 * np.sum(residuals(zeros) ** 2), rtol=1e-9
    )


def test_the_extended_smoother_is_dynamaxs(model):
    nlgssm = pytest.importorskip("dynamax.nonlinear_gaussian_ssm")
    emissions = emissions_of(model, T)
    params = nlgssm.ParamsNLGSSM(
        model.initial_mean,
        0.1 * jnp.eye(2),
        lambda z: model.dynamics(z, None),
        model.dynamics_covariance,
        lambda z: model.emission(z, None),
        0.09 * jnp.eye(1),
    )
    expected = nlgssm.extended_kalman_smoother(params, emissions)
    result = extended_smoother(model, emissions)
    # dynamax adds 1e-9 to what it factors.
    for actual, wanted in [
        (result.means, expected.smoothed_means),
        (result.covariances, expected.smoothed_covariances),
        (result.log_likelihood, expected.marginal_loglik),
        (result.filtered_means, expected.filtered_means),
    ]:
        np.testing.assert_allclose(actual, wanted, atol=1e-6)
    zero_passes = smooth(model, emissions, guess="extended", max_iters=0)
    np.testing.assert_allclose(zero_passes.means, result.means, atol=1e-12)


@pytest.mark.parametrize("noise", [None, Constant(1e4), ResidualProportional()])
def test_every_policy_reaches_the_same_mode(model, emissions, smoothed, noise):
    result = smooth(model, emissions, noise=noise, max_iters=400)
    assert int(result.status) == Status.converged
    np.testing.assert_allclose(result.means, smoothed.means, atol=1e-5)


def test_damping_shortens_the_first_step(model, emissions):
    start = jnp.zeros((T, 2))

    def moved(noise):
        noise = Constant(noise)
        once = smooth(model, emissions, guess=start, noise=noise, max_iters=1)
        return float(jnp.max(jnp.abs(once.means - start)))

    assert moved(1e-3) < moved(1.0) < moved(1e3)


@pytest.mark.parametrize("max_iters", [0, 1, 2, 5, 100])
def test_the_log_posterior_never_falls_below_the_guess(model, emissions, max_iters):
    wild = 5 * jnp.asarray(np.random.default_rng(0).normal(size=(T, 2)))
    start = log_prob(model, wild, emissions)
    for noise in (None, Constant(1e4)):
        options = {"guess": wild, "max_iters": max_iters, "noise": noise}
        result = smooth(model, emissions, **options)
        assert result.log_posterior >= start - 1e-9 * abs(start)  # compiled apart
        np.testing.assert_allclose(
            log_prob(model, result.means, emissions), result.log_posterior, rtol=1e-12
        )


def test_backends_agree(model, emissions, smoothed):
    other = smooth(model, emissions, backend="associative")
    np.testing.assert_allclose(other.means, smoothed.means, atol=1e-7)
    np.testing.assert_allclose(other.covariances, smoothed.covariances, atol=1e-7)


def test_a_mask_is_a_nan(model, emissions, smoothed):
    seen = ~jnp.isnan(emissions[:, 0])
    filled = jnp.where(jnp.isnan(emissions), 7.0, emissions)
    masked = smooth(model, filled, mask=seen)
    np.testing.assert_array_equal(masked.means, smoothed.means)


def test_vmap_is_a_loop(model):
    many = jnp.stack([emissions_of(model, T, seed) for seed in range(3)])
    together = jax.jit(jax.vmap(lambda y: smooth(model, y)))(many)
    for i, y in enumerate(many):
        alone = smooth(model, y)
        np.testing.assert_allclose(together.means[i], alone.means, atol=1e-8)
        assert int(together.num_iters[i]) == int(alone.num_iters)


def test_gradients_are_implicit_and_match_finite_differences(model, emissions):
    def outputs(theta):
        built = pendulum(0.05 * theta[0], 0.09 * theta[1], 9.8 * theta[2])
        result = smooth(built, emissions, tol=1e-11)
        return jnp.stack(
            [result.log_likelihood, result.log_posterior, result.means[10, 1]]
        )

    theta, h = jnp.ones(3), 1e-5
    reverse = jax.jit(jax.jacrev(outputs))(theta)
    forward = jax.jit(jax.jacfwd(outputs))(theta)
    outputs = jax.jit(outputs)
    both = [outputs(theta + s * h * e) for e in jnp.eye(3) for s in (1, -1)]
    numeric = jnp.stack([(both[i] - both[i + 1]) / (2 * h) for i in (0, 2, 4)], axis=1)
    np.testing.assert_allclose(reverse, numeric, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-10)


def test_fresh_lambdas_are_compiled_once(emissions, compilations):
    smooth(pendulum(), emissions)
    with compilations() as count:
        smooth(pendulum(gravity=9.8), emissions)
    assert count[0] <= 2  # the hoisted constants, not the smoother


def test_float32_is_kept_and_close(model, emissions, smoothed):
    with jax.enable_x64(False):
        single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), pendulum())
        result = smooth(single, jnp.asarray(emissions, jnp.float32))
    assert result.means.dtype == result.covariances.dtype == jnp.float32
    sd = np.sqrt(np.diagonal(np.asarray(smoothed.covariances), axis1=1, axis2=2))
    assert np.max(np.abs(result.means - smoothed.means) / sd) < 0.02


def test_time_varying_covariances_are_declared(model, emissions, smoothed):
    Q = model.dynamics_covariance
    varying = NonlinearSSM(
        **{
            **vars(model),
            "dynamics_covariance": Dense(jnp.broadcast_to(Q, (T, 2, 2)).at[0].set(9.0)),
            "emission_covariance": Diagonal(jnp.full((T, 1), 0.09)),
        }
    )
    # Entry 0 of the dynamics is not used.
    result = smooth(varying, emissions)
    np.testing.assert_allclose(result.means, smoothed.means, atol=1e-8)


def test_state_dependent_covariances_reach_the_mode(emissions):
    base = vars(pendulum())
    Q = base["dynamics_covariance"]
    model = NonlinearSSM(
        **{
            **base,
            "dynamics_covariance": lambda z, _: Q * (1 + 0.5 * z[1] ** 2),
            "emission_covariance": lambda z, _: ScaledIdentity(0.09 + 0.1 * z[0] ** 2),
        }
    )
    # Linear convergence: the fixed covariances are not part of the expansion.
    result = smooth(model, emissions, max_iters=300, tol=1e-6)
    assert int(result.status) == Status.converged
    gradient = jax.grad(lambda x: log_prob(model, x, emissions))(result.means)
    sd = jnp.sqrt(jnp.diagonal(result.covariances, axis1=1, axis2=2))
    assert float(jnp.max(jnp.abs(gradient * sd))) < 1e-5


def test_failures_are_statuses(model, emissions):
    cut_off = smooth(model, emissions, max_iters=2)
    assert int(cut_off.status) == Status.max_iters_reached
    assert int(cut_off.num_iters) == 2
    broken = NonlinearSSM(**{**vars(model), "dynamics": lambda z, _: z / 0.0})
    assert int(smooth(broken, emissions).status) == Status.nonfinite


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        ({"initial_mean": jnp.zeros((1, 2))}, {}, ValueError, "initial_mean must be"),
        ({"initial_mean": jnp.zeros(2, int)}, {}, TypeError, "float32 or float64"),
        ({"dynamics": lambda z, _: z[:1]}, {}, ValueError, "dynamics must return"),
        ({"dynamics": 3.0}, {}, TypeError, "must be a function"),
        ({"emission": lambda z, _: z}, {}, ValueError, "emission must return"),
        ({"emission_covariance": None}, {}, ValueError, "neither"),
        ({"log_density": lambda *_: 0.0}, {}, ValueError, "both"),
        ({"dynamics_covariance": jnp.eye(3)}, {}, ValueError, r"\(2, 2\)"),
        ({"dynamics_covariance": jnp.ones(2)}, {}, ValueError, "two axes"),
        ({"dynamics_covariance": -jnp.eye(2)}, {}, ValueError, "definite"),
        ({}, {"linearization": "magic"}, ValueError, "one of taylor"),
        ({}, {"backend": "magic"}, ValueError, "backend"),
        ({}, {"guess": jnp.zeros(3)}, ValueError, "guess must be"),
        ({}, {"guess": "magic"}, ValueError, "extended"),
        ({}, {"tol": 0.0}, ValueError, "tol"),
        ({}, {"max_iters": -1}, ValueError, "max_iters"),
        ({}, {"noise": -1.0}, ValueError, "positive"),
        ({}, {"mask": jnp.ones(T)}, TypeError, "boolean"),
        ({}, {"mask": jnp.ones(3, bool)}, ValueError, "mask must have"),
    ],
)
def test_mistakes_are_named(model, emissions, change, options, error, match):
    wrong = NonlinearSSM(**{**vars(model), **change})
    with pytest.raises(error, match=match):
        smooth(wrong, emissions, **options)


def test_the_model_is_a_pytree(model, emissions, smoothed):
    through_jit = jax.jit(lambda m, y: smooth(m, y))(model, emissions)
    np.testing.assert_allclose(through_jit.means, smoothed.means, atol=1e-9)


@pytest.mark.parametrize("noise", [None, Constant(1e4)])
def test_sigma_points_end_at_the_same_mode(model, emissions, smoothed, noise):
    result = smooth(model, emissions, linearization="cubature", noise=noise)
    assert int(result.status) == Status.converged
    np.testing.assert_allclose(result.means, smoothed.means, atol=1e-6)
    options = {"linearization": "cubature", "safeguard": False}
    own = smooth(model, emissions, noise=noise, **options)
    assert float(own.log_posterior) < float(smoothed.log_posterior) - 1e-6


def test_a_known_covariance_may_be_closed_over_by_a_jitted_function():
    y = emissions_of(pendulum(), T)

    def means(variances):
        model = replace(pendulum(), dynamics_covariance=Diagonal(jnp.array(variances)))
        return lambda y: smooth(model, y).means

    known = means([0.01, 0.02])
    np.testing.assert_allclose(jax.jit(known)(y), known(y), atol=1e-9)
    with pytest.raises(ValueError, match="positive definite"):
        jax.jit(means([0.01, -0.02]))(y)
