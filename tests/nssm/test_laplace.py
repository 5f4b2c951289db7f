"""Non-Gaussian emissions: the mode and Laplace's approximation, densely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from elk_ssm.draws import sample
from elk_ssm.linalg.structure import ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.rows import modified_factors
from elk_ssm.smoothing import log_prob, smooth
from elk_ssm.solution import Status

pytestmark = pytest.mark.usefixtures("x64")
T = 30
ONE = ScaledIdentity(1.0)


def poisson(h, y, u):
    return jnp.sum(y * h - jnp.exp(h) - jax.scipy.special.gammaln(y + 1))


def bernoulli(h, y, u):
    return jnp.sum(y * h - jax.nn.softplus(h))


def student(h, y, u):
    return jax.scipy.stats.t.logpdf(y[0], 3.0, loc=h[0], scale=0.5)


def volatility(h, y, u):
    return jax.scipy.stats.norm.logpdf(y[0], 0.0, jnp.exp(h[0] / 2))


def model_of(log_density):
    return NonlinearSSM(
        jnp.zeros(1),
        ONE,
        lambda z, u: 0.9 * z,
        ScaledIdentity(0.2),
        log_density=log_density,
    )


def data_of(log_density, seed=0):
    rng = np.random.default_rng(seed)
    x = np.cumsum(0.3 * rng.normal(size=T))
    values = {
        poisson: rng.poisson(np.exp(x)),
        bernoulli: rng.random(T) < 1 / (1 + np.exp(-x)),
        student: x + 0.5 * rng.standard_t(3, T),
        # Zeros: the density is flat above, its curvature vanishes, its slope does not.
        volatility: np.where(np.arange(T) % 7 == 0, 0.0, rng.normal(size=T)),
    }[log_density]
    return jnp.asarray(values, float)[:, None].at[4].set(jnp.nan)


@pytest.mark.parametrize("log_density", [poisson, bernoulli, student, volatility])
def test_mode_covariance_and_evidence_are_those_of_a_dense_laplace(log_density):
    model, y = model_of(log_density), data_of(log_density)
    result = smooth(model, y, backend="sequential")
    assert int(result.status) == Status.converged

    def objective(flat):
        return -log_prob(model, flat[:, None], y)

    best = minimize(
        jax.jit(objective),
        np.asarray(result.means)[:, 0] + 0.05,
        jac=jax.jit(jax.grad(objective)),
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 2000},
    )
    np.testing.assert_allclose(result.means[:, 0], best.x, atol=1e-6)
    hessian = np.asarray(jax.jit(jax.hessian(objective))(result.means[:, 0]))
    if log_density is student:  # not log-concave: negative weights count as none
        assert float(result.covariances.max()) < 2.0
        return
    covariance = np.linalg.inv(hessian)
    np.testing.assert_allclose(
        result.covariances[:, 0, 0], np.diag(covariance), rtol=1e-6
    )
    evidence = (
        float(result.log_posterior)
        + 0.5 * T * np.log(2 * np.pi)
        - 0.5 * np.linalg.slogdet(hessian)[1]
    )
    np.testing.assert_allclose(result.log_likelihood, evidence, rtol=1e-8)


def test_a_tfp_distribution_is_a_log_density():
    tfd = pytest.importorskip("tensorflow_probability.substrates.jax.distributions")
    parts = (jnp.zeros(1), ONE, lambda z, u: 0.9 * z, ScaledIdentity(0.2))
    model = NonlinearSSM.from_distribution(*parts, lambda h, u: tfd.Poisson(log_rate=h))
    y = data_of(poisson)
    states = jnp.ones((T, 1))
    np.testing.assert_allclose(
        log_prob(model, states, y), log_prob(model_of(poisson), states, y), rtol=1e-9
    )
    drawn = sample(model, jax.random.key(0), 20)
    assert bool(jnp.all(drawn.emissions == jnp.round(drawn.emissions)))


def test_factors_keep_a_psd_matrix_and_repair_an_indefinite_one():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 3))
    for replace in (True, False):
        L, c = modified_factors(jnp.asarray(root @ root.T), replace=replace)
        np.testing.assert_allclose((L * c) @ L.T, root @ root.T, atol=1e-10)
    indefinite = jnp.array([[0.0, 1.0], [1.0, -2.0]])
    L, c = modified_factors(indefinite, replace=True)
    assert bool(jnp.all(c > 0))
    assert bool(jnp.all(modified_factors(indefinite, replace=False)[1] >= 0))
    L, c = modified_factors(jnp.zeros((2, 2)), replace=True)
    assert bool(jnp.all(c == 0))
    assert bool(jnp.all(jnp.isfinite(L)))
