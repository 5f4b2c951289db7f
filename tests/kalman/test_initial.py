"""Priors that are no matrix: diffuse as statsmodels has it, and stationary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from statsmodels.tsa.statespace.structural import UnobservedComponents

import elk_ssm as elk
from elk_ssm.kalman.lgssm import pose
from elk_ssm.linalg.structure import to_dense

ONE = elk.ScaledIdentity(1.0)


def series(steps=40):
    rng = np.random.default_rng(2)
    y = np.cumsum(rng.normal(size=steps)) + rng.normal(size=steps)
    y[[0, 4, 5, 20]] = np.nan
    return y


def by_statsmodels(y, parameters, **components):
    """Its model, ours from its matrices, and its smoother under the exact prior."""
    theirs = UnobservedComponents(y, use_exact_diffuse=True, **components)
    found = theirs.smooth(parameters, return_ssm=True)
    ssm = theirs.ssm
    Q = ssm["selection"] @ ssm["state_cov"] @ ssm["selection"].T
    start = theirs.ssm.initialization
    size = ssm.k_states
    constant, diffuse, rest = start(model=ssm)[:3]
    dims = np.diag(diffuse) > 0
    assert np.array_equal(diffuse, np.diag(dims.astype(float)))
    ours = elk.LGSSM(
        jnp.asarray(constant),
        elk.Diffuse(jnp.asarray(dims), jnp.asarray(rest)),
        jnp.asarray(ssm["transition"]),
        jnp.asarray(Q),
        jnp.asarray(ssm["design"]),
        jnp.asarray(ssm["obs_cov"]),
    )
    assert bool(dims.sum() < size) is ("autoregressive" in components)
    return ours, found


CASES = {
    "level": ({"level": "local level"}, [1.0, 0.5]),
    "season": ({"level": "local level", "seasonal": 4}, [1.0, 0.5, 0.2]),
    "autoregressive": (
        {"level": "local level", "autoregressive": 2},
        [0.5, 0.3, 0.4, 0.6, -0.2],
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", CASES)
def test_diffuse_is_the_exact_prior_of_statsmodels(kind):
    components, parameters = CASES[kind]
    y = series()
    model, theirs = by_statsmodels(y, parameters, **components)
    found = elk.lgssm_smoother(model, jnp.asarray(y)[:, None])
    np.testing.assert_allclose(found.log_likelihood, theirs.llf, rtol=1e-9)
    dims, covariance = model.initial_covariance
    if not dims.all():  # of which statsmodels, too, solves the stationary part
        part = model._replace(initial_covariance=elk.Diffuse(dims, elk.Stationary()))
        start = pose(part, jnp.asarray(y)[:, None], None, None).initial_covariance
        kept = np.asarray(start.to_dense())[~dims][:, ~dims]
        np.testing.assert_allclose(kept, covariance[~dims][:, ~dims], rtol=1e-9)
    close = {"rtol": 1e-7, "atol": 1e-8}
    means, covs = theirs.smoothed_state.T, theirs.smoothed_state_cov.T
    np.testing.assert_allclose(found.smoothed_means, means, **close)
    np.testing.assert_allclose(to_dense(found.smoothed_covariances), covs, **close)
    # What the data leave open at first has no variance of its own yet.
    phase = theirs.nobs_diffuse
    known = to_dense(found.filtered_covariances)[phase:]
    exact = theirs.filtered_state_cov.T[phase:]
    np.testing.assert_allclose(known, exact, **close)
    variances = np.diagonal(to_dense(found.filtered_covariances), axis1=1, axis2=2)
    np.testing.assert_array_equal(
        np.isinf(variances)[0], np.asarray(model.initial_covariance.dims)
    )


@pytest.mark.usefixtures("x64")
def test_regression_on_inputs_that_do_not_tell_apart_stays_open():
    """Two coefficients of one and the same regressor: their sum is known only."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = 3 * x + 0.1 * rng.normal(size=12)
    H = np.stack([x, x], axis=1)[:, None]
    zero, eye = jnp.zeros((2, 2)), jnp.eye(2)
    model = elk.LGSSM(
        jnp.zeros(2), elk.Diffuse(), eye, zero, jnp.asarray(H), elk.ScaledIdentity(0.01)
    )
    found = elk.lgssm_smoother(model, jnp.asarray(y)[:, None])
    assert np.isinf(np.diagonal(to_dense(found.smoothed_covariances)[-1])).all()
    one = model._replace(
        initial_mean=jnp.zeros(1),
        dynamics_weights=jnp.eye(1),
        dynamics_covariance=jnp.zeros((1, 1)),
        emission_weights=jnp.asarray(H[..., :1]),
    )
    least = elk.lgssm_filter(one, jnp.asarray(y)[:, None])
    slope = (x @ y) / (x @ x)
    np.testing.assert_allclose(least.filtered_means[-1], slope, rtol=1e-10)
    variance = 0.01 / (x @ x)
    np.testing.assert_allclose(to_dense(least.filtered_covariances)[-1], variance)


