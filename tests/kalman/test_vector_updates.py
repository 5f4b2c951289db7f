"""A whole vector at once: digits, who decides, and what a batch and a derivative do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.kalman import rauch_tung_striebel as rts
from elk_ssm.kalman.delicate import has_exact_dynamics, has_exact_emissions
from elk_ssm.kalman.lgssm import pose
from elk_ssm.kalman.vector_updates import by_scalars, in_turn
from elk_ssm.kalman.whitening import Emission
from elk_ssm.linalg.structure import Dense, Diagonal, to_dense

D, STEPS = 12, 130
STEP = jax.jit(in_turn), jax.jit(by_scalars)
BACK = jax.jit(rts._in_turn), jax.jit(rts._by_scalars)
KINDS = ("dense", "axes", "few", "correlated")


def one_step(kind, ratio, seed=0, size=16):
    """m, P, H, R and values, in float64, of noise `ratio` times what is seen."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    P = root @ root.T / size
    seen = 6 if kind == "few" else size
    H = rng.normal(size=(seen, size)) / np.sqrt(size)
    H = np.eye(size) if kind == "axes" else H
    r = ratio * np.diag(H @ P @ H.T) * rng.uniform(0.5, 1, seen)
    R = np.diag(r)
    if kind == "correlated":
        R += 0.5 * np.sqrt(np.outer(r, r)) * (1 - np.eye(seen))
    m = rng.normal(size=size)
    x = m + root @ rng.normal(size=size) / np.sqrt(size)
    return m, P, H, R, H @ x + np.sqrt(r) * rng.normal(size=seen)


def exactly(m, P, H, R, z, seen=None):
    m, P, H, R, z = (np.float64(x) for x in (m, P, H, R, z))
    seen = np.ones(len(z), bool) if seen is None else seen
    H, R, e = H[seen], R[np.ix_(seen, seen)], (z - H @ m)[seen]
    S = H @ P @ H.T + R
    K = np.linalg.solve(S, H @ P).T
    A = np.eye(len(P)) - K @ H
    density = -0.5 * (e @ np.linalg.solve(S, e) + np.linalg.slogdet(2 * np.pi * S)[1])
    return m + K @ e, A @ P @ A.T + K @ R @ K.T, density


def given(m, P, H, R, z, seen=None, dtype=np.float32):
    m, P, H, R, z = (jnp.asarray(dtype(x)) for x in (m, P, H, R, z))
    diagonal = bool(jnp.array_equal(R, jnp.diag(jnp.diagonal(R))))
    R = Diagonal(jnp.diagonal(R)) if diagonal else Dense(R)
    seen = np.ones(len(z), bool) if seen is None else seen
    return m, P, Emission(Dense(H), R, jnp.where(seen, z, 0), jnp.asarray(seen), None)


def errors(found, expected):
    """Of the mean and the covariance in deviations, and of the log density."""
    mean, cov, density = (np.float64(x) for x in found)
    scale = np.sqrt(np.diag(expected[1]))
    gap = abs(cov - expected[1]) / np.outer(scale, scale)
    size = abs(expected[2]) + len(mean)
    return np.array([
        (abs(mean - expected[0]) / scale).max(), gap.max(),
        abs(density - expected[2]) / size,
    ])  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [1.0, 0.03, 3e-3])
@pytest.mark.parametrize("size", [7, 16, 24])
def test_no_digits_are_lost(kind, ratio, size):
    # Twice what scalars lose, and a few roundings; mostly it is a tenth to one half.
    lost = []
    for seed in range(8):
        parts = [np.float32(x) for x in one_step(kind, ratio, seed, size)]
        expected = exactly(*parts)
        found = [f(*given(*parts)) for f in STEP]
        lost.append([errors(x, expected) for x in found])
        cov = np.asarray(found[0][1])
        assert (cov == cov.T).all()
        assert np.linalg.eigvalsh(np.float64(cov))[0] > 0
    at_once, scalars = np.median(lost, axis=0)
    assert (at_once <= 2 * scalars + 8 * np.finfo(np.float32).eps).all()


def test_float64(x64):
    parts = one_step("dense", 1e-5)
    found, other = (f(*given(*parts, dtype=np.float64)) for f in STEP)
    assert errors(found, [np.asarray(x) for x in other]).max() < 1e-9


