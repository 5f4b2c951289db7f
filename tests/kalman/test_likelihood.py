import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle
from tests.kalman.test_filtering import diagonal_model

from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.likelihood import lgssm_log_likelihood


def case(kind, T=5):
    if kind == "diagonal":
        model, data = diagonal_model(D=2, T=T)
    else:
        data = oracle.random_data(D=2, E=2, T=T)
        model = oracle.as_model(data)
    return model, oracle.with_gaps(data)


def gradient(kind, backend, dtype):
    with jax.enable_x64(dtype == np.float64):
        model, data = case(kind)
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), model)
        y, u = jnp.asarray(data.y, dtype), jnp.asarray(data.u, dtype)

        def score(model, y):
            return lgssm_log_likelihood(model, y, u, backend=backend)

        value, grads = jax.jit(jax.value_and_grad(score, argnums=(0, 1)))(model, y)
        return jax.tree.map(np.asarray, (value, grads))


@pytest.fixture(scope="module", params=["dense", "diagonal"])
def reference(request):
    return request.param, gradient(request.param, "sequential", np.float64)


def test_sequential_and_associative_agree(reference):
    kind, expected = reference
    found = gradient(kind, "associative", np.float64)
    close = lambda a, b: np.allclose(a, b, rtol=1e-8, atol=1e-9)  # noqa: E731
    assert jax.tree.all(jax.tree.map(close, found, expected))


def test_float32_gradients_are_finite_and_right(reference):
    kind, (_, expected) = reference
    _, found = gradient(kind, "sequential", np.float32)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert np.isfinite(a).all()
        # A few hundred roundings, against the largest entry of each parameter.
        assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1.0)


def test_gradient_equals_finite_differences(reference):
    kind, (_, (grads, _)) = reference
    with jax.enable_x64(True):
        model, data = case(kind)
        rng = np.random.default_rng(1)
        # Symmetric directions, so that covariances stay covariances.
        step = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), model)
        for name in (
            "initial_covariance",
            "dynamics_covariance",
            "emission_covariance",
        ):
            part = getattr(step, name)
            if kind == "dense":
                part = type(part)(part[0] + np.swapaxes(part[0], -1, -2))
            step = step._replace(**{name: part})

        def along(h):
            moved = jax.tree.map(lambda leaf, d: leaf + h * d, model, step)
            return lgssm_log_likelihood(moved, data.y, data.u)

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        dots = jax.tree.map(lambda g, d: np.sum(g * d), grads, step)
        assert np.allclose(sum(jax.tree.leaves(dots)), slope, rtol=1e-6)


def test_a_missing_emission_has_no_derivative(reference):
    kind, (_, (_, by_emission)) = reference
    missing = np.isnan(case(kind)[1].y)
    assert not by_emission[missing].any()
    assert by_emission[~missing].all()


def test_second_derivatives_of_few_emissions_in_single_precision():
    """Steps that say nothing of most dimensions, joined again and again."""
    rng = np.random.default_rng(0)
    D, T = 4, 8
    F, H, y = 0.5 * np.eye(D), rng.normal(size=(1, D)), rng.normal(size=(T, 1))
    F, H, y = (jnp.float32(x) for x in (F + 0.1 * rng.normal(size=(D, D)), H, y))
    eye = jnp.eye(D, dtype=jnp.float32)

    def loss(backend):
        def value(noise):
            model = LGSSM(eye[0], eye, F, eye, H, noise * eye[:1, :1])
            return lgssm_log_likelihood(model, y, backend=backend)

        return value

    one = jnp.float32(1)
    found = jax.jit(jax.hessian(loss("associative")))(one)
    want = jax.jit(jax.hessian(loss("sequential")))(one)
    np.testing.assert_allclose(found, want, rtol=1e-4)
