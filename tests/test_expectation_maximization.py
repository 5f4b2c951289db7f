"""EM against moments of one big Gaussian in NumPy, dynamax, and its own promises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.interop.dynamax import from_dynamax, to_dynamax

from .kalman.oracle import block_diagonal, joint, random_data

pytestmark = pytest.mark.usefixtures("x64")

D, E, U, T = 2, 3, 1, 6


def series(seed=0, count=2, gaps=True):
    """A static model, and series of it with partial gaps; the last one ends early."""
    datas = [
        random_data(seed + 10 * s, T, D, E, U, varying=False) for s in range(count)
    ]
    first = datas[0]
    datas = [
        data._replace(**{k: getattr(first, k) for k in "mPFQHRbBdD"}) for data in datas
    ]
    if not gaps:
        return datas
    ys = [data.y.copy() for data in datas]
    for y in ys:
        y[1, 0] = y[2, 1:] = y[3] = np.nan
    ys[-1][-2:] = np.nan
    return [data._replace(y=y) for data, y in zip(datas, ys)]


def as_model(data, **changes):
    F, Q, H, R, b, B, d, D_ = (jnp.asarray(x[0]) for x in data[2:10])
    model = elk.LGSSM(jnp.asarray(data.m), jnp.asarray(data.P), F, Q, H, R, b, B, d, D_)
    return model._replace(**changes)


def as_data(data, model):
    """The same data under another model, static or not."""
    dense = jax.tree.map(
        lambda x: np.asarray(x.to_dense() if hasattr(x, "to_dense") else x),
        model,
        is_leaf=lambda x: hasattr(x, "to_dense"),
    )
    names = {
        "F": "dynamics_weights",
        "Q": "dynamics_covariance",
        "H": "emission_weights",
        "R": "emission_covariance",
        "b": "dynamics_bias",
        "B": "dynamics_input_weights",
        "d": "emission_bias",
        "D": "emission_input_weights",
    }
    spread = {}
    for key, name in names.items():
        value, old = getattr(dense, name), getattr(data, key)
        spread[key] = np.broadcast_to(value, old.shape)
    return data._replace(m=dense.initial_mean, P=dense.initial_covariance, **spread)


def moments(data):
    """Posterior mean and covariance of all states and all emissions, missing or not."""
    steps = np.flatnonzero(~np.isnan(data.y).all(axis=1))[-1] + 1
    data = data._replace(**{k: getattr(data, k)[:steps] for k in "FQHRbBdDuy"})
    mean, cov = joint(data)
    size = steps * D
    H, R = block_diagonal(data.H), block_diagonal(data.R)
    shift = (data.d + np.einsum("tij,tj->ti", data.D, data.u)).ravel()
    prior = cov.reshape(size, size)
    means = np.append(mean.ravel(), H @ mean.ravel() + shift)
    whole = np.block([[prior, prior @ H.T], [H @ prior, H @ prior @ H.T + R]])
    seen = np.append(np.zeros(size, bool), ~np.isnan(data.y).ravel())
    gain = np.linalg.solve(whole[np.ix_(seen, seen)], whole[seen]).T
    means = means + gain @ (data.y.ravel()[seen[size:]] - means[seen])
    whole = whole - gain @ whole[seen]
    second = whole + np.outer(means, means)
    z = [np.arange(t * D, (t + 1) * D) for t in range(steps)]
    y = [np.arange(size + t * E, size + (t + 1) * E) for t in range(steps)]
    return means, second, z, y, data.u


def products(pairs):
    """Sums of E[a a'], E[a x'], E[x x'] and the count; x has inputs and a one."""
    total = [0, 0, 0, 0]
    for (means, second, *_), own, before, u in pairs:
        known = np.append(u, 1.0)
        a, z = means[own], means[before]
        ax = np.hstack([second[np.ix_(own, before)], np.outer(a, known)])
        zx = np.hstack([second[np.ix_(before, before)], np.outer(z, known)])
        xx = np.vstack([zx, np.hstack([np.outer(known, z), np.outer(known, known)])])
        parts = second[np.ix_(own, own)], ax, xx, 1
        total = [old + new for old, new in zip(total, parts)]
    return total


def both(datas):
    """The products of the dynamics and of the emission, and the first moments."""
    every = [moments(data) for data in datas]
    dynamics = [
        (m, m[2][t], m[2][t - 1], m[4][t]) for m in every for t in range(1, len(m[2]))
    ]
    emission = [(m, m[3][t], m[2][t], m[4][t]) for m in every for t in range(len(m[2]))]
    first = np.mean([m[0][:D] for m in every], axis=0)
    square = np.mean([m[1][:D, :D] for m in every], axis=0)
    return products(dynamics), products(emission), (first, square)


def regressed(sums):
    aa, ax, xx, n = sums
    W = np.linalg.solve(xx, ax.T).T
    return W, (aa - W @ ax.T) / n


def stacked(datas):
    return jnp.stack([d.y for d in datas]), jnp.stack([d.u for d in datas])


def close(actual, expected, tol=1e-9):
    np.testing.assert_allclose(actual, expected, atol=tol, rtol=tol)


@pytest.mark.parametrize("gaps", [False, True])
def test_an_iteration_is_the_m_step_of_the_dense_moments(gaps):
    datas = series(gaps=gaps)
    model = as_model(datas[0])
    new = elk.lgssm_em(model, *stacked(datas), num_iters=1).model
    # The target of one iteration is only held once it was seen to rise.
    dynamics, emission, (first, square) = both(datas)
    FB, Q = regressed(dynamics)
    HD, R = regressed(emission)
    close(new.dynamics_weights, FB[:, :D])
    close(new.dynamics_input_weights, FB[:, D : D + U])
    close(new.dynamics_bias, FB[:, -1])
    close(new.dynamics_covariance, Q)
    close(new.emission_weights, HD[:, :D])
    close(new.emission_input_weights, HD[:, D : D + U])
    close(new.emission_bias, HD[:, -1])
    close(new.emission_covariance, R)
    close(new.initial_mean, first)
    close(new.initial_covariance, square - np.outer(first, first))


STRUCTURES = {
    "diagonal": {
        "dynamics_covariance": elk.Diagonal(jnp.array([0.5, 2.0])),
        "emission_covariance": elk.Diagonal(jnp.array([0.5, 1.0, 2.0])),
        "initial_covariance": elk.Diagonal(jnp.array([1.0, 0.3])),
        "dynamics_weights": elk.Diagonal(jnp.array([0.5, -0.3])),
    },
    "scaled": {
        "dynamics_covariance": elk.ScaledIdentity(0.5),
        "emission_covariance": elk.ScaledIdentity(0.7),
        "initial_covariance": elk.ScaledIdentity(2.0),
        "dynamics_weights": elk.ScaledIdentity(0.4),
    },
    "blocks": {
        "dynamics_covariance": elk.BlockDiagonal(jnp.array([[[0.5]], [[1.5]]])),
        "dynamics_weights": elk.BlockDiagonal(jnp.array([[[0.5]], [[0.1]]])),
    },
    "mixed": {"dynamics_weights": elk.Diagonal(jnp.array([0.5, -0.3]))},
}


def dense(matrix, size):
    if isinstance(matrix, elk.ScaledIdentity):
        return float(matrix.scale) * np.eye(size)
    return np.asarray(matrix.to_dense() if hasattr(matrix, "to_dense") else matrix)


def pattern(matrix):
    """Which entries a structure has, and whether they share one number."""
    shared = isinstance(matrix, elk.ScaledIdentity)
    return (
        np.eye(D) if hasattr(matrix, "to_dense") or shared else np.ones((D, D))
    ), shared


@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures_keep_their_form_and_have_their_own_closed_form(kind):
    datas = series(seed=3)
    model = as_model(datas[0], **STRUCTURES[kind])
    filled = model._replace(
        **{
            name: jnp.asarray(dense(getattr(model, name), size))
            for name, size in {
                "initial_covariance": D,
                "dynamics_weights": D,
                "dynamics_covariance": D,
                "emission_covariance": E,
            }.items()
        }
    )
    found = elk.lgssm_em(model, *stacked(datas), num_iters=1)
    new = found.model
    for name in STRUCTURES[kind]:
        assert type(getattr(new, name)) is type(getattr(model, name)), name
    dynamics, emission, (first, square) = both([as_data(d, filled) for d in datas])
    aa, ax, xx, n = dynamics
    F = dense(new.dynamics_weights, D)
    W = np.column_stack([F, new.dynamics_input_weights, new.dynamics_bias])
    # Stationary in what is free: the slope of the expected density there is zero.
    precision = np.linalg.inv(dense(model.dynamics_covariance, D))
    slope = precision @ (ax - W @ xx)
    free, shared = pattern(model.dynamics_weights)
    own = slope[:, :D] * free
    close(own.sum() if shared else own, 0, 1e-8)
    close(slope[:, D:], 0, 1e-8)
    left = (aa - W @ ax.T - ax @ W.T + W @ xx @ W.T) / n
    close(dense(new.dynamics_covariance, D), within(model.dynamics_covariance, left))
    HD, R = regressed(emission)
    close(new.emission_weights, HD[:, :D])
    close(dense(new.emission_covariance, E), within(model.emission_covariance, R))
    start = square - np.outer(first, first)
    close(dense(new.initial_covariance, D), within(model.initial_covariance, start))


def within(matrix, full):
    if isinstance(matrix, elk.ScaledIdentity):
        return np.trace(full) / len(full) * np.eye(len(full))
    return full * (np.eye(len(full)) if hasattr(matrix, "to_dense") else 1)


def test_fixed_parameters_are_taken_out_of_the_regressions():
    datas = series(seed=5)
    model = as_model(datas[0])
    held = ("dynamics_weights", "emission_bias", "initial_mean", "emission_covariance")
    new = elk.lgssm_em(model, *stacked(datas), num_iters=1, fixed=held).model
    for name in held:
        np.testing.assert_array_equal(getattr(new, name), getattr(model, name))
    (aa, ax, xx, n), emission, (first, square) = both(datas)
    F = np.asarray(model.dynamics_weights)
    W = np.linalg.solve(xx[D:, D:], (ax[:, D:] - F @ xx[:D, D:]).T).T
    close(new.dynamics_input_weights, W[:, :U])
    close(new.dynamics_bias, W[:, -1])
    W = np.column_stack([F, W])
    left = aa - W @ ax.T - ax @ W.T + W @ xx @ W.T
    close(new.dynamics_covariance, left / n)
    _, ay, yy, _ = emission
    W = np.linalg.solve(
        yy[:-1, :-1], (ay - np.outer(model.emission_bias, yy[-1]))[:, :-1].T
    )
    close(np.column_stack([new.emission_weights, new.emission_input_weights]), W.T)
    away = first - np.asarray(model.initial_mean)
    start = square - np.outer(first, first) + np.outer(away, away)
    close(new.initial_covariance, start)


def random_models(count, size=3, width=4, steps=40, seed=0):
    """Models far from those that drew the data, some entries missing."""
    rng = np.random.default_rng(seed)
    draw = rng.normal
    F = draw(size=(count, size, size))
    F *= 0.95 / np.abs(np.linalg.eigvals(F)).max(-1)[:, None, None]
    H = draw(size=(count, width, size))
    z, ys = draw(size=(count, size)), []
    for _ in range(steps):
        z = np.einsum("nij,nj->ni", F, z) + 0.3 * draw(size=z.shape)
        noise = 10.0 ** rng.uniform(-2, 1, (count, 1)) * draw(size=(count, width))
        ys.append(np.einsum("nij,nj->ni", H, z) + noise + 5)
    ys = np.stack(ys, axis=1)
    ys[rng.random(ys.shape) < 0.2] = np.nan
    scales = 10.0 ** rng.uniform(-2, 2, (count, 1, 1))
    eye = np.eye(size)
    model = elk.LGSSM(
        draw(size=(count, size)),
        scales * eye,
        draw(size=F.shape) / size,
        scales[::-1] * eye,
        draw(size=H.shape),
        scales * np.eye(width),
        np.zeros((count, size)),
        None,
        np.zeros((count, width)),
        None,
    )
    return jax.tree.map(jnp.asarray, model), jnp.asarray(ys)


def test_the_log_likelihood_never_falls():
    model, ys = random_models(30)
    run = jax.jit(jax.vmap(partial(elk.lgssm_em, num_iters=25)))
    found = run(model, ys)
    rises = np.diff(found.log_likelihoods, axis=1)
    assert (rises >= 0).all()
    assert (rises[:, :5] > 0).all()
    # No step had to be refused for it: what is maximised is what was derived.
    assert not found.num_refused.any()
    np.testing.assert_array_equal(found.num_iters, 25)
    values = jax.jit(jax.vmap(elk.lgssm_log_likelihood))(found.model, ys)
    close(found.log_likelihoods[:, -1], values, 1e-8)


def test_a_converged_fit_has_no_slope():
    rng = np.random.default_rng(2)
    z = np.cumsum(rng.normal(size=300))
    y = jnp.asarray(z[:, None] + 2 * rng.normal(size=(300, 2)))
    y = y.at[10:60, 0].set(jnp.nan).at[200:, 1].set(jnp.nan)
    one = jnp.ones((1, 1))
    model = elk.LGSSM(
        jnp.zeros(1), 10 * one, 0.9 * one, one, jnp.ones((2, 1)), jnp.eye(2)
    )
    held = ("initial_mean", "initial_covariance", "dynamics_covariance")
    found = elk.lgssm_em(model, y, fixed=held, num_iters=3_000, tol=1e-13)
    assert bool(found.converged)
    assert int(found.status) == elk.Status.converged
    assert np.isnan(found.log_likelihoods[int(found.num_iters) + 1 :]).all()
    names = "dynamics_weights", "emission_weights", "emission_covariance"

    def value(*parts):
        chosen = found.model._replace(**dict(zip(names, parts)))
        return elk.lgssm_log_likelihood(chosen, y) / y.size

    parts = [getattr(found.model, name) for name in names]
    slopes = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*parts)
    assert max(float(jnp.abs(slope).max()) for slope in slopes) < 1e-5


