"""Series with gaps, and matrices that recur: the same posterior, of fewer steps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.kalman.lgssm import pose
from elk_ssm.kalman.recurring_filter import gains_of
from elk_ssm.linalg.structure import to_dense

STEPS, SIZE = 4200, 3
pytestmark = pytest.mark.usefixtures("x64")
KINDS = ("weekly", "now and then", "one sensor", "correlated", "twelve months", "wide")


def case(kind):
    """A model that forgets, static or with T entries of F, and its series."""
    rng = np.random.default_rng(5)
    seen = 5 if kind == "wide" else SIZE
    F = rng.normal(size=(SIZE, SIZE))
    F *= 0.3 / np.abs(np.linalg.eigvals(F)).max()
    H = rng.normal(size=(seen, SIZE))
    Q, R = np.eye(SIZE), np.diag(rng.uniform(0.5, 1, seen))
    y = 3 * rng.normal(size=(STEPS, seen))
    gaps = np.arange(STEPS) % 7 >= 5
    if kind == "now and then":
        gaps = rng.random(STEPS) < 0.01
    if kind == "correlated":
        R = R + 0.1
    if kind in ("one sensor", "wide"):
        y[gaps, 1] = np.nan
    elif kind == "twelve months":
        F = np.where((np.arange(STEPS) % 12 == 3)[:, None, None], -0.5 * F, F)
    else:
        y[gaps] = np.nan
    if kind == "slow":
        F, Q = np.diag([0.999, 0.9995, 0.5]), 1e-6 * np.eye(SIZE)
    if kind == "next to no noise":
        R = R * 1e-14
    if kind == "no gaps":
        y = np.where(np.isnan(y), 0.0, y)
    return F, Q, H, R, y


def model_of(kind, dtype=jnp.float64):
    F, Q, H, R, y = (jnp.asarray(x, dtype) for x in case(kind))
    zero, unit = jnp.zeros(SIZE, dtype), jnp.eye(SIZE, dtype=dtype)
    return elk.LGSSM(zero, unit, F, Q, H, R), y


def dense(F, Q, H, R, y):
    """NumPy: information in, and the smoother of Rauch, Tung and Striebel."""
    F = np.broadcast_to(F, (len(y), SIZE, SIZE))
    m, P, evidence, found, ahead = np.zeros(SIZE), np.eye(SIZE), 0.0, [], []
    for t, row in enumerate(y):
        if t:
            m, P = F[t] @ m, F[t] @ P @ F[t].T + Q
        ahead.append((m, P))
        ok = ~np.isnan(row)
        h, r = H[ok], R[np.ix_(ok, ok)]
        S, error = h @ P @ h.T + r, row[ok] - h @ m
        evidence -= 0.5 * error @ np.linalg.solve(S, error)
        evidence -= 0.5 * np.linalg.slogdet(2 * np.pi * S)[1]
        new = np.linalg.inv(np.linalg.inv(P) + h.T @ np.linalg.solve(r, h))
        m, P = m + new @ h.T @ np.linalg.solve(r, error), new
        found.append((m, P))
    smoothed, crosses = [found[-1]], []
    for t in range(len(y) - 2, -1, -1):
        (m, P), (m1, P1) = found[t], ahead[t + 1]
        G = P @ F[t + 1].T @ np.linalg.inv(P1)
        later, spread = smoothed[-1]
        crosses.append(G @ spread)
        smoothed.append((m + G @ (later - m1), P + G @ (spread - P1) @ G.T))
    parts = (np.array(x) for pair in (found, smoothed[::-1]) for x in zip(*pair))
    return (*parts, np.array(crosses[::-1]), evidence)


def smooth(model, y):
    found = elk.lgssm_smoother(model, y, backend="sequential", cross_covariances=True)
    return (
        found.filtered_means,
        to_dense(found.filtered_covariances),
        found.smoothed_means,
        to_dense(found.smoothed_covariances),
        to_dense(found.cross_covariances),
        found.log_likelihood,
    )


@pytest.mark.parametrize("kind", [*KINDS, "slow", "next to no noise"])
def test_is_the_posterior_of_every_step(kind):
    found = smooth(*model_of(kind))
    for one, other in zip(found, dense(*case(kind))):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
    only = elk.lgssm_filter(*model_of(kind), backend="sequential")
    np.testing.assert_allclose(only.log_likelihood, found[-1], rtol=1e-12)


@pytest.mark.parametrize("kind", ["weekly", "now and then", "twelve months"])
def test_float32_keeps_its_digits(kind):
    found = smooth(*model_of(kind, jnp.float32))
    for one, other in zip(found, dense(*case(kind))):
        assert one.dtype == jnp.float32
        assert np.abs(one - other).max() <= 3e-6 * np.abs(other).max()


def table(kind):
    problem = pose(*model_of(kind), None, None)
    few = jax.jit(gains_of)(problem)
    return bool(few.holds), int(few.slots.max()) + 1


def test_few_steps_are_computed_where_they_recur():
    for kind in ("weekly", "one sensor", "twelve months", "correlated"):
        holds, count = table(kind)
        assert holds, kind
        assert count < STEPS // 50, kind
    assert table("now and then")[0]


def test_every_step_is_where_they_do_not():
    # Not to be forgotten, not to keep its digits, or better left to be leapt over.
    for kind in ("slow", "next to no noise", "no gaps"):
        assert not table(kind)[0], kind


def test_no_step_copies_the_whole_series():
    model, y = model_of("weekly")
    program = jax.jit(lambda y: smooth(model, y)).lower(y).compile().as_text()
    bodies = set(re.findall(r"body=(%[\w.\-]+)", program))
    loops = [x for x in program.split("\n\n") if x.split(" ", 1)[0] in bodies]
    assert len(loops) == len(bodies) > 10
    whole = rf"= \w+\[{STEPS}(?:,\d+)*\]\S* copy\(.*"
    assert not [copy for body in loops for copy in re.findall(whole, body)]


def test_a_batch_is_its_members():
    (model, y), other = model_of("weekly"), case("now and then")[4]
    both = jnp.stack([y, jnp.asarray(other)])
    found = jax.jit(jax.vmap(lambda y: smooth(model, y)))(both)
    for k, one in enumerate(both):
        for many, alone in zip(found, smooth(model, one)):
            np.testing.assert_allclose(many[k], alone, rtol=1e-9, atol=1e-11)


def test_derivatives_are_those_of_the_whole_recursion():
    model, y = model_of("weekly")

    def scaled(scale):
        Q = model.dynamics_covariance * scale
        return model._replace(dynamics_covariance=Q)

    def value(scale):
        return elk.lgssm_smoother(scaled(scale), y, backend="sequential").log_likelihood

    def means(scale):
        return elk.lgssm_smoother(scaled(scale), y, backend="sequential").smoothed_means

    h, at = 1e-5, jax.jit(lambda s: (value(s), means(s)))
    low, high = at(1.0 - h), at(1.0 + h)
    slope = jax.jit(jax.grad(value))(1.0)
    np.testing.assert_allclose(slope, (high[0] - low[0]) / (2 * h), rtol=1e-6)
    moved = jax.jit(lambda s: jax.jvp(means, (s,), (1.0,))[1])(1.0)
    difference = (high[1] - low[1]) / (2 * h)
    np.testing.assert_allclose(moved, difference, rtol=1e-5, atol=1e-7)


def test_one_slow_dimension_among_many_is_not_taken_for_resting():
    # In a week it grows by less than what counts as a rounding, and by more in all.
    size, slow, growth = 12, 10, 2.0**-22
    decay = jnp.full(size, 0.3, jnp.float32).at[slow].set(1.0)
    noise = jnp.ones(size, jnp.float32).at[slow].set(growth)
    seen = jnp.eye(size, dtype=jnp.float32).at[slow, slow].set(0.0)
    # Mixed, so that no dimension is a model of its own.
    mixing = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)) / 4)
    H = mixing.astype(jnp.float32) @ seen
    unit, zero = jnp.eye(size, dtype=jnp.float32), jnp.zeros(size, jnp.float32)
    model = elk.LGSSM(zero, unit, jnp.diag(decay), jnp.diag(noise), H, unit)
    y = np.zeros((STEPS, size), np.float32)
    y[np.arange(STEPS) % 7 >= 5] = np.nan
    found = elk.lgssm_filter(model, jnp.asarray(y), backend="sequential")
    variances = np.asarray(to_dense(found.filtered_covariances))[:, slow, slow]
    expected = 1 + growth * np.arange(STEPS)
    np.testing.assert_allclose(variances, expected, rtol=3e-4)
