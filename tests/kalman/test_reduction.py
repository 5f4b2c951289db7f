"""More emissions than dimensions: D numbers a step say the same as E."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle

import elk_ssm as elk
from elk_ssm.kalman.lgssm import pose
from elk_ssm.kalman.reduction import reduced
from elk_ssm.linalg.structure import to_dense

pytestmark = pytest.mark.usefixtures("x64")
CLOSE = {"rtol": 1e-8, "atol": 1e-9}


def many(varying, gaps, size=2):
    data = oracle.random_data(T=7, D=size, E=7, varying=varying)
    return oracle.with_gaps(data) if gaps else data


WAYS = (
    ("sequential", True, False),
    ("sequential", False, False),
    ("sequential", False, True),
    ("associative", False, True),
)


@pytest.mark.parametrize(("backend", "varying", "gaps"), WAYS)
def test_is_the_dense_posterior(backend, varying, gaps):
    data = many(varying, gaps)
    found = elk.lgssm_smoother(
        oracle.as_model(data, not varying),
        jnp.asarray(data.y),
        jnp.asarray(data.u),
        backend=backend,
    )
    means, covs, _, evidence = oracle.smoothed(data)
    np.testing.assert_allclose(found.log_likelihood, evidence, **CLOSE)
    np.testing.assert_allclose(found.smoothed_means, means, **CLOSE)
    np.testing.assert_allclose(to_dense(found.smoothed_covariances), covs, **CLOSE)


def test_as_many_emissions_as_dimensions_are_left():
    data = many(False, False, size=3)
    model = oracle.as_model(data, True)
    few = reduced(pose(model, jnp.asarray(data.y), jnp.asarray(data.u), None))
    assert few.problem.values.shape == (7, 3)
    assert few.problem.observed.shape == (7, 3)
    assert few.terms.shape == (7,)
    same = reduced(few.problem)
    assert same.problem is few.problem


@pytest.mark.parametrize(("size", "gaps"), [(1, False), (2, True)])
def test_derivatives_by_loadings_that_are_zero(size, gaps):
    """At a column of zeros the residual is all that the derivative is about."""
    rng = np.random.default_rng(5)
    y = jnp.asarray(rng.normal(size=(6, 8)))
    y = y.at[2, 3].set(jnp.nan) if gaps else y
    H = rng.normal(size=(8, size))
    H[:, -1] = 0
    direction = jnp.asarray(rng.normal(size=(8, size)))
    mean = jnp.arange(1.0, size + 1)

    def evidence(step, form="covariance"):
        model = elk.LGSSM(
            mean,
            jnp.eye(size),
            0.9 * jnp.eye(size),
            0.3 * jnp.eye(size),
            jnp.asarray(H) + step * direction,
            elk.ScaledIdentity(0.5),
        )
        return elk.lgssm_log_likelihood(model, y, form=form)

    value, h = jax.jit(evidence), 1e-5
    difference = (value(h) - value(-h)) / (2 * h)
    for form in ("covariance", "square_root"):
        slope = jax.jit(jax.grad(evidence), static_argnums=1)(0.0, form)
        np.testing.assert_allclose(slope, difference, rtol=1e-7)


def test_exact_emissions_are_not_reduced_away():
    """One of seven has no noise: the posterior of it is what it says."""
    data = many(False, False)
    R = np.zeros(7)
    R[1:] = 0.5
    model = oracle.as_model(data, True)._replace(
        emission_covariance=elk.Diagonal(jnp.asarray(R))
    )
    y, u = jnp.asarray(data.y), jnp.asarray(data.u)
    exact = np.broadcast_to(np.diag(R), data.R.shape)
    means, _, _, evidence = oracle.smoothed(data._replace(R=exact))
    found = elk.lgssm_smoother(model, y, u)
    np.testing.assert_allclose(found.log_likelihood, evidence, rtol=1e-7)
    np.testing.assert_allclose(found.smoothed_means, means, rtol=1e-6, atol=1e-7)
    slope = jax.jit(
        jax.grad(
            lambda s: elk.lgssm_log_likelihood(
                model._replace(initial_mean=s * model.initial_mean), y, u
            )
        )
    )(1.0)
    assert np.isfinite(slope)
