import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle

from elk_ssm.kalman.filtering import lgssm_filter
from elk_ssm.linalg.structure import Diagonal, to_dense

BACKENDS = ["sequential", "associative"]
# float64 sums of a few dozen terms, in another order.
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(scope="module", params=BACKENDS)
def run(request):
    """The filter, compiled once for each set of shapes."""
    backend = request.param

    def call(model, emissions, inputs=None, **options):
        return lgssm_filter(model, emissions, inputs, backend=backend, **options)

    return call


@pytest.mark.parametrize("varying", [True, False])
@pytest.mark.parametrize("gaps", [True, False])
def test_equals_conditioning_one_big_gaussian(run, varying, gaps):
    data = oracle.random_data(varying=varying)
    data = oracle.with_gaps(data) if gaps else data
    with jax.enable_x64(True):
        found = run(oracle.as_model(data, static=not varying), data.y, data.u)
    means, covs = oracle.filtered(data)
    assert np.allclose(found.filtered_means, means, **TIGHT)
    assert np.allclose(found.filtered_covariances.matrix, covs, **TIGHT)
    assert np.allclose(found.log_likelihood, oracle.posterior(data)[2], **TIGHT)


def test_entry_zero_of_the_dynamics_is_never_used(run):
    data = oracle.random_data()
    spoilt = data._replace(F=data.F.copy(), Q=data.Q.copy())
    spoilt.F[0], spoilt.Q[0] = np.nan, np.nan
    with jax.enable_x64(True):
        whole = run(oracle.as_model(data), data.y, data.u)
        found = run(oracle.as_model(spoilt), data.y, data.u)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, found))


def test_a_dimension_never_seen_equals_its_rows_dropped(run):
    data = oracle.random_data(E=3)
    y = data.y.copy()
    y[:, 1] = np.nan
    keep = [0, 2]
    dropped = data._replace(
        H=data.H[:, keep], R=data.R[:, keep][:, :, keep], d=data.d[:, keep],
        D=data.D[:, keep], y=data.y[:, keep],
    )  # fmt: skip
    with jax.enable_x64(True):
        missing = run(oracle.as_model(data), y, data.u)
        fewer = run(oracle.as_model(dropped), dropped.y, data.u)
    assert np.allclose(missing.filtered_means, fewer.filtered_means, **TIGHT)
    assert np.allclose(missing.log_likelihood, fewer.log_likelihood, **TIGHT)


def test_a_mask_hides_what_nan_hides(run):
    data = oracle.with_gaps(oracle.random_data())
    seen = ~np.isnan(data.y)
    # What stands under the mask must not matter.
    filled = np.where(seen, data.y, 1e30)
    with jax.enable_x64(True):
        model = oracle.as_model(data)
        by_nan = run(model, data.y, data.u)
        by_mask = run(model, filled, data.u, mask=seen)
    assert jax.tree.all(jax.tree.map(np.array_equal, by_nan, by_mask))


def diagonal_model(D=2, T=6):
    data = oracle.random_data(D=D, E=D, T=T)
    model = oracle.as_model(data)
    small = {
        name: Diagonal(jnp.abs(jnp.diagonal(matrix.matrix, axis1=-2, axis2=-1)))
        for name, matrix in model._asdict().items()
        if isinstance(matrix, tuple)
    }
    return model._replace(**small), data


def test_diagonal_equals_dense(run):
    with jax.enable_x64(True):
        model, data = diagonal_model()
        data = oracle.with_gaps(data)
        dense = {
            k: to_dense(v) for k, v in model._asdict().items() if type(v) is Diagonal
        }
        small = run(model, data.y, data.u)
        large = run(model._replace(**dense), data.y, data.u)
        assert isinstance(small.filtered_covariances, Diagonal)
        covs = to_dense(small.filtered_covariances)
    assert np.allclose(small.filtered_means, large.filtered_means, **TIGHT)
    assert np.allclose(covs, large.filtered_covariances.matrix, **TIGHT)
    assert np.allclose(small.log_likelihood, large.log_likelihood, **TIGHT)


def test_vmap_equals_a_loop(run):
    data = oracle.with_gaps(oracle.random_data())
    model = jax.tree.map(jnp.float32, oracle.as_model(data))
    y = jnp.stack([jnp.float32(data.y), jnp.float32(data.y[::-1])])
    u = jnp.float32(data.u)
    many = jax.vmap(lambda one: run(model, one, u))(y)
    for i in range(2):
        single = run(model, y[i], u)
        close = lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
        picked = jax.tree.map(lambda leaf: leaf[i], many)  # noqa: B023
        assert jax.tree.all(jax.tree.map(close, picked, single))


def test_one_step(run):
    data = oracle.random_data(T=1)
    found = run(jax.tree.map(jnp.float32, oracle.as_model(data)), jnp.float32(data.y))
    data = data._replace(D=0 * data.D)
    assert np.allclose(found.filtered_means, oracle.filtered(data)[0], rtol=1e-4)


def test_exact_observations_and_noiseless_dynamics(run):
    """A singular Q and R need no jitter: the state is known, and stays known."""
    data = oracle.random_data(D=2, E=2, U=1, T=4, varying=False)
    eye, zero = jnp.eye(2), jnp.zeros((2, 2))
    model = jax.tree.map(jnp.float32, oracle.as_model(data, static=True))
    model = model._replace(
        dynamics_covariance=zero, emission_weights=eye, emission_covariance=zero
    )
    model = model._replace(emission_bias=None, emission_input_weights=None)
    y = jnp.full((4, 2), jnp.nan).at[0].set(jnp.array([1.0, 2.0]))
    found = run(model, y, jnp.float32(data.u))
    assert np.allclose(found.filtered_means[0], [1.0, 2.0])
    assert np.allclose(found.filtered_covariances.matrix, 0.0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_library_call(backend):
    """Batched LAPACK can hang on small CPUs; nothing here may reach it."""
    data = oracle.random_data()
    model = jax.tree.map(jnp.float32, oracle.as_model(data))
    y = jnp.float32(data.y)
    lowered = jax.jit(lambda y: jax.vmap(lambda one: lgssm_filter(
        model, one, backend=backend))(y)).lower(y[None])  # fmt: skip
    assert "lapack" not in lowered.as_text().lower()


def test_auto_is_sequential_on_a_cpu():
    data = oracle.random_data()
    model = jax.tree.map(jnp.float32, oracle.as_model(data))
    y = jnp.float32(data.y)
    lower = lambda backend: (  # noqa: E731
        jax.jit(lambda y: lgssm_filter(model, y, backend=backend)).lower(y).as_text()
    )
    text = lower("auto")
    assert text.count("stablehlo.while") == lower("sequential").count("stablehlo.while")


def test_new_numbers_do_not_recompile():
    traces = []
    model, data = diagonal_model()
    model, y = jax.tree.map(jnp.float32, model), jnp.float32(data.y)

    @jax.jit
    def score(model, y):
        traces.append(1)
        return lgssm_filter(model, y).log_likelihood

    score(model, y)
    score(model._replace(initial_mean=model.initial_mean + 1), y + 1)
    assert len(traces) == 1


def test_unknown_backend_and_empty_series():
    model, data = diagonal_model()
    with pytest.raises(ValueError, match="backend must be one of"):
        lgssm_filter(model, data.y, backend="parallel")
    still = jax.tree.map(
        lambda leaf: leaf[0] if leaf.shape[:1] == (6,) else leaf, model
    )
    with pytest.raises(ValueError, match="at least one step"):
        lgssm_filter(still, jnp.zeros((0, 2)))
