"""Filter and smoother with time sharded over eight devices; see `test_on_a_mesh`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.collectives import collectives, count, entries
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tests.kalman import oracle

import elk_ssm as elk
from elk_ssm.linalg.structure import Diagonal, ScaledIdentity, to_dense

P_ = 8
# Of sixteen steps every device has two; of thirteen the last device has none.
EVEN, UNEVEN = 16, 13
CLOSE = 1e-10

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()), ("time",))


@pytest.mark.parametrize(
    ("backend", "static", "length", "form"),
    [
        ("sequential", False, UNEVEN, "covariance"),
        ("sequential", True, EVEN, "covariance"),
        ("associative", False, UNEVEN, "covariance"),
        ("sequential", False, UNEVEN, "square_root"),
    ],
)
def test_the_sharded_smoother_is_the_dense_posterior(
    mesh, backend, static, length, form
):
    data = oracle.with_gaps(oracle.random_data(T=length, varying=not static))
    model = oracle.as_model(data, static)
    if not static:
        # Entry 0 of the dynamics is never used, whatever it holds.
        weights = jnp.asarray(data.F).at[0].set(jnp.nan)
        model = model._replace(dynamics_weights=weights)
    found = elk.lgssm_smoother(
        model,
        jnp.asarray(data.y),
        jnp.asarray(data.u),
        cross_covariances=True,
        form=form,
        backend=backend,
        mesh=mesh,
    )
    means, covs, crosses, evidence = oracle.smoothed(data)
    filtered_means, filtered_covs = oracle.filtered(data)
    np.testing.assert_allclose(found.log_likelihood, evidence, rtol=CLOSE)
    np.testing.assert_allclose(found.filtered_means, filtered_means, atol=CLOSE)
    np.testing.assert_allclose(
        to_dense(found.filtered_covariances), filtered_covs, atol=CLOSE
    )
    np.testing.assert_allclose(found.smoothed_means, means, atol=CLOSE)
    np.testing.assert_allclose(to_dense(found.smoothed_covariances), covs, atol=CLOSE)
    np.testing.assert_allclose(to_dense(found.cross_covariances), crosses, atol=CLOSE)
    if length == EVEN:
        assert found.smoothed_means.sharding.spec[0] == "time"


def test_there_is_no_square_root_of_exact_emissions(mesh):
    one, y = ScaledIdentity(1.0), jnp.ones((UNEVEN, 1))

    def value(r):
        R = ScaledIdentity(r)
        model = elk.LGSSM(jnp.zeros(1), elk.Diffuse(), one, one, one, R)
        return elk.lgssm_log_likelihood(model, y, mesh=mesh)

    with pytest.raises(ValueError, match="no exact emissions under a mesh"):
        value(0.0)
    of_traced = jax.jit(value)
    assert np.isnan(of_traced(0.0))
    assert np.isfinite(of_traced(0.3))


def diagonal_model(decay):
    one = ScaledIdentity(1.0)
    return elk.LGSSM(jnp.zeros(2), one, Diagonal(decay), one, one, ScaledIdentity(0.3))


def test_diagonal_models_batches_and_gradients(mesh):
    emissions = jnp.asarray(np.random.default_rng(0).normal(size=(3, UNEVEN, 2)))

    def evidence(decay, mesh):
        def one(y):
            return elk.lgssm_log_likelihood(diagonal_model(decay), y, mesh=mesh)

        return jnp.sum(jax.vmap(one)(emissions) ** 2)

    decay = jnp.asarray([0.9, -0.4])
    found = jax.value_and_grad(evidence)(decay, mesh)
    expected = jax.value_and_grad(evidence)(decay, None)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-11)


def test_the_filter_gathers_once_and_the_smoother_no_more(mesh):
    """What all devices say of their steps serves the past and the future."""
    length = 1600
    data = oracle.random_data(T=6, D=3)
    model = jax.tree.map(jnp.asarray, oracle.as_model(data, static=True))
    shape, sharding = (length, data.y.shape[1]), NamedSharding(mesh, P("time"))
    emissions = jax.ShapeDtypeStruct(shape, jnp.float64, sharding=sharding)
    for task in (elk.lgssm_filter, elk.lgssm_smoother):
        program = jax.jit(lambda y, task=task: task(model, y, mesh=mesh))
        compiled = program.lower(emissions).compile()
        found = collectives(compiled)
        passes = [each for each in found if entries([each]) > P_]
        assert count(passes) == {"all-gather": 1}
        # The one number that is gathered besides is the log likelihood.
        assert len(found) <= 2
        assert entries(found) <= P_ * (3 * 9 + 2 * 3)
        assert compiled.output_shardings.filtered_means.spec[0] == "time"
