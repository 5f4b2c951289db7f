import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle
from tests.kalman.test_filtering import BACKENDS, TIGHT, diagonal_model

from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import Diagonal, to_dense


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gaps", [True, False])
def test_equals_conditioning_one_big_gaussian(backend, gaps):
    data = oracle.random_data()
    data = oracle.with_gaps(data) if gaps else data
    options = {"cross_covariances": True, "backend": backend}
    with jax.enable_x64(True):
        found = lgssm_smoother(oracle.as_model(data), data.y, data.u, **options)
    means, covs, crosses, log_density = oracle.smoothed(data)
    assert np.allclose(found.smoothed_means, means, **TIGHT)
    assert np.allclose(found.smoothed_covariances.matrix, covs, **TIGHT)
    assert np.allclose(found.cross_covariances.matrix, crosses, **TIGHT)
    assert np.allclose(found.log_likelihood, log_density, **TIGHT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_diagonal_equals_dense(backend):
    with jax.enable_x64(True):
        model, data = diagonal_model()
        data = oracle.with_gaps(data)
        dense = {
            k: to_dense(v) for k, v in model._asdict().items() if type(v) is Diagonal
        }
        options = {"cross_covariances": True, "backend": backend}
        small = lgssm_smoother(model, data.y, data.u, **options)
        large = lgssm_smoother(model._replace(**dense), data.y, data.u, **options)
        assert isinstance(small.smoothed_covariances, Diagonal)
        for field in ("smoothed_covariances", "cross_covariances"):
            full = getattr(large, field).matrix
            assert np.allclose(to_dense(getattr(small, field)), full, **TIGHT)
    assert np.allclose(small.smoothed_means, large.smoothed_means, **TIGHT)


def test_the_last_step_is_the_filter():
    data = oracle.random_data()
    model = jax.tree.map(jnp.float32, oracle.as_model(data))
    found = lgssm_smoother(model, jnp.float32(data.y), jnp.float32(data.u))
    assert np.array_equal(found.smoothed_means[-1], found.filtered_means[-1])
    assert found.cross_covariances is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_step_whose_dynamics_are_not_even_finite(backend):
    data = oracle.random_data(T=1)
    data = data._replace(Q=np.full_like(data.Q, np.nan))
    model = jax.tree.map(jnp.float32, oracle.as_model(data))
    found = lgssm_smoother(model, jnp.float32(data.y), backend=backend)
    assert np.array_equal(found.smoothed_means, found.filtered_means)
    assert np.isfinite(found.smoothed_covariances.matrix).all()


def test_temporary_memory_is_a_few_states_not_a_few_covariances():
    """What the sequential smoother keeps besides its results is the filter's output."""
    T, D = 2000, 4
    data = oracle.random_data(T=1, D=D, E=D)
    model = jax.tree.map(jnp.float32, oracle.as_model(data, static=True))
    y = jnp.zeros((T, D))
    run = jax.jit(lambda y: lgssm_smoother(model, y, backend="sequential")[3:5])
    used = run.lower(y).compile().memory_analysis().temp_size_in_bytes
    filtered = 4 * T * (D * D + D)
    assert used < 2 * filtered
