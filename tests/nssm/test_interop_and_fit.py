"""dynamax's types in and out, and fitting by the approximate marginal likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.nssm.oracle import emissions_of, linear, pendulum

from elk_ssm.fitting import fit
from elk_ssm.interop import dynamax_nonlinear
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.smoothing import smooth

pytestmark = pytest.mark.usefixtures("x64")


def test_smooth_takes_and_returns_dynamaxs_types():
    nlgssm = pytest.importorskip("dynamax.nonlinear_gaussian_ssm")
    model = pendulum()
    y = emissions_of(model, 40)
    params = nlgssm.ParamsNLGSSM(
        model.initial_mean,
        0.1 * jnp.eye(2),
        lambda z: model.dynamics(z, None),
        model.dynamics_covariance,
        lambda z: model.emission(z, None),
        0.09 * jnp.eye(1),
    )
    posterior = dynamax_nonlinear.smooth(params, y, backend="sequential")
    assert type(posterior).__name__ == "PosteriorGSSMSmoothed"
    ours = smooth(model, y, backend="sequential")
    np.testing.assert_allclose(posterior.smoothed_means, ours.means, atol=1e-9)
    np.testing.assert_allclose(
        posterior.marginal_loglik, ours.log_likelihood, atol=1e-9
    )


def test_inputs_act_where_dynamax_has_them():
    nlgssm = pytest.importorskip("dynamax.nonlinear_gaussian_ssm")
    F, H, Q, R = linear()
    rng = np.random.default_rng(1)
    y, u = (jnp.asarray(rng.normal(size=(12, 2))) for _ in range(2))
    params = nlgssm.ParamsNLGSSM(
        jnp.zeros(2),
        jnp.eye(2),
        lambda z, u: F @ z + u,
        Q,
        lambda z, u: H @ z + 2 * u,
        R,
    )
    theirs = nlgssm.extended_kalman_smoother(params, y, inputs=u)
    ours = dynamax_nonlinear.smooth(params, y, u, backend="sequential")
    np.testing.assert_allclose(ours.smoothed_means, theirs.smoothed_means, atol=1e-6)
    np.testing.assert_allclose(ours.marginal_loglik, theirs.marginal_loglik, atol=1e-6)


def test_a_linear_model_keeps_its_posterior():
    F, H, Q, R = linear()
    eye = jnp.eye(2)
    model = LGSSM(jnp.zeros(2), eye, F, Q, H, R, jnp.ones(2), None, None, 0.5 * eye)
    rng = np.random.default_rng(1)
    y, u = (jnp.asarray(rng.normal(size=(12, 2))) for _ in range(2))
    ours = smooth(dynamax_nonlinear.from_lgssm(model), y, u, backend="sequential")
    expected = lgssm_smoother(model, y, u)
    np.testing.assert_allclose(ours.means, expected.smoothed_means, atol=1e-8)
    with pytest.raises(ValueError, match="static"):
        dynamax_nonlinear.from_lgssm(
            model._replace(dynamics_weights=jnp.broadcast_to(F, (12, 2, 2)))
        )


def test_other_parameters_are_refused():
    with pytest.raises(TypeError, match="ParamsNLGSSM"):
        dynamax_nonlinear.from_dynamax(object())


def random_walk(log_q):
    one, q = ScaledIdentity(1.0), ScaledIdentity(jnp.exp(log_q))
    return NonlinearSSM(jnp.zeros(1), one, lambda z, _: z, q, None, one)


def counted_walk(log_rate):
    """Two counts a step, of the same rate."""
    one = ScaledIdentity(1.0)

    def log_density(h, y, _):
        return jnp.sum(y * (h + log_rate) - jnp.exp(h + log_rate))

    return NonlinearSSM(
        jnp.zeros(1), one, lambda z, _: 0.5 * z, one, log_density=log_density
    )


@pytest.mark.parametrize(("build", "width"), [(random_walk, 1), (counted_walk, 2)])
def test_fit_takes_a_mask_for_what_nan_says(build, width):
    rng = np.random.default_rng(2)
    y = jnp.asarray(rng.poisson(3.0, size=(9, width)).astype(float))
    mask = jnp.ones(y.shape, bool).at[2, 0].set(False).at[5:].set(False)
    start = jnp.array(0.3)

    def fitted(emissions, mask=None):
        options = {"num_steps": 2, "backend": "sequential", "mask": mask}
        return fit(build, start, emissions, optimizer=optax.sgd(0.1), **options)

    masked, blank = fitted(y, mask), fitted(jnp.where(mask, y, jnp.nan))
    # The same program on the same numbers.
    np.testing.assert_allclose(masked.objective, blank.objective, rtol=1e-12)
    np.testing.assert_allclose(masked.params, blank.params, rtol=1e-12)
    assert abs(float(masked.params - fitted(y).params)) > 1e-6
    # Entries for a Gaussian, and steps, all of which is missing with an entry, if not.
    count = 4
    density = smooth(build(start), y, mask=mask, backend="sequential").log_likelihood
    np.testing.assert_allclose(masked.objective[0], density / count, rtol=1e-9)


def test_fit_recovers_the_maximum_of_the_likelihood():
    y = jnp.asarray(np.cumsum(np.random.default_rng(0).normal(size=60)))[:, None]
    build = random_walk
    fitted = fit(build, jnp.array(-3.0), y, num_steps=150, backend="sequential")
    grid = np.linspace(-3, 2, 201)
    values = jax.jit(
        jax.vmap(lambda g: smooth(build(g), y, backend="sequential").log_likelihood)
    )(jnp.asarray(grid))
    assert fitted.objective[-1] > fitted.objective[0]
    assert abs(float(fitted.params) - grid[int(np.argmax(values))]) < 0.05
    assert not np.any(np.asarray(fitted.statuses))
