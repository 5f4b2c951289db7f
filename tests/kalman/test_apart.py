"""The square-root form: right whatever the prior, and the same where that is narrow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle

import elk_ssm as elk
from elk_ssm.kalman.form import chosen_form
from elk_ssm.kalman.lgssm import pose
from elk_ssm.linalg.structure import to_dense

BACKENDS = ("sequential", "associative")
MISSING = [1, 3, 20, 21, 55]
STEPS = 60


def structural():
    """A local linear trend and a season of seven: F, Q, H, and a series with gaps."""
    F, Q, H = np.zeros((8, 8)), np.zeros(8), np.zeros((1, 8))
    F[0, :2], F[1, 1], F[2, 2:] = 1, 1, -1
    F[range(3, 8), range(2, 7)] = 1
    Q[:3] = 0.1, 0.01, 0.05
    H[0, [0, 2]] = 1
    rng = np.random.default_rng(0)
    x, series = np.r_[0, 0, 3 * rng.normal(size=6)], np.empty((STEPS, 1))
    for t in range(STEPS):
        x = F @ x + np.sqrt(Q) * rng.normal(size=8)
        series[t] = H @ x + rng.normal(size=1)
    series[MISSING] = np.nan
    return F, Q, H, series


def by_noises(F, Q, H, series, variance):
    """Moments and evidence by one solve for x_0 and the noises, which are independent.

    Their precisions are added, so that a wide prior is a small number and takes no
    digits from others.
    """
    size, noisy = len(F), np.flatnonzero(Q)
    count = size + len(noisy) * (STEPS - 1)
    into = np.zeros((STEPS, size, count), np.longdouble)
    into[0, :, :size] = np.eye(size)
    for t in range(1, STEPS):
        into[t] = F @ into[t - 1]
        columns = size + len(noisy) * (t - 1) + np.arange(len(noisy))
        into[t, noisy, columns] = 1
    prior = np.r_[np.full(size, variance), np.tile(Q[noisy], STEPS - 1)]
    seen = ~np.isnan(series[:, 0])
    rows, values = (H @ into)[seen, 0], series[seen, 0]
    precision = np.asarray(np.diag(1 / prior) + rows.T @ rows, float)
    found = np.linalg.solve(precision, np.asarray(rows.T @ values, float))
    covariance = np.linalg.inv(precision)
    squares = np.sum((values - rows @ found) ** 2) + np.sum(found**2 / prior)
    volume = np.linalg.slogdet(precision)[1] + np.sum(np.log(prior))
    evidence = -(len(values) * np.log(2 * np.pi) + volume + squares) / 2
    into = np.asarray(into, float)
    return into @ found, into @ covariance @ into.swapaxes(1, 2), float(evidence)


@pytest.mark.parametrize("backend", BACKENDS)
def test_structural_models_keep_their_digits_in_float32(backend):
    F, Q, H, series = structural()
    for variance in (1e2, 1e4, 1e6, 1e9, 1e12):
        means, covs, evidence = by_noises(F, Q, H, series, variance)
        model = jax.tree.map(
            jnp.float32,
            elk.LGSSM(np.zeros(8), variance * np.eye(8), F, np.diag(Q), H, np.eye(1)),
        )
        found = elk.lgssm_smoother(
            model, jnp.float32(series), form="square_root", backend=backend
        )
        smoothed = np.asarray(to_dense(found.smoothed_covariances), float)
        assert abs(found.smoothed_means - means).max() <= 2e-6 * abs(means).max()
        assert abs(smoothed - covs).max() <= 1e-5 * abs(covs).max()
        assert np.linalg.eigvalsh(smoothed).min() > 0
        assert abs(float(found.log_likelihood) - evidence) <= 1e-3
        filtered = np.asarray(to_dense(found.filtered_covariances), float)
        assert np.linalg.eigvalsh(filtered).min() >= -1e-6 * filtered.max()
        # By itself the default takes this form where the other would fail.
        if variance >= 1e4:
            chosen = elk.lgssm_smoother(model, jnp.float32(series), backend=backend)
            np.testing.assert_array_equal(chosen.smoothed_means, found.smoothed_means)


@pytest.mark.parametrize("backend", BACKENDS)
def test_diffuse_priors_keep_their_digits_in_float32(backend):
    F, Q, H, series = structural()
    # Nothing known of x_0 is a precision of zero.
    with np.errstate(invalid="ignore"):
        means, covs, _ = by_noises(F, Q, H, series, np.inf)

    def smoothed(number):
        parts = jax.tree.map(number, (np.zeros(8), F, np.diag(Q), H, np.eye(1)))
        model = elk.LGSSM(parts[0], elk.Diffuse(), *parts[1:])
        return elk.lgssm_smoother(model, number(series), backend=backend)

    found = smoothed(jnp.float32)
    covariances = np.asarray(to_dense(found.smoothed_covariances), float)
    assert abs(found.smoothed_means - means).max() <= 1e-5 * abs(means).max()
    assert abs(covariances - covs).max() <= 1e-3 * abs(covs).max()
    assert np.linalg.eigvalsh(covariances).min() >= -1e-6 * covariances.max()
    with jax.enable_x64(True):
        exact = float(smoothed(jnp.float64).log_likelihood)
    assert abs(float(found.log_likelihood) - exact) <= 1e-3


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("varying", [True, False])
def test_is_the_dense_posterior(backend, varying):
    data = oracle.with_gaps(oracle.random_data(T=9, varying=varying))
    found = elk.lgssm_smoother(
        oracle.as_model(data, not varying),
        jnp.asarray(data.y),
        jnp.asarray(data.u),
        cross_covariances=True,
        form="square_root",
        backend=backend,
    )
    means, covs, crosses, evidence = oracle.smoothed(data)
    filtered_means, filtered_covs = oracle.filtered(data)
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(found.log_likelihood, evidence, **close)
    np.testing.assert_allclose(found.filtered_means, filtered_means, **close)
    found_covs = to_dense(found.filtered_covariances)
    np.testing.assert_allclose(found_covs, filtered_covs, **close)
    np.testing.assert_allclose(found.smoothed_means, means, **close)
    np.testing.assert_allclose(to_dense(found.smoothed_covariances), covs, **close)
    np.testing.assert_allclose(to_dense(found.cross_covariances), crosses, **close)


@pytest.mark.usefixtures("x64")
def test_diagonal_models_and_derivatives_agree_with_the_covariance_form():
    y = jnp.asarray(np.random.default_rng(1).normal(size=(12, 2))).at[4:6].set(jnp.nan)

    def evidence(scale, form):
        ones = jnp.ones(2)
        model = elk.LGSSM(
            scale[0] * ones,
            elk.Diagonal(jnp.stack([scale[1], 0 * scale[1]])),  # one state is known
            elk.Diagonal(0.9 * scale[2] * ones),
            elk.Diagonal(scale[3] * ones),
            elk.Diagonal(scale[4] * ones),
            elk.Diagonal(scale[5] * ones),
        )
        return elk.lgssm_log_likelihood(model, y, form=form)

    forms = ("covariance", "square_root")
    at = jnp.asarray([0.3, 2.0, 1.0, 0.5, 1.2, 0.7])
    values, slopes = zip(
        *(jax.jit(jax.value_and_grad(evidence), static_argnums=1)(at, f) for f in forms)
    )
    np.testing.assert_allclose(values[0], values[1], rtol=1e-10)
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-8, atol=1e-9)


def test_which_form_the_default_takes():
    one = elk.ScaledIdentity(1.0)
    y = jnp.ones((3, 1))

    def chosen(variance, form="auto"):
        prior = elk.ScaledIdentity(variance)
        model = elk.LGSSM(jnp.zeros(1), prior, one, one, one, one)
        return chosen_form(form, model, pose(model, y, None, None))

    assert chosen(1.0) == "covariance"
    assert chosen(1e6) == "apart"
    assert chosen(1e6, "covariance") == "covariance"
    traced = []
    jax.eval_shape(lambda v: (traced.append(chosen(v)), v)[1], jnp.float32(1e6))
    assert traced == ["covariance"]
    with pytest.raises(ValueError, match="form must be one of auto, covariance"):
        elk.lgssm_filter(
            elk.LGSSM(jnp.zeros(1), one, one, one, one, one), y, form="sqrt"
        )
