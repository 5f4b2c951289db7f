"""What an accelerator runs for small states: combinations written out for entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.kalman.runs import Run, combine_runs
from elk_ssm.kernels.entries import entry_by_entry

STEPS, D, E = 21, 2, 2


def model_of(weights):
    F, H, Q, R = weights
    return elk.LGSSM(
        jnp.zeros(D), jnp.eye(D), F, Q @ Q.T + 0.1 * jnp.eye(D), H, elk.Diagonal(R)
    )


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    F, H, Q = (0.6 * rng.normal(size=(D, D)) for _ in range(3))
    return F, H, Q, np.array([0.5, 0.3])


@pytest.fixture(scope="module")
def emissions():
    y = np.random.default_rng(1).normal(size=(STEPS, E))
    y[4], y[9, 1], y[-1] = np.nan, np.nan, np.nan
    return y


def log_likelihood(weights, emissions, backend, form):
    model = model_of(weights)
    return elk.lgssm_log_likelihood(model, emissions, backend=backend, form=form)


def smoothed(weights, emissions, backend, form):
    model, how = model_of(weights), {"backend": backend, "form": form}
    return elk.lgssm_smoother(model, emissions, cross_covariances=True, **how)


def agree(found, expected, tolerance=1e-9):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", ["covariance", "square_root"])
def test_smoother_and_gradient(weights, emissions, form, platforms, x64):
    weights, emissions = jax.tree.map(jnp.asarray, (weights, emissions))
    expected = smoothed(weights, emissions, "sequential", form)
    slope = jax.grad(log_likelihood)(weights, emissions, "sequential", form)
    platforms("cuda")
    agree(smoothed(weights, emissions, "associative", form), expected)
    found = jax.grad(log_likelihood)(weights, emissions, "associative", form)
    agree(found, slope)


def test_a_model_that_needs_care_and_a_batch(weights, emissions, platforms, x64):
    def found(backend):
        def one(y, noise):
            Q = np.diag([0.0, 1.0])
            model = elk.LGSSM(
                np.zeros(D), np.eye(D), weights[0], Q, weights[1], elk.Diagonal(noise)
            )
            return elk.lgssm_smoother(model, y, backend=backend)

        noises = jnp.array([[1e-9, 1.0], [1.0, 2.0]])
        return jax.vmap(one)(jnp.stack([emissions, -emissions]), noises)

    expected = found("sequential")
    platforms("cuda")
    agree(found("associative"), expected, 1e-6)


def test_elk_of_a_small_recurrence(weights, platforms, x64):
    inputs = jnp.asarray(np.random.default_rng(2).normal(size=(STEPS, D)))

    def step(x, u):
        return jnp.tanh(jnp.asarray(weights[0]) @ x + u)

    def states(inputs, **how):
        method = elk.elk(1.0)
        return elk.evaluate(step, jnp.zeros(D), inputs, method=method, **how).states

    def total(inputs):
        return jnp.sum(states(inputs, backend="associative") ** 2)

    def by_scan(inputs):
        scan = jax.lax.scan(lambda x, u: (step(x, u),) * 2, jnp.zeros(D), inputs)
        return scan[1]

    platforms("cuda")
    agree(states(inputs, backend="associative"), by_scan(inputs), 1e-6)
    agree(
        jax.grad(total)(inputs),
        jax.grad(lambda u: jnp.sum(by_scan(u) ** 2))(inputs),
        1e-6,
    )


@pytest.mark.parametrize(("size", "small"), [(2, True), (4, True), (5, False)])
def test_which_combinations_are_written_out(size, small):
    """From D = 5 on a compiler would take a minute to fuse one."""
    shapes = (size, size), (size,), (size, size), (size, size + 1)
    run = Run(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert (entry_by_entry(combine_runs, run, run) is not None) == small
