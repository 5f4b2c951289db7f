"""Posteriors are calibrated: what was drawn has the ranks that they say.

Simulation-based calibration (Talts et al. 2018, arXiv 1804.06788): states and data are
drawn from a model; the rank of the true state among posterior draws, or its posterior
distribution function, is uniform. A chi-square test with fixed seeds says so; that it
would see a posterior with a quarter more or less variance is tested too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import elk_ssm as elk

T, D, E, AHEAD = 5, 2, 1, 2
MANY, DRAWS, BINS = 4_000, 9, 10
# Of some twenty tests with fixed seeds; a posterior that is wrong has 1e-10 and less.
LEAST = 1e-3

F = np.array([[0.8, 0.3], [-0.2, 0.9]])
Q = np.array([[0.3, 0.1], [0.1, 0.2]])
P = np.array([[1.0, -0.3], [-0.3, 0.5]])
H, R, M = np.array([[1.0, 0.5]]), np.array([[0.4]]), np.array([0.5, -1.0])


@pytest.fixture(scope="module", autouse=True)
def x64_of_module():
    with jax.enable_x64(True):
        yield


def simulated(seed):
    """States `(MANY, T + AHEAD, D)` and emissions, by NumPy; step 2 is missing."""
    rng = np.random.default_rng(seed)
    z = [rng.multivariate_normal(M, P, MANY)]
    for _ in range(T + AHEAD - 1):
        z.append(z[-1] @ F.T + rng.multivariate_normal(np.zeros(D), Q, MANY))
    z = np.stack(z, axis=1)
    y = z @ H.T + np.sqrt(R[0, 0]) * rng.normal(size=(MANY, T + AHEAD, E))
    y[:, 2] = np.nan
    return z, y


def p_of_levels(levels):
    """The chi-square test of numbers that should be uniform between 0 and 1."""
    counts = np.histogram(levels, BINS, (0, 1))[0]
    assert counts.sum() == len(levels)
    return stats.chisquare(counts).pvalue


def p_of_ranks(true, draws):
    """The same of the rank of what is true among draws, on the first axis."""
    ranks = np.sum(draws < true, axis=0)
    return stats.chisquare(np.bincount(ranks, minlength=len(draws) + 1)).pvalue


def levels_of(true, means, variances):
    return stats.norm.cdf((true - means) / np.sqrt(variances))


def levels_of_all(true, means, covs):
    """Of the squared distance of a whole state, which correlations enter."""
    error = true - means
    square = np.einsum(
        "ni,ni->n", error, np.linalg.solve(covs, error[..., None])[..., 0]
    )
    return stats.chi2.cdf(square, D)


def linear():
    return elk.LGSSM(*map(jnp.asarray, (M, P, F, Q, H, R)))


@pytest.fixture(scope="module")
def smoothed():
    """States, and moments by the smoother, of many series."""
    z, y = simulated(0)

    @jax.jit
    @jax.vmap
    def run(y):
        found = elk.lgssm_smoother(linear(), y)
        return found.smoothed_means, found.smoothed_covariances.matrix

    return z, *map(np.asarray, run(y[:, :T]))


@pytest.mark.parametrize("step", range(T))
def test_the_smoother_is_calibrated(smoothed, step):
    z, means, covs = (x[:, step] for x in smoothed)
    for i in range(D):
        assert p_of_levels(levels_of(z[:, i], means[:, i], covs[:, i, i])) > LEAST
    assert p_of_levels(levels_of_all(z, means, covs)) > LEAST


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_wrong_spread_is_seen(smoothed, factor):
    z, means, covs = (x[:, 2] for x in smoothed)
    assert p_of_levels(levels_of(z[:, 0], means[:, 0], factor * covs[:, 0, 0])) < 1e-6
    assert p_of_levels(levels_of_all(z, means, factor * covs)) < 1e-6


@pytest.mark.parametrize("backend", ["sequential", "associative"])
def test_samples_have_uniform_ranks(backend):
    z, y = simulated(1)
    keys = jax.random.split(jax.random.key(2), MANY)

    @jax.jit
    @jax.vmap
    def run(key, y):
        how = {"num_samples": DRAWS, "backend": backend}
        return elk.lgssm_sample(linear(), key, y, **how)

    drawn = np.asarray(run(keys, y[:, :T])).swapaxes(0, 1)
    for step in (0, 2, T - 1):
        for i in range(D):
            assert p_of_ranks(z[:, step, i], drawn[:, :, step, i]) > LEAST
    # What joins steps and dimensions is right too.
    for of in (
        lambda z: z[..., 2, 0] * z[..., 3, 0],
        lambda z: z[..., 4, 0] - z[..., 0, 1],
    ):
        assert p_of_ranks(of(z[:, :T]), of(drawn)) > LEAST
    narrow = drawn.mean(0) + 0.7 * (drawn - drawn.mean(0))
    assert p_of_ranks(z[:, 2, 0], narrow[:, :, 2, 0]) < 1e-6


def test_forecasts_and_their_bands_are_calibrated():
    z, y = simulated(3)

    @jax.jit
    @jax.vmap
    def run(y):
        ahead = elk.lgssm_predict(linear(), y, AHEAD, level=0.8)
        states = ahead.state_means, ahead.state_covariances.matrix
        return *states, ahead.emission_means, ahead.lower, ahead.upper

    means, covs, centre, lower, upper = map(np.asarray, run(y[:, :T]))
    for step in range(AHEAD):
        parts = z[:, T + step], means[:, step], covs[:, step]
        assert p_of_levels(levels_of_all(*parts)) > LEAST
        later, reach = y[:, T + step, 0], stats.norm.ppf(0.9)
        spread = (upper - centre)[:, step, 0] / reach
        assert p_of_levels(levels_of(later, centre[:, step, 0], spread**2)) > LEAST
        covered = np.sum((lower[:, step, 0] < later) & (later < upper[:, step, 0]))
        assert stats.binomtest(int(covered), MANY, 0.8).pvalue > LEAST


def test_the_smoother_of_nonlinear_models_is_calibrated_where_it_is_exact(smoothed):
    """On a linear model its mode is the mean and its covariance the posterior's."""
    z, means, covs = smoothed
    _, y = simulated(0)

    def one(y):
        model = elk.NonlinearSSM(
            jnp.asarray(M), jnp.asarray(P), lambda z, u: F @ z, jnp.asarray(Q),
            lambda z, u: H @ z, jnp.asarray(R),
        )  # fmt: skip
        found = elk.smooth(model, y)
        return found.means, found.covariances, found.status

    few = 200
    found = jax.jit(jax.vmap(one))(y[:few, :T])
    assert not np.any(found[2])
    np.testing.assert_allclose(found[0], means[:few], atol=1e-7)
    np.testing.assert_allclose(found[1], covs[:few], atol=1e-7)
    parts = z[:few, 3], np.asarray(found[0])[:, 3], np.asarray(found[1])[:, 3]
    assert p_of_levels(levels_of_all(*parts)) > LEAST


