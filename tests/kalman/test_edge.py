"""Linear models at the edge, against long double: nothing there is regular.

One compiled program for each backend serves all models of a grid, which are data.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle_edge
from tests.kalman.test_filtering import BACKENDS

from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.likelihood import lgssm_log_likelihood
from elk_ssm.kalman.sampling import lgssm_sample
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import ScaledIdentity

T, D, E = 12, 3, 4
NAN = np.nan
# Of every choice one, so that many draws see every pair.
DYNAMICS = ("stable", "unstable", "rotation", "contracting", "singular")
NOISE = ("full", "rank one", "none")
EMISSION = ("full", "rank one", "none", "few and exact")
GAPS = ("none", "some", "long", "all")


def root_of(rng, kind, size):
    """A square root of a covariance; its entries are eighths, so products are exact."""
    root = rng.integers(1, 9, size=(size, size)) * rng.choice([-1, 1], (size, size)) / 8
    columns = {"full": size, "rank one": 1}.get(kind, 0)
    return np.where(np.arange(size) < columns, root, 0)


def dynamics_of(rng, kind):
    """With singular values from a half to one times the largest, or of rank one."""
    left, right = (np.linalg.qr(rng.normal(size=(D, D)))[0] for _ in range(2))
    if kind == "singular":
        return 0.9 * np.outer(left[0], left[0])
    scale = {"stable": 0.9, "unstable": 1.2, "contracting": 0.6, "rotation": 0.9999}
    spread = [1.0] * D if kind == "rotation" else np.linspace(0.5, 1.0, D)
    return scale[kind] * left @ np.diag(spread) @ right


def emission_of(rng):
    """H of E > D rows with singular values from one to two."""
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (E, D))
    return left[:, :D] @ np.diag(np.linspace(1.0, 2.0, D)) @ right


def draw(rng):
    """A model as a tuple (m, P, F, Q, H, R, y), with emissions that it could make."""
    every = (DYNAMICS, NOISE, EMISSION, GAPS, ("full", "full", "rank one"))
    dynamics, noise, emission, gaps, prior = (
        kind[rng.integers(len(kind))] for kind in every
    )
    F, H, m = dynamics_of(rng, dynamics), emission_of(rng), rng.normal(size=D)
    roots = root_of(rng, prior, D), root_of(rng, noise, D), root_of(rng, emission, E)
    x, y = m + roots[0] @ rng.normal(size=D), []
    for t in range(T):
        x = F @ x + roots[1] @ rng.normal(size=D) if t else x
        y.append(H @ x + roots[2] @ rng.normal(size=E))
    y = np.array(y)
    if emission == "few and exact":
        y[:, 1:] = NAN
    if gaps == "some":
        y[rng.random((T, E)) < 0.4] = NAN
    elif gaps != "none":
        y[(0 if gaps == "all" else 2) : (T if gaps == "all" else T - 1)] = NAN
    P, Q, R = (root @ root.T for root in roots)
    return m, P, F, Q, H, R, y


@functools.partial(jax.jit, static_argnames="backend")
def run(arrays, backend):
    *model, y = arrays
    found = lgssm_smoother(LGSSM(*model), y, backend=backend)
    covs = found.filtered_covariances.matrix, found.smoothed_covariances.matrix
    means = found.filtered_means, found.smoothed_means
    return means[0], covs[0], means[1], covs[1], found.log_likelihood


def off(found, expected):
    """The largest error over the largest entry, an entry of one at least."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-3))


def lowest(covs):
    """The smallest eigenvalue over the largest of all steps."""
    return np.linalg.eigvalsh(covs).min() / max(np.abs(covs).max(), 1e-3)


@pytest.fixture(scope="module")
def cases():
    """The models, and what is right.

    Where an exact emission has a millionth of its variance left, rounding decides on
    whether it has any; those are not asked for.
    """
    rng = np.random.default_rng(7)
    drawn = [draw(rng) for _ in range(120)]
    pairs = [(case, oracle_edge.smooth(*case)) for case in drawn]
    decided = [(case, right[:5]) for case, right in pairs if right[5] > 1e-6]
    assert len(decided) > 110
    return decided


