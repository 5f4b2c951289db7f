import importlib
import inspect
import sys

import dynamax.linear_gaussian_ssm as dynamax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from dynamax.linear_gaussian_ssm import inference_test_utils
from tests.kalman import oracle

from elk_ssm.interop import dynamax as ours
from elk_ssm.kalman.lgssm import LGSSM, pose
from elk_ssm.linalg.structure import Diagonal, ScaledIdentity, to_dense

BACKENDS = ["sequential", "associative"]


def close(found, expected, tolerance=1e-4):
    for name, value in expected._asdict().items():
        other = getattr(found, name)
        assert (value is None) == (other is None), name
        if value is not None:
            scale = max(np.abs(value).max(), 1.0)
            assert np.abs(np.asarray(other) - value).max() < tolerance * scale, name


def params_and_data(varying, T=20):
    data = oracle.random_data(T=T, D=3, E=2, U=2, varying=varying)
    data = data._replace(F=0.7 * data.F)
    model = oracle.as_model(data, static=not varying)
    model = jax.tree.map(jnp.float32, model)
    return ours.to_dynamax(model), jnp.float32(data.y), jnp.float32(data.u)


@pytest.fixture(scope="module", params=[True, False], ids=["varying", "static"])
def case(request):
    params, y, u = params_and_data(request.param)
    return (params, y, u), dynamax.lgssm_smoother(params, y, u)


@pytest.mark.parametrize("backend", BACKENDS)
def test_smoother_fills_the_fields_of_dynamax(case, backend):
    arguments, expected = case
    found = ours.lgssm_smoother(*arguments, backend=backend)
    assert type(found) is type(expected)
    close(found, expected)


def test_filter_fills_the_fields_of_dynamax(case):
    arguments, _ = case
    found, expected = ours.lgssm_filter(*arguments), dynamax.lgssm_filter(*arguments)
    assert type(found) is type(expected)
    close(found, expected)