def poisson(h, y, u):
    return jnp.sum(y * h - jnp.exp(h))


def student(h, y, u):
    return jnp.sum(jax.scipy.stats.t.logpdf(y, 4.0, loc=h, scale=0.5))


def draw_poisson(key, h, u):
    return jax.random.poisson(key, jnp.exp(h)).astype(h.dtype)


def draw_student(key, h, u):
    return h + 0.5 * jax.random.t(key, 4.0, h.shape, h.dtype)


FAMILIES = {"Poisson": (poisson, draw_poisson), "Student": (student, draw_student)}


@pytest.mark.parametrize("family", FAMILIES)
def test_laplace_bands_cover_about_what_they_say(family):
    """A Gaussian at the mode of a skewed or heavy-tailed posterior: within 4 points."""
    log_density, draw = FAMILIES[family]
    model = elk.NonlinearSSM(
        jnp.asarray([1.0]), 0.3 * jnp.eye(1), lambda z, u: 1 + 0.9 * (z - 1),
        0.1 * jnp.eye(1), lambda z, u: z, None, log_density, draw,
    )  # fmt: skip

    def one(key):
        drawn = elk.sample(model, key, T)
        found = elk.smooth(model, drawn.emissions)
        return drawn.states, found.means, found.covariances[..., 0], found.status

    keys = jax.random.split(jax.random.key(5), 1_000)
    z, means, variances, status = map(np.asarray, jax.jit(jax.vmap(one))(keys))
    assert not status.any()
    levels = levels_of(z, means, variances)
    for level in (0.5, 0.9):
        edges = 0.5 - level / 2, 0.5 + level / 2
        covered = np.mean((levels > edges[0]) & (levels < edges[1]))
        assert abs(covered - level) < 0.04, (family, level, covered)
    wide = levels_of(z, means, 1.5 * variances)
    assert abs(np.mean((wide > 0.25) & (wide < 0.75)) - 0.5) > 0.06


