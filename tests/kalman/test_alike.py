"""Steps that are all alike, smoothed at once: the posterior of single steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.kalman import alike, factors
from elk_ssm.kalman.alike import filter_unless_alike, smooth_unless_alike
from elk_ssm.kalman.doubling import Step, doubled
from elk_ssm.kalman.lgssm import pose
from elk_ssm.kalman.repetition import affine_at_once, tables_of_powers
from elk_ssm.linalg.structure import to_dense

SIZE = 5
GENERAL = ("gaps", "slow", "known start", "singular dynamics", "grows unseen")
ALIKE = ("few seen", "many seen", "diagonal noise", "diagonal all", "grows")
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(autouse=True)
def short_tables(monkeypatch):
    monkeypatch.setattr(alike, "_TABLE", 64)


def case(kind="few seen", seen=3, steps=150):
    """A model and a series."""
    rng = np.random.default_rng(5)
    draw = rng.normal
    F = draw(size=(SIZE, SIZE))
    F *= 0.8 / np.abs(np.linalg.eigvals(F)).max()
    Q, P = (0.3 * np.eye(SIZE) + x @ x.T / SIZE for x in draw(size=(2, SIZE, SIZE)))
    seen = 8 if kind == "many seen" else seen
    H, R = draw(size=(seen, SIZE)), draw(size=(seen, seen))
    R, y = np.eye(seen) + R @ R.T, 3 * draw(size=(steps, seen))
    if kind == "diagonal noise":
        Q, R = elk.Diagonal(np.diag(Q)), elk.Diagonal(np.diag(R))
    if kind == "diagonal all":
        F, H = np.diag(np.diag(F)), np.eye(SIZE)
        y, R = 3 * draw(size=(steps, SIZE)), np.diag(rng.uniform(0.5, 2, SIZE))
    if kind == "grows":
        F = 1.05 * F / 0.8
    if kind == "gaps":
        y[70, 1] = np.nan
    if kind == "slow":
        F, Q = 0.9999 * np.eye(SIZE), 1e-7 * np.eye(SIZE)
    if kind == "known start":
        P = np.zeros_like(P)
    if kind == "singular dynamics":
        Q = np.diag([1.0, 0, 0, 0, 0])
    if kind == "grows unseen":
        F = np.diag([0.5, 0.4, 0.3, 0.2, 1.1])
        H[:, -1] = 0
    bias = draw(size=SIZE)
    model = elk.LGSSM(draw(size=SIZE), P, F, Q, H, R, dynamics_bias=bias)
    return jax.tree.map(jnp.asarray, model), jnp.asarray(y)


def nowhere(problem):
    """What is no answer, in place of the general way."""
    steps, size = problem.offsets.shape
    nan = jnp.full((steps, size, size), jnp.nan, problem.offsets.dtype)
    return (nan[:, 0], nan, nan[:, 0, 0]), (nan[:, 0], nan, nan)


@jax.jit
def at_once(model, y):
    """Moments that are found at once, or NaN."""
    problem = pose(model, y, None, None)
    (means, covs, terms), smoothed = smooth_unless_alike(nowhere, problem, cross=True)
    smoothed = *smoothed[:2], smoothed[2][1:]
    return jnp.sum(terms), means, covs, *smoothed


@jax.jit
def in_turn(model, y):
    how = {"cross_covariances": True, "backend": "sequential"}
    return as_arrays(elk.lgssm_smoother(model, y, **how))


def as_arrays(posterior):
    return [x if isinstance(x, jax.Array) else to_dense(x) for x in posterior]


def assert_close(found, want, tolerance=1e-10):
    for one, other in zip(found, want, strict=True):
        scale = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("steps", [40, 64, 65, 100, 150])
def test_is_what_one_step_after_another_is(steps):
    data = case(steps=steps)
    assert_close(at_once(*data), in_turn(*data))


@pytest.mark.parametrize("kind", ALIKE)
def test_kinds_of_models(kind):
    data = case(kind)
    assert_close(at_once(*data), in_turn(*data))


@pytest.mark.parametrize("kind", GENERAL)
def test_what_is_not_alike_or_not_at_rest_is_left_to_the_general_way(kind):
    for one in at_once(*case(kind)):
        assert bool(jnp.all(jnp.isnan(one)))


def test_a_short_series_need_not_come_to_rest():
    data = case("slow", steps=64)
    assert_close(at_once(*data), in_turn(*data))


def test_a_filter_needs_no_noise_in_every_direction():
    model, y = case("singular dynamics")
    problem = pose(model, y, None, None)
    found = filter_unless_alike(lambda problem: nowhere(problem)[0], problem)
    want = elk.lgssm_filter(model, y, backend="sequential")
    covs = to_dense(want.filtered_covariances)
    assert_close(found[:2], (want.filtered_means, covs))
    assert_close([jnp.sum(found[2])], [want.log_likelihood])


@pytest.mark.parametrize("kind", ["few seen", "gaps", "singular dynamics"])
def test_the_associative_smoother_takes_it_or_leaves_it(kind):
    model, y = case(kind)
    found = elk.lgssm_smoother(model, y, cross_covariances=True, backend="associative")
    assert_close(as_arrays(found), in_turn(model, y))


@pytest.mark.parametrize("kind", ["gaps", "slow"])
def test_one_member_of_a_batch_decides_for_all(kind):
    data = [case(), case(kind)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *data)
    for one in jax.vmap(at_once)(*batch):
        assert bool(jnp.all(jnp.isnan(one)))


def test_a_batch_is_what_its_members_are():
    batch = jax.tree.map(lambda x: jnp.stack([x, 1.01 * x]), case())
    for place in range(2):
        found = [x[place] for x in jax.vmap(at_once)(*batch)]
        assert_close(found, in_turn(*jax.tree.map(lambda x, i=place: x[i], batch)))


def test_derivatives_are_those_of_the_general_way():
    model, y = case(steps=70)

    def loss(backend):
        def value(scale):
            moved = model._replace(dynamics_weights=scale * model.dynamics_weights)
            return elk.lgssm_log_likelihood(moved, y, backend=backend)

        return value

    found = jax.grad(loss("associative"))(1.0)
    np.testing.assert_allclose(found, jax.grad(loss("sequential"))(1.0), rtol=1e-9)


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-4])
def test_digits_of_single_precision(noise):
    """Sensors that are precise, each for itself and several of the same thing."""
    model, y = case("many seen")
    model = model._replace(emission_covariance=noise * model.emission_covariance)
    want = in_turn(model, y)
    found = at_once(*jax.tree.map(jnp.float32, (model, y)))
    assert_close(found[1:], want[1:], 1e-5)
    assert_close(found[:1], want[:1], 1e-5)
    least = jnp.linalg.eigvalsh(found[4])
    assert bool(jnp.all(least > 0))


@pytest.mark.parametrize("length", [2, 3, 16, 21, 80])
def test_tables_of_covariances_and_precisions(length):
    rng = np.random.default_rng(2)
    F, H, P, Q = rng.normal(size=(4, SIZE, SIZE))
    P, Q = P @ P.T, 0.5 * np.eye(SIZE) + Q @ Q.T
    found = doubled(
        jnp.asarray(P), Step(*map(jnp.asarray, (F, Q, H))), length, both=True
    )
    cov, precision = P, np.zeros_like(P)
    for t in range(length):
        cov = np.linalg.inv(np.linalg.inv(cov) + H.T @ H)
        np.testing.assert_allclose(found.covs[t], cov, rtol=1e-8, atol=1e-10)
        scale = max(1e-12, np.max(np.abs(precision)))
        np.testing.assert_allclose(found.later[t] / scale, precision / scale, atol=1e-9)
        cov = F @ cov @ F.T + Q
        precision = F.T @ np.linalg.inv(np.linalg.inv(precision + H.T @ H) + Q) @ F


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 16, 17, 300])
def test_constant_recurrences_by_powers(steps, reverse):
    rng = np.random.default_rng(steps)
    A, drive = 0.4 * rng.normal(size=(SIZE, SIZE)), rng.normal(size=(steps, SIZE))
    found = affine_at_once(
        tables_of_powers(jnp.asarray(A), steps), jnp.asarray(drive), reverse=reverse
    )
    x, B = np.zeros(SIZE), A.T if reverse else A
    for t in range(steps)[:: -1 if reverse else 1]:
        x = B @ x + drive[t]
        np.testing.assert_allclose(found[t], x, rtol=1e-9, atol=1e-10)


def test_a_library_finds_the_factors_that_are_written_out(platforms):
    rng = np.random.default_rng(0)
    root, rhs = jnp.asarray(rng.normal(size=(2, 2, SIZE, SIZE)))
    tall = jnp.asarray(rng.normal(size=(8, SIZE)))
    matrices = root @ jnp.swapaxes(root, 1, 2) + jnp.eye(SIZE)

    def found():
        L = factors.root_of(matrices)
        basis, table = factors.orthonormal(tall)
        stacked = factors.triangle(jnp.concatenate([root, rhs], axis=1))
        unsound = factors.sound_root_of(matrices, loss=1.5, largest=8.0)
        return (
            *(L, factors.solve_lower(L, rhs), factors.solve_upper(L, rhs)),
            *(jnp.isnan(unsound), jnp.swapaxes(stacked, 1, 2) @ stacked),
            *(
                basis @ table,
                basis.T @ basis,
                jnp.isnan(jnp.trace(factors.root_of(-matrices)[0])),
            ),
        )

    every = []
    for platform in ("cpu", "cuda"):
        platforms(platform)
        every.append(found())
    for one, other in zip(*every, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
    assert 0 < jnp.sum(every[0][3]) < every[0][3].size
    assert every[0][7]
    np.testing.assert_allclose(every[0][5], tall, atol=1e-12)