@pytest.mark.parametrize("kind", ["dense", "correlated"])
def test_what_is_missing_says_nothing(kind):
    parts = [np.float32(x) for x in one_step(kind, 0.1)]
    seen = np.arange(16) % 3 > 0
    found = STEP[0](*given(*parts, seen))
    assert errors(found, exactly(*parts, seen)).max() < 1e-5
    mean, cov, density = STEP[0](*given(*parts, seen & False))
    assert (mean == parts[0]).all()
    assert (cov == jnp.float32(parts[1] + parts[1].T) / 2).all()
    assert density == 0


def same(found, other):
    return all(np.array_equal(*pair, equal_nan=True) for pair in zip(found, other))


def test_next_to_no_noise_is_taken_in_by_scalars():
    bound = np.finfo(np.float32).eps ** 0.5
    for ratio, is_at_once in ((8 * bound, True), (bound / 2, False), (0.0, False)):
        operands = given(*one_step("dense", ratio))
        found, other = (f(*operands) for f in STEP)
        assert same(found, other) != is_at_once
        assert np.isfinite(found[1]).all()
    parts = one_step("dense", 0.1)
    parts[3][2, 2] = 0  # one of many
    assert same(*(f(*given(*parts)) for f in STEP))


def test_nan_is_not_lost():
    m, P, H, R, z = one_step("dense", 0.1)
    P[3, 3] = np.nan
    assert np.isnan(STEP[0](*given(m, P, H, R, z))[1]).any()


@pytest.mark.parametrize("kind", ["diagonal", "mixed", "plenty", "singular"])
@pytest.mark.parametrize("size", [7, 16, 24])
def test_conditioning_on_the_successor(kind, size):
    rng = np.random.default_rng(1)
    _, P, F, _, _ = one_step("dense", 1.0, size=size)
    root = rng.normal(size=(size, size)) / np.sqrt(size)
    Q = root @ root.T + 0.1 * np.eye(size)
    if kind in ("diagonal", "plenty"):
        Q = np.eye(size) / {"diagonal": 8, "plenty": 1}[kind]
    if kind == "singular":
        Q[:, 2] = Q[2] = 0
    P, F, Q = (np.float32(x) for x in (P, F, Q))
    mixed = kind in ("mixed", "singular")
    noise = Dense(jnp.asarray(Q)) if mixed else Diagonal(jnp.diagonal(Q))
    operands = jnp.asarray(P), jnp.asarray(F), noise, None
    (E, L), scalars = (f(*operands) for f in BACK)
    # With less noise small models go by scalars, as all with none do.
    quickly = kind == "plenty" or (size > 7 and kind != "singular")
    assert same((E, L), scalars) != quickly
    P, F, Q = (np.float64(x) for x in (P, F, Q))
    gain = np.linalg.solve(F @ P @ F.T + Q, F @ P).T
    A = np.eye(size) - gain @ F
    assert abs(E - gain).max() < 1e-4
    assert abs(L - (A @ P @ A.T + gain @ Q @ gain.T)).max() < 1e-5


def models(kind):
    """A model of D dimensions, T entries of everything, and a series with gaps."""
    rng = np.random.default_rng(2)
    F, H = (rng.normal(size=(STEPS, D, D)) / np.sqrt(D) for _ in range(2))
    Q, R = np.eye(D) + 0.2, 0.5 * np.eye(D) + 0.1
    if kind != "varying":
        F, H = (np.broadcast_to(x[0], x.shape) for x in (F, H))
    if kind == "diagonal":
        Q, R = np.eye(D), np.diag(rng.uniform(0.2, 1, D))
    Q, R = (np.broadcast_to(x, F.shape) for x in (Q, R))
    y = 3 * rng.normal(size=(STEPS, D))
    y[::20] = np.nan
    y[::7, 1] = np.nan
    static = kind != "varying"
    parts = [jnp.asarray(x[0] if static else x) for x in (F, Q, H, R)]
    if kind == "diagonal":
        parts[1], parts[3] = (Diagonal(jnp.diagonal(parts[i])) for i in (1, 3))
    model = elk.LGSSM(jnp.zeros(D), jnp.eye(D), *parts)
    return model, (F, Q, H, R, y)