@pytest.mark.usefixtures("x64")
def test_the_limit_of_wide_priors_in_values_gradients_and_draws():
    y = jnp.asarray(series())[:, None]
    F = jnp.array([[1.0, 1.0], [0.0, 1.0]])

    def model_of(scale, initial):
        Q, H = jnp.diag(scale * jnp.array([0.5, 0.1])), jnp.array([[1.0, 0.0]])
        return elk.LGSSM(jnp.zeros(2), initial, F, Q, H, ONE)

    def evidence(scale):
        return elk.lgssm_log_likelihood(model_of(scale, elk.Diffuse()), y)

    value, slope = jax.jit(jax.value_and_grad(evidence))(1.0)
    wide, h, at = 1e10, 1e-4, jax.jit(evidence)
    limit = elk.lgssm_log_likelihood(model_of(1.0, elk.ScaledIdentity(wide)), y)
    np.testing.assert_allclose(value, limit + np.log(wide), rtol=1e-8)
    difference = (at(1 + h) - at(1 - h)) / (2 * h)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    model = model_of(1.0, elk.Diffuse())
    draws = elk.lgssm_sample(model, jax.random.key(0), y, num_samples=4000)
    found = elk.lgssm_smoother(model, y)
    spread = np.sqrt(
        np.diagonal(to_dense(found.smoothed_covariances), axis1=1, axis2=2)
    )
    off = (draws.mean(0) - found.smoothed_means) / spread
    assert abs(off).max() < 5 / np.sqrt(4000)
    np.testing.assert_allclose(draws.std(0) / spread, 1, atol=0.06)
    ahead = elk.lgssm_predict(model, y, 3)
    longer = elk.lgssm_filter(model, jnp.concatenate([y, jnp.full((3, 1), jnp.nan)]))
    np.testing.assert_allclose(ahead.state_means, longer.filtered_means[-3:])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["dense", "diagonal", "mixed"])
def test_stationary_solves_the_equation_of_lyapunov(kind):
    rng = np.random.default_rng(1)
    F = rng.normal(size=(3, 3))
    F *= 0.99 / np.abs(np.linalg.eigvals(F)).max()
    Q = np.diag(rng.uniform(size=3))
    if kind == "diagonal":
        F = np.diag([0.9, -0.99999, 0.0])
    declared = elk.Diagonal(jnp.diag(F)) if kind == "diagonal" else jnp.asarray(F)
    noise = jnp.asarray(Q) if kind == "dense" else elk.Diagonal(jnp.diag(Q))
    model = elk.LGSSM(jnp.zeros(3), elk.Stationary(), declared, noise, ONE, ONE)
    y = jnp.full((2, 3), jnp.nan)
    P = to_dense(pose(model, y, None, None).initial_covariance)
    expected = scipy.linalg.solve_discrete_lyapunov(F, Q)
    np.testing.assert_allclose(P, expected, rtol=1e-9, atol=1e-12)
    filtered = to_dense(elk.lgssm_filter(model, y).filtered_covariances)
    np.testing.assert_allclose(filtered[1], expected, rtol=1e-9, atol=1e-12)

    def variance(a):
        model = elk.LGSSM(
            jnp.zeros(1), elk.Stationary(), elk.ScaledIdentity(a), *[ONE] * 3
        )
        return pose(model, y[:, :1], None, None).initial_covariance.variances()[0]

    np.testing.assert_allclose(jax.grad(variance)(0.5), 1 / 0.75**2, rtol=1e-12)


def test_what_does_not_go_together_is_said():
    model = elk.LGSSM(jnp.zeros(2), elk.Stationary(), ONE, ONE, ONE, ONE)
    y = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="eigenvalue of size 1, so there is no stat"):
        elk.lgssm_filter(model, y)
    traced = jax.jit(
        lambda a: elk.lgssm_log_likelihood(
            model._replace(dynamics_weights=elk.ScaledIdentity(a)), y
        )
    )
    assert np.isnan(traced(1.0))
    assert np.isfinite(traced(0.5))
    moving = model._replace(dynamics_weights=elk.ScaledIdentity(jnp.full(3, 0.5)))
    with pytest.raises(ValueError, match="that do not vary in time"):
        elk.lgssm_filter(moving, y)
    for wrong, message in (
        (elk.Diffuse(jnp.ones(3, bool), 1.0), r"boolean of shape \(2,\); got bool"),
        (elk.Diffuse(jnp.ones(2), 1.0), r"boolean of shape \(2,\); got float32"),
        (elk.Diffuse(jnp.ones(2, bool)), "dims need a covariance"),
        (elk.Diffuse(None, 1.0), "a covariance needs dims"),
    ):
        with pytest.raises(ValueError, match=message):
            elk.lgssm_filter(model._replace(initial_covariance=wrong), y)
    turned = jnp.array([[0.5, 0.0], [0.1, 1.0]])
    some = elk.Diffuse(jnp.array([True, False]), elk.Stationary())
    coupled = model._replace(initial_covariance=some, dynamics_weights=turned)
    with pytest.raises(ValueError, match="must not depend on those that are"):
        elk.lgssm_filter(coupled, y)
    number = model._replace(
        initial_covariance=elk.Diffuse(jnp.array([True, False]), 1.0)
    )
    inside = jax.jit(elk.lgssm_log_likelihood)(number, y)
    np.testing.assert_allclose(inside, elk.lgssm_log_likelihood(number, y), rtol=1e-6)
    vague = model._replace(initial_covariance=elk.Diffuse())
    with pytest.raises(ValueError, match="needs form='square_root' or 'auto'"):
        elk.lgssm_filter(vague, y, form="covariance")