@pytest.fixture(scope="module", params=BACKENDS)
def grid(request, cases):
    with jax.enable_x64(True):
        models = (tuple(map(jnp.asarray, case)) for case, _ in cases)
        found = [list(map(np.asarray, run(one, request.param))) for one in models]
    return found, [right for _, right in cases]


def test_moments_are_those_of_long_double(grid):
    errors = np.array([[off(*both) for both in zip(*pair)][:4] for pair in zip(*grid)])
    # Exact observations of a future without noise are known to half the digits.
    bounds = [1e-8, 1e-8, 1e-6, 1e-6]
    assert np.sum(~(errors < bounds)) == 0
    assert np.mean(errors < 1e-8) > 0.95


def test_likelihoods_have_one_rule(grid):
    errors = [abs(a[4] - b[4]) / max(abs(b[4]), 1) for a, b in zip(*grid)]
    assert np.sum(~(np.array(errors) < 1e-8)) == 0


def test_covariances_are_positive_semidefinite(grid):
    low = np.array([[lowest(covs[1]), lowest(covs[3])] for covs in grid[0]])
    # Up to roundings, the smoother's of exact observations weighted by 1 / sqrt(eps).
    assert np.sum(~(low > [-1e-13, -1e-9])) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_contradicted_exact_emissions_are_impossible(backend):
    """Of two exact emissions of one number the second is free or impossible."""
    one, zero = ScaledIdentity(1.0), ScaledIdentity(0.0)
    H = jnp.array([[1.0, 0.5], [2.0, 1.0]])
    model = LGSSM(jnp.zeros(2), one, jnp.eye(2), zero, H, zero)
    value = jax.jit(lambda y: lgssm_log_likelihood(model, y, backend=backend))
    agreed = value(jnp.array([[1.0, 2.0], [1.0, NAN]]))
    alone = value(jnp.array([[1.0, NAN], [NAN, NAN]]))
    assert np.isclose(agreed, alone)
    assert value(jnp.array([[1.0, 2.5], [NAN, NAN]])) == -np.inf
    assert value(jnp.array([[1.0, NAN], [1.5, NAN]])) == -np.inf


@pytest.mark.parametrize("wrap", [lambda x: x * jnp.eye(2), ScaledIdentity])
def test_an_exact_emission_leaves_exactly_nothing(x64, wrap):
    P = jnp.array([[0.3, 0.1], [0.1, 0.7]])
    model = LGSSM(jnp.zeros(2), P, 0.3 * jnp.eye(2), P, jnp.eye(2), wrap(0.0))
    found = lgssm_smoother(model, jnp.ones((5, 2)))
    assert not np.any(found.filtered_covariances.matrix)


def tracking(order, rank_one):
    """Constant velocity or acceleration, driven continuously or once a step."""
    F = {2: [[1, 1], [0, 1]], 3: [[1, 1, 0.5], [0, 1, 1], [0, 0, 1]]}[order]
    g = np.array([1 / 6, 1 / 2, 1])[3 - order :]
    full = np.array([[1 / 20, 1 / 8, 1 / 6], [1 / 8, 1 / 3, 1 / 2], [1 / 6, 1 / 2, 1]])
    Q = np.outer(g, g) if rank_one else full[3 - order :, 3 - order :]
    H = np.eye(order)[:1]
    return np.zeros(order), np.eye(order), np.array(F, float), Q, H, np.eye(1)


@pytest.mark.parametrize(
    ("order", "backend"), [(2, "sequential"), (3, "sequential"), (3, "associative")]
)
def test_long_gaps_in_float32(order, backend):
    y = np.cumsum(np.random.default_rng(0).normal(size=(400, 1)), 0)
    y[100:350] = NAN
    for rank_one in (True, False):
        arrays = [np.float32(x) for x in (*tracking(order, rank_one), y)]
        right = oracle_edge.smooth(*arrays)
        found = [np.asarray(x) for x in run(tuple(map(jnp.asarray, arrays)), backend)]
        assert max(off(*both) for both in zip(found[:4], right)) < 1e-3
        assert abs(found[4] - right[4]) < 1e-4 * abs(right[4])
        assert lowest(np.float64(found[3])) > -1e-5


