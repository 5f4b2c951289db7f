"""The surrogate as a model: posteriors, bands, evidence, and dynamax."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.linalg.structure import to_dense

T, D = 8, 2
NOISE = jnp.exp(jnp.sin(jnp.arange(T * D, dtype=jnp.float32))).reshape(T, D)
MIX = np.array([[0.8, -0.5], [0.4, 0.6]])


def make():
    """A recurrence and an iterate in the current precision."""
    rng = np.random.default_rng(0)
    mix, inputs = jnp.asarray(MIX), jnp.asarray(rng.normal(size=(T, D)))
    iterate = jnp.asarray(rng.normal(size=(T, D)))

    def f(x, u):
        return jnp.tanh((mix * x).sum(-1) + u)

    return f, iterate, inputs, jnp.asarray([0.3, -0.4])


def run(surrogate, name="smooth"):
    """A method of a surrogate, compiled once for the module."""
    return _COMPILED[name](surrogate)


_COMPILED = {
    name: jax.jit(lambda s, name=name: getattr(s, name)())
    for name in ("filter", "smooth", "log_likelihood")
}


def model(method=None, **options):
    f, iterate, inputs, x0 = make()
    options = {"noise": NOISE.astype(iterate.dtype), **options}
    return elk.linearize(f, iterate, inputs, initial_state=x0, method=method, **options)


METHODS = {"dense": elk.deer(), "diagonal": elk.quasi_deer()}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@methods
@pytest.mark.parametrize("estimate", ["filter", "smoother"])
def test_the_mean_is_the_next_iterate(method, estimate, x64):
    f, iterate, inputs, x0 = make()
    noise = NOISE.astype(iterate.dtype)
    surrogate = model(method)
    posterior = (
        run(surrogate, "filter") if estimate == "filter" else run(surrogate, "smooth")
    )
    damped = elk.elk(noise, estimate=estimate, linearization=method.linearization)
    after = elk.iterates(f, x0, inputs, num_iters=1, method=damped, guess=iterate)[1]
    # The first state is exact by then, whatever the posterior says.
    np.testing.assert_allclose(posterior.means[1:], after[1:], rtol=1e-10)
    assert abs(posterior.means - iterate).max() > 0.1


@methods
def test_infinite_noise_is_the_undamped_iterate(method, x64):
    f, iterate, inputs, x0 = make()
    surrogate = model(method, noise=None)
    assert jnp.isinf(surrogate.noise).all()
    after = elk.iterates(f, x0, inputs, num_iters=1, method=method, guess=iterate)[1]
    for posterior in (run(surrogate, "filter"), run(surrogate, "smooth")):
        np.testing.assert_allclose(posterior.means, after, rtol=1e-10)
    assert run(surrogate, "log_likelihood") == 0


def dense_posterior(surrogate, q):
    """Means, covariances and evidence in absolute states by Gaussian conditioning."""
    operators = np.asarray(to_dense(surrogate.operator))
    y, values = np.asarray(surrogate.iterate), np.asarray(surrogate.values)
    system = np.eye(T * D)
    bias = values.copy()
    for t in range(1, T):
        here, before = slice(t * D, (t + 1) * D), slice((t - 1) * D, t * D)
        system[here, before] = -operators[t]
        bias[t] -= operators[t] @ y[t - 1]
    inverse = np.linalg.inv(system)
    mean, covariance = inverse @ bias.ravel(), q * inverse @ inverse.T
    total = covariance + q * np.diag(np.asarray(surrogate.noise).ravel())
    innovation = y.ravel() - mean
    gain = np.linalg.solve(total, covariance).T
    evidence = -0.5 * (
        innovation @ np.linalg.solve(total, innovation)
        + np.linalg.slogdet(total)[1]
        + T * D * np.log(2 * np.pi)
    )
    covariance = covariance - gain @ covariance
    blocks = covariance.reshape(T, D, T, D)[np.arange(T), :, np.arange(T)]
    return (mean + gain @ innovation).reshape(T, D), blocks, evidence


@methods
@pytest.mark.parametrize("q", ["mean", 0.7])
def test_equals_dense_conditioning(method, q, x64):
    surrogate = model(method, process_variance=q)
    variance = float(jnp.mean(surrogate.residual**2)) if q == "mean" else q
    means, blocks, evidence = dense_posterior(surrogate, variance)
    found = run(surrogate, "smooth")
    np.testing.assert_allclose(found.means, means, rtol=1e-9)
    np.testing.assert_allclose(
        to_dense(found.covariances), blocks, rtol=1e-9, atol=1e-12
    )
    spread = np.sqrt(np.diagonal(blocks, axis1=1, axis2=2))
    np.testing.assert_allclose(found.standard_deviations, spread, rtol=1e-9)
    for value in (
        found.log_likelihood,
        run(surrogate, "filter").log_likelihood,
        run(surrogate, "log_likelihood"),
    ):
        np.testing.assert_allclose(value, evidence, rtol=1e-10)


@methods
def test_equals_dynamax_s_sequential_smoother(method, x64):
    import dynamax.linear_gaussian_ssm as dynamax

    surrogate = model(method)
    written, emissions = surrogate.to_lgssm()
    # dynamax 1.0.3: entry t of the dynamics maps state t - 1 to state t.
    parameters = dynamax.ParamsLGSSM(
        initial=dynamax.ParamsLGSSMInitial(
            mean=written.initial_mean, cov=to_dense_matrix(written.initial_covariance)
        ),
        dynamics=dynamax.ParamsLGSSMDynamics(
            weights=to_dense_matrix(written.dynamics_weights),
            bias=written.dynamics_bias,
            input_weights=jnp.zeros((D, 0)),
            cov=to_dense_matrix(written.dynamics_covariance),
        ),
        emissions=dynamax.ParamsLGSSMEmissions(
            weights=to_dense_matrix(written.emission_weights),
            bias=jnp.zeros(D),
            input_weights=jnp.zeros((D, 0)),
            cov=to_dense_matrix(written.emission_covariance),
        ),
    )
    expected = dynamax.lgssm_smoother(parameters, emissions, jnp.zeros((T, 0)))
    filtered, smoothed = run(surrogate, "filter"), run(surrogate, "smooth")
    # dynamax adds 1e-9 to the diagonal of what it inverts.
    np.testing.assert_allclose(filtered.means, expected.filtered_means, atol=1e-8)
    np.testing.assert_allclose(smoothed.means, expected.smoothed_means, atol=1e-8)
    np.testing.assert_allclose(
        to_dense(filtered.covariances), expected.filtered_covariances, atol=1e-8
    )
    np.testing.assert_allclose(
        to_dense(smoothed.covariances), expected.smoothed_covariances, atol=1e-8
    )
    np.testing.assert_allclose(
        filtered.log_likelihood, expected.marginal_loglik, rtol=1e-8
    )


def to_dense_matrix(matrix):
    return matrix if isinstance(matrix, jax.Array) else to_dense(matrix)


def test_unobserved_states_have_no_emission():
    written, emissions = model(noise=NOISE.at[2, 1].set(jnp.inf)).to_lgssm()
    assert jnp.isnan(emissions).sum() == 1
    assert jnp.isnan(emissions[2, 1])
    assert jnp.isfinite(to_dense_matrix(written.emission_covariance)).all()


def test_bands_shrink_as_the_iteration_converges(problem):
    f, x0, inputs = problem("gru", 40)
    found = elk.iterates(f, x0, inputs, num_iters=4, method=elk.elk(1e2))

    @jax.jit
    def width(y):
        surrogate = elk.linearize(f, y, inputs, initial_state=x0, noise=1e2)
        return run(surrogate, "smooth").standard_deviations.max()

    widths = [float(width(y)) for y in found]
    assert all(b < a / 2 for a, b in pairwise(widths))
    assert widths[-1] < 1e-3 * widths[0]


def test_the_process_variance_scales_covariances_and_not_means():
    one, four = (run(model(process_variance=q)) for q in (1.0, 4.0))
    np.testing.assert_allclose(one.means, four.means, rtol=1e-6)
    np.testing.assert_allclose(
        4 * to_dense(one.covariances), to_dense(four.covariances), rtol=1e-5
    )


def test_the_process_variance_per_step():
    surrogate = model(process_variance="per_step")
    np.testing.assert_allclose(
        surrogate.process_variance, jnp.mean(surrogate.residual**2, 1), rtol=1e-6
    )
    unit = run(model(process_variance=1.0))
    np.testing.assert_allclose(
        to_dense(run(surrogate, "smooth").covariances),
        to_dense(unit.covariances) * surrogate.process_variance[:, None, None],
        rtol=1e-5,
    )


def test_a_converged_iterate_has_no_nan(reference):
    f, _, inputs, x0 = make()
    states = jnp.stack(list(reference(f, x0, inputs)))
    surrogate = elk.linearize(f, states, inputs, initial_state=x0, noise=1.0)
    exact = surrogate.replace(values=surrogate.iterate, process_variance=jnp.zeros(()))
    posterior = exact.smooth()
    np.testing.assert_array_equal(posterior.means, states)
    np.testing.assert_array_equal(posterior.standard_deviations, 0)
    assert not jnp.isnan(posterior.log_likelihood)


def test_the_evidence_prefers_iterates_near_the_trajectory(reference):
    f, iterate, inputs, x0 = make()
    exact = reference(f, x0, inputs)
    near, far = (
        elk.linearize(
            f, y, inputs, initial_state=x0, noise=1.0, process_variance=1.0
        ).log_likelihood()
        for y in (exact, iterate + 3)
    )
    assert near > far + 10


def test_a_surrogate_crosses_jit_and_vmap(close):
    surrogate = model()
    close(
        jax.jit(lambda s: s.smooth().means)(surrogate),
        run(surrogate, "smooth").means,
        atol=1e-6,
    )
    noises = jnp.asarray([0.5, 2.0])
    widths = jax.vmap(lambda s: run(model(noise=s)).standard_deviations)(noises)
    for width, noise in zip(widths, noises):
        expected = run(model(noise=noise)).standard_deviations
        np.testing.assert_allclose(width, expected, rtol=1e-5)
