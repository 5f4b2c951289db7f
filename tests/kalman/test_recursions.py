"""The recursions of a linear-Gaussian model find the same wherever they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle
from tests.linalg.toy import Interleaved

import elk_ssm as elk
from elk_ssm.kalman.forward import filter_of
from elk_ssm.kalman.future import future_of, two_filters
from elk_ssm.kalman.lgssm import pose
from elk_ssm.kalman.rauch_tung_striebel import rauch_tung_striebel
from elk_ssm.linalg.structure import BlockDiagonal, Diagonal
from elk_ssm.parallel.driver import run

pytestmark = pytest.mark.usefixtures("x64")
SEQUENTIAL = {"backend": "sequential"}
PLACES = {
    "lanes": {"backend": "sequential", "lanes": 3},
    "prefix": {"backend": "associative"},
}


def close(found, expected):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("place", PLACES)
def test_each_is_stated_once_and_runs_anywhere(place):
    data = oracle.with_gaps(oracle.random_data(T=7))
    model = jax.tree.map(jnp.asarray, oracle.as_model(data))
    problem = pose(model, jnp.asarray(data.y), jnp.asarray(data.u), None)

    @jax.jit
    def every():
        moments = run(filter_of(problem), **SEQUENTIAL)
        quick = rauch_tung_striebel(problem, moments, cross=True)
        back = quick, two_filters(problem, moments), future_of(problem)
        found = [
            [run(one, reverse=True, **how) for one in back]
            for how in (SEQUENTIAL, PLACES[place])
        ]
        return found, moments, run(filter_of(problem), **PLACES[place])

    (expected, found), moments, filtered = every()
    close(filtered, moments)
    # Cov(x_{-1}, x_0) is of no state, and the same all the same.
    close(found, expected)
    (distances, spreads), lagged = found[0]
    means, covs, into = found[1]
    close((moments[0] + distances, spreads.matrix), (means, covs))
    crosses = covs[:-1] @ jnp.swapaxes(into[1:], -1, -2)
    close(lagged.matrix[1:], crosses)


def grouped(kind, T=7, count=2):
    """A model of 2 x 2 blocks, static and not, and of what is diagonal anyway."""
    D = 2 * count
    rng = np.random.default_rng(0)

    def covariance(*lead):
        root = jnp.asarray(rng.normal(size=(*lead, count, 2, 2)))
        return kind(root @ jnp.swapaxes(root, -1, -2) + 0.1 * jnp.eye(2))

    weights = kind(jnp.asarray(0.6 * rng.normal(size=(T, count, 2, 2))))
    emission = Diagonal(jnp.linspace(-0.5, 2.0, D))
    one = elk.ScaledIdentity(1.0)
    model = elk.LGSSM(jnp.ones(D), one, weights, covariance(), emission, covariance(T))
    emissions = jnp.asarray(rng.normal(size=(T, D)))
    return model, emissions.at[2].set(jnp.nan).at[4, 1].set(jnp.nan)


def every_task(model, emissions, backend):
    options = {"cross_covariances": True, "backend": backend}
    smoothed = elk.lgssm_smoother(model, emissions, **options)
    drawn = elk.lgssm_sample(model, jax.random.key(0), emissions, backend=backend)
    ahead = elk.lgssm_predict(model, emissions[:5], 2, backend=backend)
    return smoothed, drawn, ahead


@pytest.mark.parametrize("kind", [BlockDiagonal, Interleaved])
@pytest.mark.parametrize("backend", ["sequential", "associative"])
def test_blocks_stay_blocks_and_find_what_dense_matrices_find(kind, backend):
    model, emissions = grouped(kind)
    dense = {k: v.to_dense() for k, v in model._asdict().items() if type(v) is kind}
    run_all = jax.jit(every_task, static_argnames="backend")
    found = run_all(model, emissions, backend)
    expected = run_all(model._replace(**dense), emissions, backend)

    def is_kind(x):
        return isinstance(x, kind)

    kinds = [is_kind(x) for x in jax.tree.leaves(found, is_leaf=is_kind)]
    assert sum(kinds) == 5
    full = jax.tree.map(
        lambda x: x.to_dense() if is_kind(x) else x, found, is_leaf=is_kind
    )
    close(full, expected)


def test_a_model_of_blocks_is_never_made_dense():
    model, emissions = grouped(BlockDiagonal, count=5)
    program = jax.make_jaxpr(lambda y: elk.lgssm_smoother(model, y))(emissions)
    # Of ten dimensions in blocks of two no array is 10 x 10.
    assert "[10,10]" not in str(program)
    assert ",10,10]" not in str(program)
