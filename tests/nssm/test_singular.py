"""Models whose noise has fewer dimensions than their state, against least squares.

The oracles know nothing of the library: dense Gaussian conditioning in NumPy, the
linear smoother, SciPy on the noise that drives a trajectory, finite differences.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares, minimize
from scipy.special import gammaln
from tests.nssm.singular_models import (
    bearings,
    counts,
    heavy_tails,
    lorenz,
    lorenz_step,
    noisy_gain,
    push,
    tracking,
)

from elk_ssm.draws import sample
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import BlockDiagonal, Diagonal, LowRank, ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.smoothing import extended_smoother, log_prob, smooth
from elk_ssm.solution import Status

pytestmark = pytest.mark.usefixtures("x64")
T = 24


def walk(seed=0, steps=T):
    """A walk with a gap, seen in one entry a step."""
    rng = np.random.default_rng(seed)
    y = np.cumsum(rng.normal(size=(steps, 1)), axis=0)
    y[3] = y[9:13] = np.nan
    return jnp.asarray(y)


@pytest.mark.parametrize("Q", ["velocity", "acceleration", "nothing"])
@pytest.mark.parametrize("P", ["free", "known", "half"])
def test_a_linear_model_has_the_posterior_of_the_linear_smoother(Q, P):
    model, F = tracking(P, Q)
    assert model.singular
    y = walk()
    result = smooth(model, y)
    mean, covariance, evidence = conditioned(model, F, np.asarray(y))
    assert int(result.status) == Status.converged
    # Ten digits: a trajectory of 24 steps has a condition of about 1e4.
    np.testing.assert_allclose(result.means, mean, atol=1e-10)
    np.testing.assert_allclose(result.covariances, covariance, atol=1e-10)
    np.testing.assert_allclose(result.log_likelihood, evidence, atol=1e-9)
    linear = LGSSM(
        *(model.initial_mean, model.initial_covariance, F, model.dynamics_covariance),
        *(jnp.array([[1.0, 0.0]]), ScaledIdentity(0.5)),
    )
    expected = lgssm_smoother(linear, y)
    np.testing.assert_allclose(result.means, expected.smoothed_means, atol=1e-10)
    np.testing.assert_allclose(
        result.filtered_means, expected.filtered_means, atol=1e-10
    )
    np.testing.assert_allclose(
        result.log_likelihood, expected.log_likelihood, atol=1e-9
    )
    np.testing.assert_allclose(log_prob(model, result.means, y), result.log_posterior)


def conditioned(model, F, y):
    """Return means, covariances and log p(y) by conditioning one large Gaussian."""
    F, Q = np.asarray(F), np.asarray(model.dynamics_covariance)
    m, P = np.asarray(model.initial_mean), np.asarray(model.initial_covariance)
    steps, size = len(y), len(m)
    powers = [np.linalg.matrix_power(F, t) for t in range(steps)]
    moves = np.zeros((steps * size, steps * size))
    for t in range(steps):
        for s in range(t + 1):
            block = np.s_[t * size : (t + 1) * size, s * size : (s + 1) * size]
            moves[block] = powers[t - s]
    noise = np.kron(np.eye(steps), Q)
    noise[:size, :size] = P
    prior = moves @ noise @ moves.T
    mean = np.concatenate([p @ m for p in powers])
    seen = np.isfinite(y[:, 0])
    H = np.kron(np.eye(steps), np.array([[1.0, 0.0]]))[seen]
    S = H @ prior @ H.T + 0.5 * np.eye(seen.sum())
    error = y[seen, 0] - H @ mean
    gain = np.linalg.solve(S, H @ prior).T
    after = prior - gain @ H @ prior
    blocks = [after[i : i + size, i : i + size] for i in range(0, len(after), size)]
    _, log_det = np.linalg.slogdet(2 * np.pi * S)
    evidence = -0.5 * (log_det + error @ np.linalg.solve(S, error))
    return (mean + gain @ error).reshape(steps, size), np.array(blocks), evidence


def test_a_singular_structure_is_seen_where_its_numbers_are_known():
    def singular(Q, P=ScaledIdentity(1.0)):  # noqa: B008
        return NonlinearSSM(jnp.zeros(4), P, push, Q, None, P).singular

    eye = jnp.eye(4)
    block = jnp.array([[1.0, 2.0], [2.0, 4.0]])
    for Q in (
        ScaledIdentity(0.0),
        eye.at[2, 2].set(0),
        Diagonal(jnp.array([1.0, 0, 1, 1])),
        BlockDiagonal(jnp.stack([jnp.eye(2), block])),
        jnp.stack([eye, eye.at[0, 0].set(0)]),
        LowRank(eye),
    ):
        assert singular(Q)
    assert singular(eye, ScaledIdentity(0.0))
    for Q in (eye, Diagonal(jnp.full(4, 1e-300)), lambda z, u: eye):
        assert not singular(Q)
    model = NonlinearSSM(jnp.zeros(4), eye, push, 0 * eye, None, eye)
    # It is part of the structure, and so known where the numbers no longer are.
    assert jax.jit(lambda m: jnp.asarray(m.singular))(model)


@pytest.mark.parametrize(
    "change", ["mesh", "unguarded", "R", "copies", "indefinite", "columns"]
)
def test_what_cannot_be_is_refused_by_name(change):
    model, _ = tracking("free", "velocity")
    options = {}
    if change == "mesh":
        options["mesh"] = jax.make_mesh((1,), ("time",))
    elif change == "unguarded":
        options["safeguard"] = False
    elif change == "R":
        model = replace(model, emission_covariance=jnp.zeros((1, 1)))
    elif change == "copies":
        model = replace(model, emission=None, emission_covariance=jnp.ones((2, 2)))
    elif change == "indefinite":
        Q = jnp.array([[1.0, 2.0], [2.0, 1.0]])
        model = replace(model, dynamics_covariance=Q)
    else:
        model = replace(model, dynamics_covariance=LowRank(jnp.ones((3, 1))))
    match = {
        "mesh": "one device",
        "unguarded": "safeguard",
        "R": "emission_covariance must be positive definite",
        "copies": "emission_covariance must be positive definite.*zero eigenvalue",
        "indefinite": "dynamics_covariance",
        "columns": "dynamics_covariance",
    }[change]
    with pytest.raises(ValueError, match=match):
        smooth(model, jnp.ones((5, 2 if change == "copies" else 1)), **options)


def least(start, residuals):
    """Minimise half a sum of squares in the noise, from where a truth was."""
    jacobian = jax.jit(jax.jacfwd(residuals))
    tight = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-14)
    return least_squares(jax.jit(residuals), start, jac=jacobian, **tight)


def test_bearings_only_tracking_finds_the_least_squares_in_the_noise():
    model, y, truth, states_of = bearings(T)
    result = smooth(model, y)
    seen = np.isfinite(y)

    def residuals(noise):
        expected = jax.vmap(lambda z: model.emission(z, None))(states_of(noise))
        error = (y - expected) / 0.05
        return jnp.concatenate([noise, error[seen]])

    found = least(truth, residuals)
    assert int(result.status) == Status.converged
    np.testing.assert_allclose(result.means, states_of(found.x), atol=1e-6)
    precision = found.jac.T @ found.jac
    evidence = -found.cost - 0.5 * np.linalg.slogdet(precision)[1]
    evidence -= 0.5 * seen.sum() * np.log(2 * np.pi * 0.05**2)
    np.testing.assert_allclose(result.log_likelihood, evidence, atol=1e-6)
    move = np.asarray(jax.jacfwd(states_of)(jnp.asarray(found.x)))
    spread = np.einsum("tin,nm,tjm->tij", move, np.linalg.inv(precision), move)
    np.testing.assert_allclose(result.covariances, spread, atol=1e-6)
    # Where the extended smoother ends is no trajectory of this model's.
    rough = extended_smoother(model, y)
    assert np.isfinite(rough.means).all()
    for options in ({"guess": rough.means}, {"linearization": "cubature"}):
        again = smooth(model, y, **options)
        np.testing.assert_allclose(again.means, result.means, atol=1e-7)


@pytest.mark.parametrize("known", [False, True])
def test_without_process_noise_the_mode_is_a_shooting_problem(known):
    model, y, truth = lorenz(150, known)
    result = smooth(model, y)
    assert int(result.status) == Status.converged

    def states_of(noise):
        def step(z, _):
            return (lorenz_step(z, None),) * 2

        first = model.initial_mean + np.sqrt(0.0 if known else 50.0) * noise
        rest = jax.lax.scan(step, first, None, length=len(y) - 1)[1]
        return jnp.concatenate([first[None], rest])

    def residuals(noise):
        return jnp.concatenate([noise, (y[:, 0] - states_of(noise)[:, 0]) / 0.5])

    found = least(truth, residuals)
    # Five digits are lost on the way: the map stretches by about 1e3 in 150 steps.
    np.testing.assert_allclose(result.means, states_of(found.x), atol=1e-5)
    if known:
        assert float(jnp.max(jnp.abs(result.covariances))) == 0


def negative_log_posterior(y, parameters):
    """Return -log p of counts of a second-order autoregression, in the noise."""
    phi1, phi2, q = parameters
    seen = np.isfinite(y)
    value = np.where(seen, y, 0)

    def of(noise):
        def step(z, w):
            z = jnp.array([phi1 * z[0] + phi2 * z[1] + np.sqrt(q) * w, z[0]])
            return z, z

        rest = jax.lax.scan(step, noise[:2], noise[2:])[1]
        states = jnp.concatenate([noise[None, :2], rest])
        rate = 1 + states[:, 0]
        density = value * rate - jnp.exp(rate) - gammaln(value + 1)
        return 0.5 * jnp.sum(noise**2) - jnp.sum(jnp.where(seen, density, 0)), states

    return of


def test_counts_of_an_autoregression_are_laplaces_in_the_noise():
    rng = np.random.default_rng(0)
    y = rng.poisson(3.0, size=T).astype(float)
    y[7] = np.nan
    parameters = jnp.array([1.2, -0.4, 0.1])
    of = negative_log_posterior(y, parameters)
    objective = jax.jit(lambda noise: of(noise)[0])
    slope, bend = jax.jit(jax.grad(objective)), jax.jit(jax.hessian(objective))
    found = minimize(
        objective,
        np.zeros(T + 1),
        jac=slope,
        hess=bend,
        method="trust-exact",
        options={"gtol": 1e-10},
    )

    def evidence(parameters):
        # The parameters are traced: that the model is singular is said, not seen.
        result = smooth(counts(parameters), jnp.asarray(y)[:, None])
        return result.log_likelihood, result

    steps = 1e-4 * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    several = jax.jit(jax.vmap(jax.value_and_grad(evidence, has_aux=True)))
    (values, results), slopes = several(parameters + steps)
    assert not np.any(results.status)
    np.testing.assert_allclose(results.means[0], of(found.x)[1], atol=1e-7)
    log_det = np.linalg.slogdet(bend(found.x))[1]
    np.testing.assert_allclose(values[0], -found.fun - 0.5 * log_det, atol=1e-7)
    differences = (values[1:4] - values[4:]) / 2e-4
    np.testing.assert_allclose(slopes[0], differences, rtol=1e-5)


def test_a_regular_model_that_is_called_singular_stays_what_it_is():
    model, y = noisy_gain(12)
    regular, called = (smooth(replace(model, singular=s), y) for s in (False, True))
    assert int(regular.status) == int(called.status) == Status.converged
    for name in ("means", "covariances", "filtered_means", "filtered_covariances"):
        np.testing.assert_allclose(
            getattr(called, name), getattr(regular, name), atol=1e-8, err_msg=name
        )
    for name in ("log_likelihood", "log_posterior"):
        np.testing.assert_allclose(
            getattr(called, name), getattr(regular, name), atol=1e-8, err_msg=name
        )


def test_a_state_dependent_factor_moves_its_mode_by_its_volume():
    model, y = noisy_gain(12, lags=True)
    result = smooth(model, y)
    assert int(result.status) == Status.converged

    def objective(noise):
        def step(z, w):
            own = 0.2 + 0.1 * z[0] ** 2
            z = jnp.array([0.8 * z[0] + 0.1 * z[1] + own * w, z[0]])
            return z, (z, own)

        rest, gains = jax.lax.scan(step, noise[:2], noise[2:])[1]
        states = jnp.concatenate([noise[None, :2], rest])
        volume = jnp.sum(jnp.log(gains))
        misfit = jnp.sum((y[:, 0] - states[:, 0]) ** 2) / 0.2
        return 0.5 * jnp.sum(noise**2) + volume + misfit, states

    value = jax.jit(jax.value_and_grad(lambda noise: objective(noise)[0]))
    found = minimize(value, np.zeros(13), jac=True, options={"gtol": 1e-9})
    np.testing.assert_allclose(result.means, objective(found.x)[1], atol=1e-6)


def test_heavy_tails_in_float32_agree_with_scipy():
    y = np.array(walk(3, 40))[:, 0]
    y[20] = 40.0
    seen = np.isfinite(y)
    result = smooth(heavy_tails(jnp.float32), jnp.asarray(y, jnp.float32)[:, None])
    assert int(result.status) == Status.converged
    # Rounding of covariances that are up to one.
    assert np.linalg.eigvalsh(result.covariances).min() > -1e-6

    def states_of(noise):
        slopes = 2 * noise[1] + np.cumsum(np.append(0, 0.05**0.5 * noise[2:]))
        places = 2 * noise[0] + np.append(0, np.cumsum(slopes[:-1]))
        return np.stack([places, slopes], axis=1)

    def objective(noise):
        error = (y - states_of(noise)[:, 0])[seen]
        return 0.5 * noise @ noise + 2 * np.sum(np.log1p(error**2 / 3))

    found = minimize(objective, np.zeros(41), options={"gtol": 1e-6})
    expected = states_of(found.x)
    scale = np.abs(expected).max(axis=0)
    # Square root of float32's eps, times the condition of an integrated walk.
    np.testing.assert_allclose(result.means / scale, expected / scale, atol=2e-3)


def test_a_minimum_by_symmetry_is_left():
    model = NonlinearSSM(
        jnp.zeros(2),
        ScaledIdentity(1.0),
        lambda z, _: jnp.array([z[0] + 0.3 * z[1], 0.9 * z[1]]),
        Diagonal(jnp.array([0.0, 0.3])),
        lambda z, _: z[:1] ** 2,
        ScaledIdentity(0.1),
    )
    result = smooth(model, jnp.full((12, 1), 2.0))
    assert int(result.status) == Status.converged
    np.testing.assert_allclose(result.means[:, 0] ** 2, 2.0, atol=0.3)


def test_draws_obey_the_dynamics_and_have_the_moments():
    model, F = tracking("half", "acceleration")
    keys = jax.random.split(jax.random.key(0), 4000)
    states = jax.vmap(lambda key: sample(model, key, 6))(keys).states
    rest = states[:, 1:] - states[:, :-1] @ F.T
    # What leads from state to state is along one direction only.
    across = np.asarray(rest) @ np.array([2.0, -0.5])
    np.testing.assert_allclose(across, 0, atol=1e-12)
    np.testing.assert_allclose(states[:, 0, 0], model.initial_mean[0], atol=1e-14)
    expected = np.asarray(model.dynamics_covariance)
    found = np.einsum("nti,ntj->ij", rest, rest) / rest[:, :, 0].size
    # Five deviations of a mean of 20,000 squares.
    np.testing.assert_allclose(found, expected, rtol=5 * (2 / 20_000) ** 0.5)
    drawn = sample(model, keys[0], 6)
    assert np.isfinite(log_prob(model, drawn.states, drawn.emissions))
    other = drawn.states.at[3, 0].add(1e-3)
    assert float(log_prob(model, other, drawn.emissions)) == -np.inf


def test_one_step_needs_no_dynamics():
    model, _ = tracking("half", "nothing")
    result = smooth(model, jnp.array([[1.0]]))
    assert int(result.status) == Status.converged
    # The place is known, the velocity is not seen.
    np.testing.assert_allclose(result.means[0], model.initial_mean, atol=1e-12)
    np.testing.assert_allclose(
        result.covariances[0], model.initial_covariance, atol=1e-12
    )
