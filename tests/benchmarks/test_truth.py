"""The independent answers, against dense Gaussians and known chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from benchmarks import truth

pytestmark = pytest.mark.usefixtures("x64")
T, P, MEAN, PHI, Q, R = 30, 0.8, 0.5, 0.9, 0.2, 0.3


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(0).normal(size=T)


@pytest.fixture(scope="module")
def dense(y):
    """Posterior mean and covariance and log p(y), by dense linear algebra."""
    lower = np.tril(PHI ** np.subtract.outer(np.arange(T), np.arange(T)))
    prior = lower @ np.diag([P] + [Q] * (T - 1)) @ lower.T
    total, shift = prior + R * np.eye(T), y - MEAN
    gain = np.linalg.solve(total, prior).T
    quadratic = shift @ np.linalg.solve(total, shift)
    evidence = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * total)[1])
    return MEAN + gain @ shift, prior - gain @ prior, evidence


def test_quadrature_is_exact_for_a_linear_gaussian_model(y, dense):
    model = elk.NonlinearSSM(
        jnp.full(1, MEAN),
        jnp.full((1, 1), P),
        lambda z, _: MEAN + PHI * (z - MEAN),
        jnp.full((1, 1), Q),
        log_density=lambda z, y, _: jax.scipy.stats.norm.logpdf(y[0], z[0], R**0.5),
    )
    found = truth.grid_posterior(model, y[:, None], -7.0, 8.0, 200)
    mean, covariance, evidence = dense
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found.mean, mean, atol=1e-10)
    np.testing.assert_allclose(found.deviation, deviation, atol=1e-10)
    np.testing.assert_allclose(found.log_likelihood, evidence, rtol=1e-10)
    # The mass is that of a density that is constant on cells a fifth of it wide.
    mass = found.mass_between(mean - 1.96 * deviation, mean + 1.96 * deviation)
    np.testing.assert_allclose(mass, 0.95, atol=2e-3)


def test_newton_finds_a_gaussian_mode_and_a_stationary_point(y, dense):
    gaussian = truth.newton_mode(
        P, MEAN, PHI, Q, lambda z: ((y - z) / R, np.full(T, 1 / R)), T
    )
    np.testing.assert_allclose(gaussian, dense[0], atol=1e-12)
    counts = np.random.default_rng(1).poisson(2.0, T)
    z = truth.newton_mode(P, MEAN, PHI, Q, lambda z: (counts - np.exp(z), np.exp(z)), T)
    residual = np.diff(z - MEAN, prepend=0.0)
    residual[1:] = (z[1:] - MEAN) - PHI * (z[:-1] - MEAN)
    scaled = residual / np.array([P] + [Q] * (T - 1))
    pull = scaled - PHI * np.append(scaled[1:], 0.0)
    np.testing.assert_allclose(pull, counts - np.exp(z), atol=1e-9)


def test_nuts_draws_from_its_density():
    scales = jnp.array([0.5, 3.0])
    found = truth.sample_nuts(
        lambda x: -0.5 * jnp.sum((x / scales) ** 2), jnp.zeros(2), 2000, 300
    )
    # Five standard errors of a deviation from about 500 effective draws.
    np.testing.assert_allclose(np.std(found.positions, axis=0), scales, rtol=0.16)
    assert found.divergences == 0
    assert found.mean_leapfrogs > 1


def test_effective_size_of_an_autoregression():
    rng, rho, n = np.random.default_rng(0), 0.8, 20_000
    x = [0.0]
    for eps in rng.normal(size=n):
        x.append(rho * x[-1] + eps)
    expected = n * (1 - rho) / (1 + rho)
    assert truth.effective_size(np.array(x)) == pytest.approx(expected, rel=0.2)
    assert truth.effective_size(rng.normal(size=n)) == pytest.approx(n, rel=0.1)