@pytest.mark.parametrize("num_timesteps", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_time_convention_of_1_0_3(num_timesteps, backend):
    """dynamax's own exact results; its Q[0] is NaN."""
    case = inference_test_utils.make_timing_case(num_timesteps)
    params, emissions, inputs, expected = case
    for run in (ours.lgssm_filter, ours.lgssm_smoother):
        found = run(params, emissions, inputs, backend=backend)
        for field, value in found._asdict().items():
            if value is not None:
                assert np.allclose(value, expected[field], atol=2e-5, rtol=2e-5)


def test_sample_moments_of_1_0_3():
    params, emissions, inputs, expected = inference_test_utils.make_timing_case(3)
    draw = lambda key: ours.lgssm_posterior_sample(key, params, emissions, inputs)  # noqa: E731
    samples = jax.jit(jax.vmap(draw))(jr.split(jr.PRNGKey(13), 12_000))
    inference_test_utils.assert_sample_moments(
        samples, expected["smoothed_means"], expected["joint_covariance"]
    )


def test_the_parallel_tests_of_dynamax_pass_on_ours(monkeypatch):
    """Run its test module with its three parallel functions replaced by ours."""
    for name in ("filter", "smoother", "posterior_sample"):
        replacement = getattr(ours, f"lgssm_{name}")
        monkeypatch.setattr(dynamax, f"parallel_lgssm_{name}", replacement)
    # Its sampler test would draw a thousand samples with dynamax's batched LAPACK.
    monkeypatch.setattr(dynamax, "lgssm_posterior_sample", ours.lgssm_posterior_sample)
    name = "dynamax.linear_gaussian_ssm.parallel_inference_test"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    count = 0
    for _, group in inspect.getmembers(module, inspect.isclass):
        if not group.__name__.startswith("Test"):
            continue
        for test_name, test in inspect.getmembers(group(), inspect.ismethod):
            if test_name.startswith("test_"):
                test()
                count += 1
    assert count >= 22


def test_none_is_zero():
    params, y, _ = params_and_data(varying=False)
    nothing = {"bias": None, "input_weights": None}
    bare = params._replace(
        dynamics=params.dynamics._replace(**nothing),
        emissions=params.emissions._replace(**nothing),
    )
    close(ours.lgssm_smoother(bare, y), dynamax.lgssm_smoother(bare, y))


def test_missing_emissions():
    params, y, u = params_and_data(varying=False)
    found = ours.lgssm_filter(params, y.at[3].set(jnp.nan), u)
    assert np.isfinite(found.filtered_means).all()


@pytest.mark.parametrize("time", [False, True])
def test_a_diagonal_emission_covariance(time):
    params, y, u = params_and_data(varying=False)
    scale = jnp.linspace(0.5, 1.5, len(y))[:, None] if time else jnp.ones(())
    diagonal = scale * jnp.array([0.3, 0.6])
    small = params._replace(emissions=params.emissions._replace(cov=diagonal))
    dense = jax.vmap(jnp.diag)(diagonal) if time else jnp.diag(diagonal)
    large = params._replace(emissions=params.emissions._replace(cov=dense))
    assert isinstance(ours.from_dynamax(small).emission_covariance, Diagonal)
    close(ours.lgssm_smoother(small, y, u), dynamax.lgssm_smoother(large, y, u))


def test_parameters_that_are_functions_of_the_step():
    params, y, u = params_and_data(varying=True)
    weights = params.dynamics.weights
    lazy = params._replace(
        dynamics=params.dynamics._replace(weights=lambda t: weights[t])
    )
    close(ours.lgssm_filter(lazy, y, u), ours.lgssm_filter(params, y, u), 1e-6)
    with pytest.raises(TypeError, match="num_timesteps"):
        ours.from_dynamax(lazy)


def test_round_trip():
    params, _, _ = params_and_data(varying=True)
    again = ours.to_dynamax(ours.from_dynamax(params))
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


def test_a_model_fitted_by_em_reads_back():
    model = dynamax.LinearGaussianSSM(2, 2)
    params, props = model.initialize(jr.PRNGKey(0))
    _, y = model.sample(params, jr.PRNGKey(1), 30)
    fitted, _ = model.fit_em(params, props, y, num_iters=2, verbose=False)
    score = ours.lgssm_filter(fitted, y).marginal_loglik
    assert np.allclose(
        score, dynamax.lgssm_filter(fitted, y).marginal_loglik, rtol=1e-4
    )


def test_declared_structure_is_written_dense():
    one = ScaledIdentity(2.0)
    params = ours.to_dynamax(LGSSM(jnp.zeros(3), one, one, one, one, one))
    assert np.array_equal(params.emissions.cov, 2 * np.eye(3))
    assert params.emissions.input_weights.shape == (3, 0)


class Surrogate:
    def to_lgssm(self):
        one = ScaledIdentity(1.0)
        return LGSSM(jnp.zeros(1), one, one, one, one, one), jnp.ones((4, 1))


def test_anything_with_to_lgssm_is_accepted():
    params, emissions = ours.to_dynamax(Surrogate())
    model, _ = Surrogate().to_lgssm()
    problem = pose(model, emissions, None, None)
    assert np.array_equal(to_dense(problem.weights), params.dynamics.weights)
    with pytest.raises(TypeError, match="to_lgssm"):
        ours.to_dynamax(3)


def test_wrong_lengths_raise_what_dynamax_raises():
    params, y, u = params_and_data(varying=True)
    short = params._replace(
        dynamics=params.dynamics._replace(cov=params.dynamics.cov[:-1])
    )
    with pytest.raises(AssertionError, match=r"got \(19, 3, 3\)"):
        ours.lgssm_filter(short, y, u)


@pytest.mark.parametrize("version", ["0.1.5", "1.0.2"])
def test_an_older_dynamax_is_refused(version):
    with pytest.raises(ImportError, match=rf"{version}.*z_\{{t-1\}} to z_t"):
        ours.check_version(version)


@pytest.mark.parametrize("version", ["1.0.3", "1.1.0", "2.0.0.dev1"])
def test_a_recent_dynamax_is_accepted(version):
    ours.check_version(version)