def smoothed(F, Q, H, R, y):
    m, P, total, filtered = np.zeros(D), np.eye(D), 0.0, []
    for t, row in enumerate(y):
        if t:
            m, P = F[t] @ m, F[t] @ P @ F[t].T + Q[t]
        m, P, density = exactly(m, P, H[t], R[t], row, ~np.isnan(row))
        total += density
        filtered.append((m, P))
    means, covs = [m], [P]
    for t in range(len(y) - 2, -1, -1):
        m, P = filtered[t]
        S = F[t + 1] @ P @ F[t + 1].T + Q[t + 1]
        E = np.linalg.solve(S, F[t + 1] @ P).T
        means.append(m + E @ (means[-1] - F[t + 1] @ m))
        covs.append(P + E @ (covs[-1] - S) @ E.T)
    return np.array(means[::-1]), np.array(covs[::-1]), total


@pytest.mark.parametrize("kind", ["diagonal", "mixed", "varying"])
def test_the_smoother_is_that_of_numpy(kind, x64):
    model, arrays = models(kind)
    means, covs, evidence = smoothed(*arrays)
    smooth = jax.jit(
        lambda y: elk.lgssm_smoother(model, y, backend="sequential")
    )  # traced, so that no form is chosen beforehand
    found = smooth(jnp.asarray(arrays[-1]))
    np.testing.assert_allclose(found.smoothed_means, means, rtol=1e-9, atol=1e-10)
    spread = to_dense(found.smoothed_covariances)
    np.testing.assert_allclose(spread, covs, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.log_likelihood, evidence, rtol=1e-11)


@pytest.mark.parametrize("which", ["emission", "dynamics"])
def test_whether_varying_noise_is_next_to_none(which, x64):
    # By one factor a step where there surely is enough, and else as ever.
    model, arrays = models("varying")
    name = f"{which}_covariance"
    asked = {"emission": has_exact_emissions, "dynamics": has_exact_dynamics}[which]
    ask = jax.jit(
        lambda *x: asked(pose(model._replace(**{name: x[0]}), x[1], None, None), x[2])
    )
    noise = np.array(arrays[1] if which == "dynamics" else arrays[3])
    y, covs = jnp.asarray(arrays[-1]), jnp.ones((STEPS, D, 1)) * jnp.eye(D)
    assert not ask(jnp.asarray(noise), y, covs)
    noise[70, 3] = noise[70, :, 3] = 0
    assert ask(jnp.asarray(noise), y, covs)
    many = jax.vmap(ask, (0, None, None))(jnp.stack([noise, noise]), y, covs)
    assert many.all()


def test_a_batch_makes_no_library_call_and_is_its_members():
    """Batched calls can hang on a CPU with few cores; one at a time are quick."""
    model, arrays = models("mixed")
    model = jax.tree.map(jnp.float32, model)
    y = jnp.float32(arrays[-1])

    def smooth(y):
        found = elk.lgssm_smoother(model, y, backend="sequential")
        return found.smoothed_means, found.smoothed_covariances[0]

    alone = jax.jit(smooth).lower(y).compile()
    assert "lapack_spotrf" in alone.as_text()
    both = jnp.stack([y, y[::-1]])
    batch = jax.jit(jax.vmap(smooth)).lower(both).compile()
    assert "lapack_" not in batch.as_text()
    for found, expected in zip(batch(both), alone(y)):
        np.testing.assert_allclose(found[0], expected, atol=2e-5)


def test_derivatives_are_those_of_scalars(x64):
    model, arrays = models("diagonal")
    y = jnp.asarray(arrays[-1])

    def evidence(scale):
        moved = model._replace(dynamics_weights=scale * model.dynamics_weights)
        return elk.lgssm_smoother(moved, y, backend="sequential").log_likelihood

    value = jax.jit(evidence)
    h = 1e-4
    slope, bend = jax.jit(jax.grad(evidence)), jax.jit(jax.hessian(evidence))
    difference = (value(1.0 + h) - value(1.0 - h)) / (2 * h)
    np.testing.assert_allclose(slope(1.0), difference, rtol=1e-5)
    difference = (slope(1.0 + h) - slope(1.0 - h)) / (2 * h)
    np.testing.assert_allclose(bend(1.0), difference, rtol=1e-5)
    moved = jax.jit(lambda s: jax.jvp(evidence, (s,), (1.0,)))(1.0)
    np.testing.assert_allclose(moved, [value(1.0), slope(1.0)], rtol=1e-10)
    many = jax.jit(jax.vmap(jax.grad(evidence)))(jnp.array([1.0, 0.9]))
    np.testing.assert_allclose(many, [slope(1.0), slope(0.9)], rtol=1e-10)
