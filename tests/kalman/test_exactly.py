"""Exact emissions: what is known for sure is told from what rounding left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.fuzz_linear import WAYS, Case
from tests.kalman import oracle_edge

import elk_ssm as elk
from benchmarks import fuzz_linear
from elk_ssm.kalman.delicate import has_exact_dynamics, has_exact_emissions
from elk_ssm.kalman.filtering import filter_problem
from elk_ssm.kalman.form import chosen_form
from elk_ssm.kalman.lgssm import pose
from elk_ssm.kalman.regular import need_of
from elk_ssm.kalman.smoothing import smooth_problem
from elk_ssm.linalg.structure import ScaledIdentity

ONE, ZERO = ScaledIdentity(1.0), ScaledIdentity(0.0)
ALL = (True,) * 3


@pytest.mark.parametrize("way", WAYS)
def test_a_state_that_is_known_and_grows(way):
    """Two exact rows of three, noise of rank one: its zero grows six times a step."""
    dims = (True, False, True)
    case = Case(
        "singular", way, "float64", 2, "stable", "rank one", "exact", "first", 2, dims,
        7386335,
    )  # fmt: skip
    assert not fuzz_linear.check(case).failures


@pytest.mark.parametrize(
    ("dynamics", "noise", "emission", "rows", "gaps", "prior", "seed"),
    [
        # A known state that decays to 1e-20 agrees with what is seen of it.
        ("rank one", "none", "exact", 5, "none", -2, 1378483851),
        ("rank one", "none", "rank one", 4, "none", 3, 881877656),
        # Rows of ill condition leave 5e-12 of a variance that is zero.
        ("stable", "mixed scales", "exact", 4, "some", 1, 1846609530),
        ("nilpotent", "rank one", "exact", 3, "none", 3, 810742615),
    ],
)
def test_ranks_are_those_of_the_model(
    dynamics, noise, emission, rows, gaps, prior, seed
):
    for way in WAYS[::2]:
        case = Case(
            "singular", way, "float64", rows, dynamics, noise, emission, gaps, prior,
            ALL, seed,
        )  # fmt: skip
        assert fuzz_linear.check(case).ended == "singular"
        assert not fuzz_linear.check(case).failures


def diffuse(arrays, dims=ALL, **how):
    m, P, F, Q, H, R, y = map(jnp.asarray, arrays)
    model = elk.LGSSM(m, elk.Diffuse(jnp.asarray(dims), P), F, Q, H, R)
    return elk.lgssm_smoother(model, y, **how)


def trend(T=12):
    """A local linear trend seen exactly, beside a season that is seen with noise."""
    F = np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, -1]])
    Q, H, R = np.diag([0.5, 0.1, 0.2]), np.array([[1.0, 0, 1], [1, 0, 0]]), np.zeros(2)
    y = np.random.default_rng(1).normal(size=(T, 2)).cumsum(0)
    y[[0, 4, 5]] = np.nan
    y[7, 0] = np.nan
    return np.zeros(3), np.zeros((3, 3)), F, Q, H, np.diag(R), y


@pytest.mark.parametrize("backend", ["sequential", "associative"])
def test_diffuse_priors_beside_exact_emissions(x64, backend):
    arrays = trend()
    found = diffuse(arrays, backend=backend)
    means, covs, log_likelihood = oracle_edge.smooth(*arrays, np.array(ALL))[2:5]
    np.testing.assert_allclose(found.smoothed_means, means, atol=1e-7)
    np.testing.assert_allclose(found.smoothed_covariances.matrix, covs, atol=1e-7)
    np.testing.assert_allclose(found.log_likelihood, log_likelihood, rtol=1e-10)


def test_more_exact_emissions_than_open_dimensions(x64):
    """What is told twice is told once; what contradicts it is impossible."""
    m, P, F, Q, H, R, y = trend()
    twice = np.concatenate([H, H[:1] - 2 * H[1:]])
    again = np.concatenate([y, y[:, :1] - 2 * y[:, 1:]], axis=1)
    once = diffuse((m, P, F, Q, H, R, y))
    model = m, P, F, Q, twice, np.zeros((3, 3))
    found = diffuse((*model, again))
    np.testing.assert_allclose(found.log_likelihood, once.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(found.smoothed_means, once.smoothed_means, atol=1e-7)
    again[9, 2] += 0.01
    assert diffuse((*model, again)).log_likelihood == -np.inf


def test_a_traced_model_finds_out_by_itself(x64):
    arrays = trend()
    now, later = diffuse(arrays), jax.jit(diffuse)(arrays)
    noisy = (*arrays[:5], 0.3 * np.eye(2), arrays[-1])
    for one, other, given in (
        (now, later, arrays),
        (diffuse(noisy), jax.jit(diffuse)(noisy), noisy),
    ):
        np.testing.assert_allclose(one.smoothed_means, other.smoothed_means, atol=1e-9)
        np.testing.assert_allclose(one.log_likelihood, other.log_likelihood)
        assert np.isfinite(one.log_likelihood), given
    both = [np.stack([x, x]) for x in arrays]
    each = jax.vmap(diffuse)(tuple(both))
    np.testing.assert_allclose(each.log_likelihood, [now.log_likelihood] * 2)


def test_draws_are_what_was_seen(x64):
    m, _P, F, Q, H, R, y = map(jnp.asarray, trend())
    model = elk.LGSSM(m, elk.Diffuse(), F, Q, H, R)
    draws = elk.lgssm_sample(model, jax.random.key(0), y, num_samples=4000)
    seen = draws @ H.T
    known = ~np.isnan(y)
    assert np.abs(np.where(known, seen - jnp.where(known, y, 0), 0)).max() < 1e-5
    found = elk.lgssm_smoother(model, y)
    means, covs = found.smoothed_means, found.smoothed_covariances.matrix
    deviations = np.sqrt(np.diagonal(covs, 0, 1, 2))
    off = np.abs(draws.mean(0) - means) - 5 * deviations / np.sqrt(4000)
    assert off.max() < 1e-5
    first = np.cov(draws[:, 0].T)
    np.testing.assert_allclose(first, covs[0], atol=0.1 * np.abs(covs[0]).max())


def test_derivatives_are_those_of_covariances(x64):
    """Of the likelihood in every parameter, at R = 0, by differences of the oracle."""
    m, P, F, Q, H, _R, y = trend()

    def value(q, f, r):
        arrays = m, P, jnp.asarray(F) * f, jnp.asarray(Q) * q, H, r * jnp.eye(2), y
        return diffuse(arrays).log_likelihood

    def truth(q, f, r):
        arrays = m, P, F * f, Q * q, H, r * np.eye(2), y
        return oracle_edge.smooth(*arrays, np.array(ALL))[4]

    slopes = jax.jit(jax.grad(value, (0, 1, 2)))(1.0, 1.0, 0.0)
    step = 1e-4
    for i, slope in enumerate(slopes[:2]):
        at = np.ones(2)
        ends = [truth(*(at + sign * step * np.eye(2)[i]), 0.0) for sign in (1, -1)]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
    # Noise is not less than none.
    here, once, twice = (truth(1.0, 1.0, 1e-5 * k) for k in range(3))
    ahead = (-3 * here + 4 * once - twice) / 2e-5
    np.testing.assert_allclose(slopes[2], ahead, rtol=1e-5)


def test_the_form_is_chosen_by_what_is_known_beforehand():
    y = jnp.ones((3, 2))

    def held(R, form="square_root"):
        model = elk.LGSSM(jnp.zeros(2), ONE, ONE, ONE, jnp.eye(2), R)
        return chosen_form(form, model, pose(model, y, None, None))

    full = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    assert [held(ONE), held(ZERO), held(full)] == ["apart", "exactly", "apart"]
    assert held(jnp.ones((2, 2))) == "either"
    assert held(ZERO, "covariance") == "careful"
    traced = []
    jax.eval_shape(lambda R: (traced.append(held(R)), R)[1], full)
    assert traced == ["either"]


@pytest.mark.parametrize(
    ("Q", "R", "smooth", "held"),
    [
        (np.eye(2), np.eye(2), True, "quick"),
        (np.array([[1.0, 0.4], [0.4, 1.0]]), np.eye(2), True, "quick"),
        (1e-4 * np.eye(2), 1e3 * np.eye(2), True, "covariance"),
        (np.diag([1.0, 0.0]), np.eye(2), True, "careful"),
        (np.diag([1.0, 0.0]), np.eye(2), False, "quick"),
        (np.outer([0.5, 1.0], [0.5, 1.0]), np.eye(2), True, "careful"),
        (np.eye(2), np.diag([1.0, 0.0]), False, "careful"),
        (np.stack([np.eye(2)] * 3), np.eye(2), True, "covariance"),
    ],
)
def test_a_model_whose_need_is_known_is_one_program(Q, R, smooth, held):
    F = jnp.array([[0.9, 0.2], [0.1, 0.7]])
    model = elk.LGSSM(jnp.zeros(2), ONE, F, jnp.asarray(Q), jnp.eye(2), jnp.asarray(R))
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    problem = pose(model, y, None, None)
    assert chosen_form("auto", model, problem, smooth=smooth) == held
    task = smooth_problem if smooth else filter_problem
    text = task.lower(problem, "sequential", form=held).as_text()
    plain = task.lower(problem, "sequential", form="covariance").as_text()
    branches = [x.count("stablehlo.case") for x in (text, plain)]
    assert branches[0] < branches[1] or held == "covariance"
    found, other = (task(problem, "sequential", form=x) for x in (held, "covariance"))
    for one, same in zip(jax.tree.leaves(found), jax.tree.leaves(other)):
        np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-6)


def test_no_care_is_promised_only_where_the_filter_says_so_too():
    """For random models: what is surely regular is so by its filtered moments."""
    rng, counts = np.random.default_rng(0), {"none": 0, "unknown": 0}
    ask = jax.jit(lambda p, covs: (has_exact_emissions(p, covs, ahead=True),
                                   has_exact_dynamics(p, covs)))  # fmt: skip
    for _ in range(60):
        F = rng.normal(size=(3, 3))
        F *= rng.choice([0.3, 0.9, 0.999, 1.1]) / np.abs(np.linalg.eigvals(F)).max()
        roots = [rng.normal(size=(3, 3)) * 10 ** rng.uniform(-2, 1) for _ in range(3)]
        P, Q, R = (root @ root.T for root in roots)
        arrays = np.zeros(3), P, F, Q, rng.normal(size=(3, 3)), R
        model = elk.LGSSM(*map(jnp.float32, arrays))
        y = jnp.float32(rng.normal(size=(20, 3)))
        y = y.at[rng.random(20) < 0.7].set(jnp.nan)
        problem = pose(model, y, None, None)
        need = need_of(problem, smooth=True)
        counts[need] += 1
        if need == "none":
            filtered = filter_problem(problem, "sequential", form="quick")
            assert not any(ask(problem, filtered.filtered_covariances.matrix))
    assert min(counts.values()) > 5


def test_rows_of_very_different_sizes_keep_their_digits():
    case = Case(
        "diffuse", WAYS[2], "float64", 2, "nilpotent", "full", "mixed scales", "long",
        -3, ALL, 1542572,
    )  # fmt: skip
    verdict = fuzz_linear.check(case)
    assert not verdict.failures
    assert verdict.ratio < 0.1