def test_without_data_the_smoother_is_the_filter():
    g = jnp.array([0.005, 0.1])
    F, H = jnp.array([[1, 0.1], [0, 1]]), jnp.array([[1.0, 0.0]])
    arrays = (jnp.ones(2), jnp.eye(2), F, jnp.outer(g, g), H, jnp.eye(1))
    found = run((*arrays, jnp.full((400, 1), NAN)), "sequential")
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], found[3])


def test_dynamics_without_noise(x64):
    F = np.array([[0.4, 0.5, 0.2], [0.1, 0.3, -0.6], [0.7, 0.2, 0.1]])
    H, y = np.eye(3)[:1], np.random.default_rng(0).normal(size=(100, 1))
    arrays = (np.ones(3), np.eye(3), F, np.zeros((3, 3)), H, np.eye(1), y)
    found = list(map(np.asarray, run(tuple(map(jnp.asarray, arrays)), "sequential")))
    right = oracle_edge.smooth(*arrays)
    assert max(off(*both) for both in zip(found[:4], right)) < 1e-12
    numbers = (ScaledIdentity(x) for x in (1.0, 0.5, 0.0, 1.0, 1.0))
    diagonal = LGSSM(jnp.ones(1), *numbers, dynamics_bias=jnp.ones(1))
    small = lgssm_smoother(diagonal, jnp.asarray(y), backend="sequential")
    dense = diagonal._replace(dynamics_weights=jnp.full((1, 1), 0.5))
    large = lgssm_smoother(dense, jnp.asarray(y), backend="sequential")
    assert np.allclose(small.smoothed_means, large.smoothed_means, rtol=1e-12)
    draws = lgssm_sample(dense, jax.random.key(0), jnp.asarray(y), num_samples=3)
    follows = 0.5 * draws[:, :-1] + 1
    assert np.allclose(draws[:, 1:], follows, rtol=1e-12)


def test_one_sided_derivatives_without_noise(x64):
    """At R = 0, and at Q = 0 in a direction that is not diagonal."""
    rng = np.random.default_rng(3)
    P, H = jnp.eye(2), jnp.array([[1.0, 0.3], [-0.4, 1.0]])
    F, y = jnp.array([[0.9, 0.2], [-0.1, 0.8]]), jnp.asarray(rng.normal(size=(4, 2)))
    along = jnp.array([[1.0, 0.6], [0.6, 2.0]])

    def model_of(q, r):
        return LGSSM(jnp.zeros(2), P, F, q * along, H, r * jnp.eye(2))

    @jax.jit
    def smooth(q, r):
        model = model_of(q, r)
        found = lgssm_smoother(model, y, backend="sequential")
        spread = found.smoothed_covariances.matrix
        return found.log_likelihood, found.smoothed_means, spread

    along_of = jax.jit(lambda at, direction: jax.jvp(smooth, at, direction)[1])
    step = 1e-7
    for at, direction in (((0.5, 0.0), (0.0, 1.0)), ((0.0, 0.5), (1.0, 0.0))):
        found = along_of(at, direction)
        further = smooth(*(a + step * d for a, d in zip(at, direction)))
        here = smooth(*at)
        for slope, a, b in zip(found, further, here):
            assert np.allclose(slope, (a - b) / step, rtol=1e-4, atol=1e-5)

    def evidence(q, r):
        return lgssm_log_likelihood(model_of(q, r), y, backend="sequential")

    def curve(q, r, dq, dr):
        slope = lambda q, r: jax.jvp(evidence, (q, r), (dq, dr))[1]  # noqa: E731
        return jax.jvp(slope, (q, r), (dq, dr))[1]

    for edge in ((0.0, 0.5, 1.0, 0.0), (0.5, 0.0, 0.0, 1.0)):
        assert np.isfinite(jax.jit(curve)(*edge))