SERIES, STEPS = 400, 400


def autoregressions(rng):
    """Series `(SERIES, STEPS)` of a stationary autoregression, and what made them."""
    a, variance = 0.7, 1.69
    x = [rng.normal(scale=np.sqrt(variance / (1 - a**2)), size=SERIES)]
    for _ in range(STEPS - 1):
        x.append(a * x[-1] + rng.normal(scale=np.sqrt(variance), size=SERIES))
    made = {"autoregressive.ar": a, "autoregressive.variance": variance}
    return np.stack(x, axis=1), made


def local_levels(rng):
    """Random walks seen with noise, with gaps."""
    walk = np.cumsum(rng.normal(scale=0.8, size=(SERIES, STEPS)), axis=1)
    y = walk + rng.normal(size=walk.shape)
    y[:, 100:120] = np.nan
    return y, {"level.variance": 0.64, "noise.variance": 1.0}


FITTED = {
    "autoregression": (elk.models.autoregressive, (1,), autoregressions),
    "local level": (elk.models.local_level, (), local_levels),
}


@pytest.mark.parametrize("name", FITTED)
def test_standard_errors_of_a_fit_are_calibrated(name):
    """Errors of the estimates over their standard errors are standard normal."""
    make, order, simulate = FITTED[name]
    y, made = simulate(np.random.default_rng(6))
    found = jax.jit(jax.vmap(lambda y: elk.fit(make(*order), y)))(jnp.asarray(y))
    assert bool(found.converged.all())
    assert set(made) == set(found.parameters)
    for key, true in made.items():
        error = np.ravel(found.parameters[key]) - true
        spread = np.ravel(found.standard_errors[key])
        assert p_of_levels(stats.norm.cdf(error / spread)) > LEAST, key
        inside = int(np.sum(np.abs(error) < stats.norm.ppf(0.95) * spread))
        assert stats.binomtest(inside, SERIES, 0.9).pvalue > LEAST, key
        assert p_of_levels(stats.norm.cdf(error / (0.6 * spread))) < 1e-6, key
        assert p_of_levels(stats.norm.cdf(error / (1.6 * spread))) < 1e-6, key


def test_the_test_of_uniformity_is_one():
    rng = np.random.default_rng(0)
    assert p_of_levels(rng.random(MANY)) > LEAST
    assert p_of_levels(rng.beta(1.3, 1.3, MANY)) < 1e-6
    draws = rng.normal(size=(DRAWS, MANY))
    assert p_of_ranks(rng.normal(size=MANY), draws) > LEAST
    assert p_of_ranks(1.5 * rng.normal(size=MANY), draws) < 1e-6
