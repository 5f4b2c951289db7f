"""Other structures find in every recursion what their dense matrices find."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.linalg.toy import Interleaved

import elk_ssm as elk
from elk_ssm.kalman.affine import affine_scan
from elk_ssm.kalman.damped import damped_evidence, damped_filter, damped_smoother
from elk_ssm.linalg.structure import BlockDiagonal, Dense

T, D = 7, 4
pytestmark = pytest.mark.usefixtures("x64")
BACKENDS = pytest.mark.parametrize("backend", ["sequential", "associative"])


def problem():
    rng = np.random.default_rng(0)
    blocks = jnp.asarray(rng.normal(size=(T, 2, 2, 2)) * 0.6)
    full = np.zeros((T, D, D))
    full[:, :2, :2], full[:, 2:, 2:] = blocks[:, 0], blocks[:, 1]
    offsets = jnp.asarray(rng.normal(size=(T, D)))
    noise = jnp.asarray(np.exp(rng.normal(size=(T, D)))).at[2, 1].set(jnp.inf)
    return BlockDiagonal(blocks), Dense(jnp.asarray(full)), offsets, noise


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        a, b = (x.to_dense() if isinstance(x, tuple) else x for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@BACKENDS
def test_affine_scans(backend):
    blocks, dense, offsets, _ = problem()

    @jax.jit
    def run(operator, offsets):
        scan = partial(affine_scan, operator, offsets, backend=backend)
        lanes = {"lanes": 3} if backend == "sequential" else {}
        return scan(), scan(reverse=True), scan(**lanes), scan(reverse=True, **lanes)

    close(run(blocks, offsets), run(dense, offsets))


@BACKENDS
def test_damped_filter_and_smoother(backend):
    blocks, dense, offsets, noise = problem()

    @jax.jit
    def run(operator):
        filtered = damped_filter(operator, offsets, noise, backend=backend)
        smoothed = damped_smoother(operator, offsets, noise, backend=backend)
        evidence = damped_evidence(operator, offsets, noise, filtered)
        return *filtered, *smoothed, *evidence

    found = run(blocks)
    assert found[1].blocks.shape == (T, 2, 2, 2)
    close(found, run(dense))


def test_linear_gaussian_models():
    blocks, dense, offsets, _ = problem()
    values = offsets[:, :3]

    @jax.jit
    def run(weights):
        one = elk.ScaledIdentity(0.5)
        model = elk.LGSSM(jnp.ones(D), one, weights, one, jnp.eye(D)[:3] + 0.1, one)
        found = elk.lgssm_smoother(model, values)
        return found.log_likelihood, found.smoothed_means, *found.smoothed_covariances

    close(run(blocks), run(dense))


def test_a_structure_that_the_library_does_not_have():
    blocks, _, offsets, noise = problem()
    toy = Interleaved(blocks.blocks)
    dense = Dense(toy.to_dense())
    columns = jax.vmap(toy.at(2).mv)(jnp.eye(D))
    np.testing.assert_allclose(columns.T, dense.matrix[2])

    @jax.jit
    def run(operator):
        pulled = affine_scan(operator, offsets, reverse=True, backend="sequential")
        smoothed = damped_smoother(operator, offsets, noise, backend="sequential")
        return pulled, *smoothed

    close(run(toy), run(dense))
