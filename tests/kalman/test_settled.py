"""Covariances that have come to rest: the same posterior, of fewer steps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.kalman.lgssm import pose
from elk_ssm.kalman.settled_filter import filter_settling
from elk_ssm.linalg.structure import to_dense

STEPS = 300
pytestmark = pytest.mark.usefixtures("x64")


def case(kind, size=3):
    """A static model, T entries of its matrices, and a series."""
    rng = np.random.default_rng(3)
    F = rng.normal(size=(size, size))
    F *= 0.9 / np.abs(np.linalg.eigvals(F)).max()
    H = rng.normal(size=(size, size))
    Q, R = np.eye(size), np.diag(rng.uniform(0.2, 1, size))
    y = 3 * rng.normal(size=(STEPS, size))
    if kind == "correlated":
        R = R + 0.1
    if kind == "gaps":
        y[[3, 100, 101], 0] = np.nan
        y[150] = np.nan
    if kind == "forecast":
        y[250:] = np.nan
    if kind == "one never seen":
        y[:, 1] = np.nan
    if kind == "nothing moves":  # P falls like 1 / t and never rests
        F, Q = np.eye(size), np.zeros((size, size))
    if kind == "grows unseen":
        F = np.diag([0.5, 0.6, 1.02])
        Q = np.diag([1, 1, 1e-12])
        H[:, 2] = 0
    if kind == "slow":
        F = np.diag([0.999, 0.9995, 0.5])
        Q = 1e-6 * np.eye(size)
    return F, Q, H, R, y


def over_time(kind):
    F, Q, H, R, y = case(kind)
    F, Q, H, R = (np.broadcast_to(x, (STEPS, *x.shape)).copy() for x in (F, Q, H, R))
    if kind == "two regimes":
        F[140:] *= 0.5
        R[200:] *= 2
    return F, Q, H, R, y


def dense(F, Q, H, R, y):
    """NumPy, one solve a step."""
    m, P, ll = np.zeros(3), np.eye(3), 0.0
    found, terms = [], []
    for t, row in enumerate(y):
        if t:
            m, P = F[t] @ m, F[t] @ P @ F[t].T + Q[t]
        seen = ~np.isnan(row)
        h, r = H[t][seen], R[t][np.ix_(seen, seen)]
        S, error = h @ P @ h.T + r, row[seen] - h @ m
        K = np.linalg.solve(S, h @ P).T
        ll -= 0.5 * (error @ np.linalg.solve(S, error))
        ll -= 0.5 * np.linalg.slogdet(2 * np.pi * S)[1]
        A = np.eye(3) - K @ h
        m, P = m + K @ error, A @ P @ A.T + K @ r @ K.T
        found.append((m, P))
        terms.append(ll)
    means, covs = (np.array(x) for x in zip(*found))
    smoothed, spreads, crosses = means.copy(), covs.copy(), []
    for t in range(len(y) - 2, -1, -1):
        ahead = F[t + 1] @ covs[t] @ F[t + 1].T + Q[t + 1]
        G = np.linalg.solve(ahead, F[t + 1] @ covs[t]).T
        smoothed[t] = means[t] + G @ (smoothed[t + 1] - F[t + 1] @ means[t])
        spreads[t] = covs[t] + G @ (spreads[t + 1] - ahead) @ G.T
        crosses.append(G @ spreads[t + 1])
    return means, covs, smoothed, spreads, np.array(crosses[::-1]), ll


KINDS = ("plain", "correlated", "gaps", "forecast", "one never seen", "nothing moves")
KINDS += ("grows unseen", "slow", "two regimes")


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_posterior_of_every_step(kind):
    varying = kind == "two regimes"
    parts = over_time(kind)
    F, Q, H, R = (jnp.asarray(x if varying else x[0]) for x in parts[:4])
    model = elk.LGSSM(jnp.zeros(3), jnp.eye(3), F, Q, H, R)
    y = jnp.asarray(parts[4])
    found = elk.lgssm_smoother(model, y, backend="sequential", cross_covariances=True)
    means, covs, smoothed, spreads, crosses, evidence = dense(*parts)
    close = {"rtol": 1e-7, "atol": 1e-9}
    np.testing.assert_allclose(found.filtered_means, means, **close)
    np.testing.assert_allclose(to_dense(found.filtered_covariances), covs, **close)
    np.testing.assert_allclose(found.log_likelihood, evidence, rtol=1e-10)
    if kind != "nothing moves":  # whose smoother in NumPy inverts what is singular
        np.testing.assert_allclose(found.smoothed_means, smoothed, **close)
        spread = to_dense(found.smoothed_covariances)
        np.testing.assert_allclose(spread, spreads, **close)
        np.testing.assert_allclose(to_dense(found.cross_covariances), crosses, **close)
    only = elk.lgssm_filter(model, y, backend="sequential")
    np.testing.assert_allclose(only.log_likelihood, evidence, rtol=1e-10)


def held(kind):
    F, Q, H, R, y = case(kind)
    model = elk.LGSSM(jnp.zeros(3), jnp.eye(3), *map(jnp.asarray, (F, Q, H, R)))
    problem = pose(model, jnp.asarray(y), None, None)
    return np.asarray(jax.jit(filter_settling)(problem)[1])


def test_what_rests_is_not_computed_again():
    assert held("plain").mean() > 0.7
    assert held("one never seen").mean() > 0.7
    gaps = held("gaps")
    assert gaps[40:85].all()
    assert not gaps[100:110].any()
    assert gaps[200:].any()
    assert not held("nothing moves").any()


@pytest.mark.parametrize("size", [4, 12])
def test_no_step_or_leap_copies_the_whole_series(size):
    # In the time of one leap; a copy for each would make the time grow with T squared.
    F, Q, H, R, y = (jnp.asarray(x) for x in case("static", size))
    smooth = jax.jit(
        lambda y: elk.lgssm_smoother(
            elk.LGSSM(jnp.zeros(size), jnp.eye(size), F, Q, H, R), y
        )
    )
    program = smooth.lower(y).compile().as_text()
    bodies = set(re.findall(r"body=(%[\w.\-]+)", program))
    loops = [x for x in program.split("\n\n") if x.split(" ", 1)[0] in bodies]
    assert len(loops) == len(bodies) > 4
    whole = rf"= f64\[{STEPS},{size}(?:,{size})?\]\S* copy\(.*"
    assert not [copy for body in loops for copy in re.findall(whole, body)]


def test_derivatives_are_those_of_the_whole_recursion():
    F, Q, H, R, y = (jnp.asarray(x) for x in case("gaps"))

    def found(scale):
        model = elk.LGSSM(
            scale * jnp.ones(3), jnp.eye(3) * scale, F * scale, Q * scale, H, R
        )
        return elk.lgssm_smoother(model, y, backend="sequential")

    def evidence(scale):
        return found(scale).log_likelihood

    h, at = 1e-5, jax.jit(found)
    near = [at(1.0 + step) for step in (-h, h)]
    slope = jax.jit(jax.grad(evidence))(1.0)
    ends = [x.log_likelihood for x in near]
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / (2 * h), rtol=1e-6)
    means = jax.jit(lambda s: jax.jvp(lambda s: found(s).smoothed_means, (s,), (1.0,)))
    ends = [x.smoothed_means for x in near]
    difference = (ends[1] - ends[0]) / (2 * h)
    np.testing.assert_allclose(means(1.0)[1], difference, rtol=1e-5, atol=1e-7)


def test_a_batch_is_its_members():
    parts = over_time("plain")
    y = np.stack([parts[4], parts[4]])
    y[1, 120, 1] = np.nan
    model = elk.LGSSM(jnp.zeros(3), jnp.eye(3), *(jnp.asarray(x[0]) for x in parts[:4]))
    smooth = jax.vmap(lambda y: elk.lgssm_smoother(model, y, backend="sequential"))
    both = jax.jit(smooth)(jnp.asarray(y))
    for k, one in enumerate(y):
        exact = dense(*parts[:4], one)
        means = both.smoothed_means[k]
        np.testing.assert_allclose(means, exact[2], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(both.log_likelihood[k], exact[-1])


def test_float32_rests_within_its_rounding():
    F, Q, H, R, y = case("plain")
    exact = dense(*over_time("plain"))
    model = elk.LGSSM(*map(jnp.float32, (np.zeros(3), np.eye(3), F, Q, H, R)))
    found = elk.lgssm_smoother(model, jnp.float32(y), backend="sequential")
    for one, other in (
        (found.smoothed_means, exact[2]),
        (found.filtered_means, exact[0]),
    ):
        assert abs(one - other).max() <= 2e-6 * abs(other).max()
    covs = to_dense(found.smoothed_covariances)
    assert abs(covs - exact[3]).max() <= 5e-6 * abs(exact[3]).max()


@pytest.mark.parametrize("emissions", [3, 5])
def test_a_batch_of_series_has_the_gradient_of_its_sum(emissions):
    # Of the filter that settles, of correlated noise, of more emissions than states.
    F, Q, _, _, _ = case("plain")
    rng = np.random.default_rng(8)
    ys = jnp.asarray(rng.normal(size=(3, 160, emissions)))
    params = {
        "F": jnp.asarray(F),
        "H": jnp.asarray(rng.normal(size=(emissions, 3))),
        "R": jnp.eye(emissions) + 0.1,
    }

    def value(params, y):
        F, H, R = (params[name] for name in "FHR")
        model = elk.LGSSM(jnp.zeros(3), elk.ScaledIdentity(1.0), F, Q, H, R)
        return elk.lgssm_log_likelihood(model, y)

    def total(params):
        return jnp.sum(jax.vmap(lambda y: value(params, y))(ys))

    each = jax.jit(jax.grad(value))
    slopes = [each(params, y) for y in ys]
    expected = jax.tree.map(lambda *parts: sum(parts), *slopes)
    found = jax.jit(jax.grad(total))(params)
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-8, atol=1e-8)