@pytest.mark.parametrize("variance", [1.0, 0.01])
def test_converged_means_that_little_is_left(variance):
    """However slow it is: what is left is what thousands of iterations would add."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(variance**0.5 * rng.normal(size=(300, 1)), axis=0)
    y = jnp.asarray(walk + rng.normal(size=(300, 1)))
    held = ("initial_mean", "initial_covariance", "dynamics_weights")
    fit = partial(elk.lgssm_em, fixed=(*held, "emission_weights"), num_iters=3_000)
    found, limit = fit(PLAIN, y), fit(PLAIN, y, tol=0.0)
    assert bool(found.converged)
    assert int(found.num_iters) < int(limit.num_iters) < 3_000
    values = (x.log_likelihoods[int(x.num_iters)] for x in (limit, found))
    assert 0 <= float(next(values) - next(values)) <= 1.1e-8 * y.size


def test_agrees_with_dynamax():
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    theirs = LinearGaussianSSM(D, E, U)
    model, ys = random_models(1, D, E, 60)
    model, y = jax.tree.map(lambda x: x[0], (model, jnp.nan_to_num(ys)))
    model = model._replace(
        dynamics_input_weights=jnp.ones((D, U)),
        emission_input_weights=jnp.zeros((E, U)),
    )
    u = jnp.sin(jnp.arange(60.0))[:, None]
    _, props = theirs.initialize(jax.random.PRNGKey(0))
    params = to_dynamax(model)
    fitted, values = theirs.fit_em(params, props, y, u, num_iters=4, verbose=False)
    found = elk.lgssm_em(model, y, u, num_iters=4)
    close(found.log_likelihoods[:4], values, 1e-6)
    expected = from_dynamax(fitted)
    for name, value in found.model._asdict().items():
        # dynamax adds 1e-9 to the diagonals of what it solves for.
        close(dense(value, D), dense(getattr(expected, name), D), 1e-5)


def test_zero_variances_and_what_varies_in_time_are_held():
    datas = series(seed=9)
    model = as_model(datas[0])
    varying = jnp.stack([model.dynamics_weights * (1 + 0.1 * t) for t in range(T)])
    Q = elk.Diagonal(jnp.array([0.5, 0.0]))
    model = model._replace(dynamics_weights=varying, dynamics_covariance=Q)
    y, u = stacked(datas)
    held = ("dynamics_weights", "dynamics_bias", "dynamics_input_weights")
    found = elk.lgssm_em(model, y, u, num_iters=1, fixed=held)
    assert float(found.model.dynamics_covariance.diagonal[1]) == 0
    filled = model._replace(dynamics_covariance=jnp.diag(Q.diagonal))
    every = [as_data(d, filled) for d in datas]
    total, count = 0, 0
    for data in every:
        means, second, z, _, u = moments(data)
        for t in range(1, len(z)):
            W = np.hstack([np.eye(D), -data.F[t]])
            both_ = np.append(z[t], z[t - 1])
            shift = data.b[t] + data.B[t] @ u[t]
            mean = W @ means[both_]
            total = total + W @ second[np.ix_(both_, both_)] @ W.T
            total = total - np.outer(mean, shift) - np.outer(shift, mean)
            total = total + np.outer(shift, shift)
            count += 1
    close(found.model.dynamics_covariance.diagonal[0], total[0, 0] / count)


def test_many_emissions_in_single_precision_stay_finite():
    rng = np.random.default_rng(0)
    size, width, steps = 5, 73, 300
    F = 0.98 * np.linalg.qr(rng.normal(size=(size, size)))[0]
    H, z, ys = rng.normal(size=(width, size)), np.zeros(size), []
    for _ in range(steps):
        z = F @ z + 0.1 * rng.normal(size=size)
        ys.append(H @ z + 0.5 * rng.normal(size=width) + 100)
    with jax.enable_x64(False):
        single = partial(jnp.asarray, dtype=jnp.float32)
        model = elk.LGSSM(
            jnp.zeros(size),
            single(np.eye(size)),
            single(0.9 * np.eye(size)),
            single(np.eye(size)),
            single(rng.normal(size=(width, size))),
            single(np.eye(width)),
            None,
            None,
            jnp.zeros(width),
            None,
        )
        found = elk.lgssm_em(model, single(np.array(ys)), num_iters=60, tol=0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.model))
    values = np.asarray(found.log_likelihoods)[: int(found.num_iters) + 1]
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()
    for name in ("dynamics_covariance", "emission_covariance", "initial_covariance"):
        matrix = np.asarray(getattr(found.model, name), float)
        np.testing.assert_array_equal(matrix, matrix.T)
        # Of the size of a rounding of the largest at most.
        assert np.linalg.eigvalsh(matrix)[0] >= -1e-6 * matrix.max()


def test_a_step_that_is_not_finite_is_refused():
    """Two equal columns of data without noise: the likelihood grows without bound."""
    y = jnp.repeat(jnp.sin(jnp.arange(30.0))[:, None], 2, axis=1)
    one = jnp.ones((1, 1))
    model = elk.LGSSM(jnp.zeros(1), one, one, one, jnp.ones((2, 1)), jnp.eye(2))
    found = elk.lgssm_em(model, y, num_iters=200, tol=0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.model))
    values = np.asarray(found.log_likelihoods)[: int(found.num_iters) + 1]
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()


ONE = elk.ScaledIdentity(1.0)
PLAIN = elk.LGSSM(jnp.zeros(1), ONE, ONE, ONE, ONE, ONE)
MISTAKES = {
    "an unknown name 'Q'": (PLAIN, {"fixed": ("Q",)}),
    "fix dynamics_covariance and dynamics_weights": (
        PLAIN._replace(initial_covariance=elk.Stationary()),
        {},
    ),
    "dynamics_weights varies in time": (
        PLAIN._replace(dynamics_weights=elk.ScaledIdentity(jnp.ones(4))),
        {},
    ),
    "emission_covariance varies in time, under which emission_weights": (
        PLAIN._replace(emission_covariance=elk.ScaledIdentity(jnp.ones(4))),
        {"fixed": ("emission_covariance",)},
    ),
    "infinite variance": (
        PLAIN._replace(emission_covariance=elk.ScaledIdentity(jnp.inf)),
        {},
    ),
    "mask must have the 1 series": (
        PLAIN,
        {"emissions": jnp.ones((1, 4, 1)), "mask": jnp.ones((2, 4), bool)},
    ),
    "must be \\(T, E\\) or \\(S, T, E\\)": (PLAIN, {"emissions": jnp.ones(4)}),
    "at least one series": (PLAIN, {"emissions": jnp.ones((0, 4, 1))}),
    "num_iters": (PLAIN, {"num_iters": -1}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message):
    model, options = MISTAKES[message]
    with pytest.raises(ValueError, match=message):
        elk.lgssm_em(model, **{"emissions": jnp.ones((4, 1))} | options)


def test_nothing_observed_changes_nothing_but_says_so():
    model = PLAIN._replace(initial_covariance=elk.Diffuse())
    found = elk.lgssm_em(model, jnp.full((4, 1), jnp.nan), num_iters=5)
    assert bool(found.converged)
    for old, new in zip(jax.tree.leaves(model), jax.tree.leaves(found.model)):
        np.testing.assert_array_equal(old, new)
