"""That what is called converged is a maximum, and that saddles are left.

The oracle is dense autodiff of the log posterior. Models come from the grid of the
benchmark, whose functions share a program, so a test costs no compilation of its own.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.nssm_grid import (
    EMISSIONS,
    LENGTH,
    STEPS,
    dense,
    draw,
    examine,
    is_borne_out,
    model_of,
    run,
    variant,
)

from elk_ssm.linalg.structure import Diagonal, ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.posed import pose
from elk_ssm.smoothing import log_prob, smooth
from elk_ssm.solution import Status

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("dynamics", ["autoregression", "double well"])
def test_converged_is_a_maximum_with_definite_covariances(dynamics):
    converged, count = 0, 0
    for emission in EMISSIONS[::2]:
        model = model_of(dynamics, emission)
        for name in ("drawn", "outlier", "zeros"):
            y = jnp.asarray(variant(draw(dynamics, emission, 0), name))
            result = run(model, y)
            count += 1
            if int(result.status) == Status.converged:
                converged += 1
                claim = examine(model, y, result)
                assert is_borne_out(claim), (emission, name, claim)
    assert converged >= 0.9 * count


@pytest.mark.parametrize("dynamics", ["growth", "driven growth"])
def test_the_growth_model_converges_in_every_seed(dynamics):
    model = model_of(dynamics, "square / 20")
    for seed in range(50):
        y = jnp.asarray(draw(dynamics, "square / 20", seed))
        result = run(model, y)
        assert int(result.status) == Status.converged, seed
        assert bool(jnp.all(result.covariances > 0)), seed


@pytest.mark.parametrize(
    ("emission", "value"), [("square", 3.0), ("Poisson, square", 4.0)]
)
def test_a_minimum_by_symmetry_is_left(emission, value):
    model = model_of("autoregression", emission)
    y = jnp.full((LENGTH, 1), value)
    result = run(model, y)
    assert int(result.status) == Status.converged
    assert is_borne_out(examine(model, y, result))
    # Either sign will do, and it may change on the way: a local mode as well.
    assert abs(float(jnp.median(result.means**2)) - value) < 0.25 * value


@pytest.mark.parametrize("count", [0.0, 1e3, 1e5, 1e9])
def test_steep_counts_reach_their_mode(count):
    model = model_of("random walk", "Poisson, log rate")
    model = replace(model, initial_covariance=Diagonal(jnp.full(1, 100.0)))
    y = jnp.full((LENGTH, 1), count)
    result = run(model, y)
    assert int(result.status) == Status.converged
    if count:
        assert abs(float(result.means[LENGTH // 2, 0]) - np.log(count)) < 1e-4


@pytest.mark.parametrize("value", [1e3, 1e5])
def test_a_large_return_is_a_large_volatility(value):
    model = model_of("random walk", "log variance")
    model = replace(model, initial_covariance=Diagonal(jnp.full(1, 100.0)))
    result = run(model, jnp.full((LENGTH, 1), value))
    assert int(result.status) == Status.converged
    assert abs(float(result.means[LENGTH // 2, 0]) - 2 * np.log(value)) < 0.1


def poisson_or_return(h, y, u):
    return jnp.where(
        u > 0, y[0] * h[0] - jnp.exp(h[0]), -h[0] / 2 - y[0] ** 2 / 2 * jnp.exp(-h[0])
    )


@pytest.mark.parametrize(
    ("kind", "value", "mode"), [(1.0, 1e3, 6.91), (1.0, 1e5, 11.51), (0.0, 1e3, 13.8)]
)
def test_steep_densities_in_single_precision(kind, value, mode):
    with jax.enable_x64(False):
        model = NonlinearSSM(
            jnp.zeros(1),
            ScaledIdentity(100.0),
            lambda z, u: z,
            ScaledIdentity(0.01),
            log_density=poisson_or_return,
        )
        y, u = jnp.full((20, 1), value), jnp.full(20, kind)
        result = smooth(model, y, u, backend="sequential")
    assert result.means.dtype == jnp.float32
    assert int(result.status) == Status.converged
    np.testing.assert_allclose(result.means[10, 0], mode, atol=0.02)


@pytest.mark.parametrize("kind", [0.0, 1.0])
def test_an_unbounded_posterior_has_a_status(kind):
    def density(h, y, u):
        # A tail that outgrows every Gaussian, and a singularity at a finite place.
        distance = jnp.abs(h[0] - 0.3)
        return jnp.where(u > 0, h[0] ** 4, -3 * jnp.log(distance))

    one = ScaledIdentity(1.0)
    model = NonlinearSSM(
        jnp.ones(1), one, lambda z, u: 0.5 * z, one, log_density=density
    )
    y, u = jnp.zeros((3, 1)), jnp.full(3, kind)
    result = smooth(model, y, u, backend="sequential")
    assert int(result.status) == Status.unbounded
    assert bool(jnp.all(jnp.isfinite(result.means)))


@pytest.mark.parametrize("linearization", ["unscented", "cubature"])
def test_sigma_points_leave_a_symmetric_start(linearization):
    for emission, value in (("range", 0.0), ("range", 2.0)):
        model = model_of("two wells", emission)
        y = jnp.full((20, 1), value)
        result = run(model, y, linearization=linearization)
        assert bool(jnp.all(jnp.isfinite(result.covariances)))
        assert int(result.status) != Status.saddle


def test_second_derivatives_through_the_mode_are_those_of_the_gradient():
    y = jnp.asarray(np.random.default_rng(0).standard_t(3, (8, 1)))

    def log_likelihood(theta):
        model = NonlinearSSM(
            jnp.zeros(1),
            ScaledIdentity(1.0),
            lambda z, u: theta[0] * jnp.sin(z),
            ScaledIdentity(jnp.exp(theta[1])),
            log_density=lambda h, y, u: jax.scipy.stats.t.logpdf(
                y[0], 3.0, loc=h[0], scale=jnp.exp(theta[1] / 2)
            ),
        )
        return smooth(model, y, tol=1e-12, backend="sequential").log_likelihood

    theta, h = jnp.array([0.9, -1.5]), 1e-5
    hessian = jax.jit(jax.hessian(log_likelihood))(theta)
    gradient = jax.jit(jax.grad(log_likelihood))
    numeric = jnp.stack(
        [
            (gradient(theta + h * e) - gradient(theta - h * e)) / (2 * h)
            for e in jnp.eye(2)
        ]
    )
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-9)
    np.testing.assert_allclose(hessian, numeric, rtol=1e-6, atol=1e-6)


def test_the_log_posterior_of_the_grid_is_the_public_one():
    model = model_of("autoregression", "square")
    y = jnp.asarray(draw("autoregression", "square", 0))
    states = jnp.ones((LENGTH, 1))
    ours = dense(pose(model, y, STEPS), states.ravel())[0]
    np.testing.assert_allclose(-ours, log_prob(model, states, y, STEPS), rtol=1e-12)
