"""What must not change, or must change in a known way, when the question does.

No oracle is needed: a series split and continued, padded with what is missing, run
backwards, seen in other coordinates or units. One compiled program serves the variants
of a test, which are data.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import elk_ssm as elk

T, D, E = 12, 3, 4
METHODS = {
    "default": elk.auto(),
    "deer": elk.deer(),
    "quasi_elk": elk.quasi_elk(10.0),
    "newton": elk.auto(strategy="newton", block_size=4),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
FORMS = ("covariance", "square_root")
seeds = st.integers(0, 2**31 - 1)


def cell(p, x, u):
    return jnp.tanh(p["A"] @ x + u) * p["s"]


@partial(jax.jit, static_argnames="method")
def evaluated(p, x0, inputs, method):
    return elk.evaluate(lambda x, u: cell(p, x, u), x0, inputs, method=method)


def recurrence(seed, length=T):
    rng = np.random.default_rng(seed)
    p = {"A": 0.7 * rng.normal(size=(D, D)), "s": np.ones(D)}
    return p, rng.normal(size=D), rng.normal(size=(length, D))


def covariance(rng, size):
    root = rng.normal(size=(size, size))
    return root @ root.T + 0.1 * np.eye(size)


def linear(seed, length=T):
    """m, P, F, Q, H, R and emissions with gaps."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(length, E))
    y[rng.random(y.shape) < 0.2] = np.nan
    F = rng.normal(size=(D, D))
    F *= rng.uniform(0.3, 1.1) / np.abs(np.linalg.eigvals(F)).max()
    sizes = rng.normal(size=D), covariance(rng, D), F, covariance(rng, D)
    return *sizes, rng.normal(size=(E, D)), covariance(rng, E), y


@partial(jax.jit, static_argnames=("form", "backend"))
def smoothed(m, P, F, Q, H, R, y, form="covariance", backend="sequential"):
    """Moments of filter and smoother, and the log likelihood."""
    model = elk.LGSSM(m, P, F, Q, H, R)
    found = elk.lgssm_smoother(model, y, form=form, backend=backend)
    covs = found.filtered_covariances, found.smoothed_covariances
    filtered, both = (cov.matrix for cov in covs)
    means = found.filtered_means, found.smoothed_means
    return means[0], filtered, means[1], both, found.log_likelihood


def close(found, expected, tol=1e-9):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


def same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


pytestmark = pytest.mark.usefixtures("x64_of_module")


@pytest.fixture(scope="module")
def x64_of_module():
    """Double precision; hypothesis wants no fixture that is new with every test."""
    with jax.enable_x64(True):
        yield


# Splitting and padding


@methods
@pytest.mark.parametrize("split", [1, 7])
def test_a_recurrence_continues_from_its_last_state(method, split):
    p, x0, inputs = recurrence(0)
    whole = evaluated(p, x0, inputs, method).states
    first = evaluated(p, x0, inputs[:split], method).states
    rest = evaluated(p, first[-1], inputs[split:], method).states
    close(np.concatenate([first, rest]), whole, 1e-11)


@given(seeds, st.integers(1, T - 1), st.sampled_from(FORMS))
@settings(max_examples=30)
def test_a_filter_continues_from_its_posterior(seed, split, form):
    """Both pieces are padded with missing steps, so that one program serves all."""
    m, P, F, Q, H, R, y = linear(seed)
    whole = smoothed(m, P, F, Q, H, R, y, form=form)
    gap = np.full_like(y, np.nan)
    head = np.concatenate([y[:split], gap[split:]])
    first = smoothed(m, P, F, Q, H, R, head, form=form)
    mean, cov = (np.asarray(x[split - 1]) for x in first[:2])
    tail = np.concatenate([y[split:], gap[:split]])
    prior = F @ mean, F @ cov @ F.T + Q
    rest = smoothed(*prior, F, Q, H, R, tail, form=form)
    close([x[:split] for x in first[:2]], [x[:split] for x in whole[:2]])
    close([x[: T - split] for x in rest[:4]], [x[split:] for x in whole[:4]])
    close(first[4] + rest[4], whole[4])


@given(seeds, st.integers(1, T - 1), st.sampled_from(FORMS))
@settings(max_examples=20)
def test_missing_steps_at_the_end_say_nothing(seed, seen, form):
    *model, y = linear(seed)
    padded = np.concatenate([y[:seen], np.full((T - seen, E), np.nan)])
    found = smoothed(*model, padded, form=form)
    again = smoothed(
        *model, np.where(np.arange(T)[:, None] < seen, y, np.nan), form=form
    )
    same(found, again)
    # After the data the smoother is the filter, which is the forecast.
    close([x[seen - 1 :] for x in found[2:4]], [x[seen - 1 :] for x in found[:2]])
    F, mean = np.asarray(model[2]), np.asarray(found[0])
    close(mean[seen:], mean[seen - 1 : -1] @ F.T)


def test_missing_steps_at_the_end_move_no_mode():
    def run(y):
        model = elk.NonlinearSSM(
            jnp.zeros(2), jnp.eye(2), lambda z, u: jnp.sin(z), 0.3 * jnp.eye(2),
            lambda z, u: z[:1] ** 2, 0.1 * jnp.eye(1),
        )  # fmt: skip
        found = elk.smooth(model, y, guess=jnp.ones((len(y), 2)))
        return found.means, found.covariances, found.log_likelihood, found.status

    y = 1 + 0.3 * np.random.default_rng(0).normal(size=(6, 1))
    means, covs, evidence, status = run(y)
    *longer, after = run(np.concatenate([y, np.full((3, 1), np.nan)]))
    assert status == after == elk.Status.converged
    # A mode is found to the square root of rounding.
    close([longer[0][:6], longer[1][:6], longer[2]], [means, covs, evidence], 1e-7)
    close(longer[0][6:], np.sin(longer[0][5:-1]), 1e-7)


# Reversing time


@given(seeds)
@settings(max_examples=20)
def test_a_stationary_model_has_the_same_posterior_backwards(seed):
    """z_{t-1} | z_t ~ N(S F' S^-1 z_t, S - S F' S^-1 F S), S = F S F' + Q."""
    _, _, F, Q, H, R, y = linear(seed)
    F = F * 0.8 / np.abs(np.linalg.eigvals(F)).max()
    S = np.linalg.solve(np.eye(D * D) - np.kron(F, F), Q.ravel()).reshape(D, D)
    B = np.linalg.solve(S, F @ S).T
    m = np.zeros(D)
    forth = smoothed(m, S, F, Q, H, R, y)
    back = smoothed(m, S, B, S - B @ S @ B.T, H, R, y[::-1])
    close([x[::-1] for x in back[2:4]], forth[2:4], 1e-8)
    close(back[4], forth[4], 1e-8)


@methods
def test_a_reversible_recurrence_returns(method):
    """Leapfrog is its own inverse when the velocity changes sign."""

    def step(z, _):
        x, v = z
        v = v - 0.1 * jnp.sin(x)
        x = x + 0.2 * v
        return x, v - 0.1 * jnp.sin(x)

    start = (jnp.asarray([1.0, -0.5]), jnp.asarray([0.3, 0.2]))

    @jax.jit
    def run(start):
        x, v = elk.evaluate(step, start, length=20, method=method).states
        return x[-1], -v[-1]

    there = run(start)
    assert np.abs(there[0] - start[0]).max() > 0.1
    x, v = run(there)
    close([x, v], list(start), 1e-10)


# Other coordinates and units


def turn(seed):
    return np.linalg.qr(np.random.default_rng([seed, 5]).normal(size=(D, D)))[0]


@given(seeds, st.sampled_from(FORMS))
@settings(max_examples=20)
def test_a_posterior_turns_with_its_state(seed, form):
    m, P, F, Q, H, R, y = linear(seed)
    U = turn(seed)
    plain = smoothed(m, P, F, Q, H, R, y, form=form)
    turned = U @ m, U @ P @ U.T, U @ F @ U.T, U @ Q @ U.T, H @ U.T, R, y
    found = smoothed(*turned, form=form)
    expected = [
        x @ U.T if x.ndim == 2 else U @ x @ U.T if x.ndim == 3 else x
        for x in map(np.asarray, plain)
    ]
    close(found, expected, 1e-8)


def turned_cell(p, x, u):
    return p["U"] @ cell(p, p["U"].T @ x, u)


@pytest.mark.parametrize("name", ["deer", "elk", "picard"])
def test_iterates_turn_with_the_state(name):
    """Not those of diagonal methods, which depend on the coordinates."""
    how = {"deer": elk.deer(), "elk": elk.elk(10.0), "picard": elk.picard()}[name]
    p, x0, inputs = recurrence(1)
    p["U"] = turn(1)
    plain = elk.iterates(
        lambda x, u: cell(p, x, u), x0, inputs, num_iters=3, method=how
    )
    turned = elk.iterates(
        lambda x, u: turned_cell(p, x, u), p["U"] @ x0, inputs, num_iters=3, method=how
    )
    close(turned, plain @ p["U"].T, 1e-10)


def scaled_cell(p, x, u):
    return p["c"] * cell(p, x / p["c"], u)


@partial(jax.jit, static_argnames="method")
def in_units(p, x0, inputs, atol, method):
    sol = elk.evaluate(
        lambda x, u: scaled_cell(p, x, u), x0, inputs, method=method, atol=atol
    )
    return sol.states, sol.status, sol.num_iters


@methods
def test_units_of_two_change_no_bit(method):
    """Every rounding is that of the other units; the absolute tolerance goes along."""
    p, x0, inputs = recurrence(2)
    one = in_units(p | {"c": 1.0}, x0, inputs, 1e-24, method)
    for power in (-30, 7, 40):
        c = 2.0**power
        states, *rest = in_units(p | {"c": c}, c * x0, inputs, c * 1e-24, method)
        same([states / c, *rest], one)


def test_units_of_each_dimension_change_no_bit_of_undamped_passes():
    p, x0, inputs = recurrence(2)
    c = 2.0 ** np.array([-20.0, 3.0, 30.0])
    for method in (elk.deer(), elk.quasi_deer(), elk.jacobi()):
        one = elk.iterates(
            lambda x, u: cell(p, x, u), x0, inputs, num_iters=3, method=method
        )
        other = elk.iterates(
            lambda x, u: c * cell(p, x / c, u), c * x0, inputs,
            num_iters=3, method=method,
        )  # fmt: skip
        same(other / c, one)


@pytest.mark.parametrize("form", FORMS)
def test_units_of_two_change_no_bit_of_a_posterior(form):
    """Of states by dimension, and of all emissions, whose density they change."""
    m, P, F, Q, H, R, y = linear(3)
    plain = smoothed(m, P, F, Q, H, R, y, form=form)
    c, k = 2.0 ** np.array([-6.0, 0.0, 9.0]), 2.0**5
    wide = np.outer(c, c)
    units = c * m, wide * P, F * np.outer(c, 1 / c), wide * Q, k * H / c, k * k * R
    found = smoothed(*units, k * y, form=form)
    seen = np.sum(~np.isnan(y))
    back = [found[0] / c, found[1] / wide, found[2] / c, found[3] / wide]
    if form == "covariance":
        same(back, plain[:4])
    close(back, plain[:4], 1e-10)
    close(found[4] + seen * np.log(k), plain[4], 1e-10)


def steady(log_variance, unit, start):
    eye = jnp.eye(2)
    F, R = jnp.array([[0.9, 0.1], [0, 0.8]]), jnp.array([[1, 0.3], [0.3, 1]])
    P = elk.Diffuse() if start == "diffuse" else 100 * eye * unit * unit
    Q = eye * jnp.exp(log_variance) * unit * unit
    return elk.LGSSM(jnp.zeros(2), P, F, Q, eye, R * unit * unit)


@pytest.mark.parametrize("what", ["known", "diffuse", "means"])
@pytest.mark.parametrize("backend", ["sequential", "associative"])
def test_units_of_two_change_no_bit_of_a_slope(what, backend):
    """In float32 the square of a variance is inf or zero long before itself is.

    At the ends of the range the smallest entries of a covariance are zero.
    """
    y = np.random.default_rng(0).normal(size=(30, 2)).cumsum(axis=0)

    @jax.jit
    @jax.value_and_grad
    def found(log_variance, unit):
        model, seen = steady(log_variance, unit, what), unit * jnp.asarray(y)
        if what != "means":
            return elk.lgssm_log_likelihood(model, seen, backend=backend)
        posterior = elk.lgssm_smoother(model, seen, backend=backend)
        return jnp.sum(posterior.smoothed_means / unit)

    with jax.enable_x64(False):
        zero = jnp.zeros(())
        value, slope = found(zero, jnp.ones(()))
        for power in (-50, -34, 40, 50):
            unit = jnp.asarray(2.0**power, jnp.float32)
            other, same_slope = found(zero, unit)
            rtol = 0 if abs(power) < 50 else 2e-5
            np.testing.assert_allclose(same_slope, slope, rtol=rtol)
            expected = value if what == "means" else value - y.size * power * np.log(2)
            free = 2 if what == "diffuse" else 0
            expected = expected + free * power * np.log(2)
            np.testing.assert_allclose(other, expected, rtol=1e-5)


@given(seeds, st.permutations(range(E)), st.sampled_from(FORMS))
@settings(max_examples=20)
def test_the_order_of_emissions_does_not_matter(seed, order, form):
    m, P, F, Q, H, R, y = linear(seed)
    mixed = H[order], R[np.ix_(order, order)], y[:, order]
    found = smoothed(m, P, F, Q, *mixed, form=form)
    close(found, smoothed(m, P, F, Q, H, R, y, form=form), 1e-8)


# Other ways to ask


@methods
def test_a_batch_is_a_loop(method):
    many = [recurrence(seed) for seed in range(4)]
    batch = jax.tree.map(lambda *x: np.stack(x), *many)
    found = jax.vmap(lambda *x: evaluated(*x, method))(*batch)
    for place, one in enumerate(many):
        alone = evaluated(*one, method)
        close(found.states[place], alone.states, 1e-11)
        assert found.status[place] == alone.status


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_models_is_a_loop(form):
    many = [linear(seed) for seed in range(4)]
    batch = jax.tree.map(lambda *x: np.stack(x), *many)
    found = jax.vmap(partial(smoothed, form=form))(*batch)
    for place, one in enumerate(many):
        close([x[place] for x in found], smoothed(*one, form=form), 1e-9)


@methods
def test_compiled_is_eager(method):
    p, x0, inputs = recurrence(4)
    eager = elk.evaluate(lambda x, u: cell(p, x, u), x0, inputs, method=method)
    found = evaluated(p, x0, inputs, method)
    close(found.states, eager.states, 1e-11)
    assert found.status == eager.status


def test_a_compiled_posterior_is_the_eager_one():
    *model, y = linear(5)
    eager = elk.lgssm_smoother(elk.LGSSM(*map(jnp.asarray, model)), y)
    found = smoothed(*model, y)
    close(found[2], eager.smoothed_means)
    close(found[4], eager.log_likelihood)


@methods
def test_single_precision_is_double_precision_of_the_same_numbers(method):
    """To some hundred roundings, which a contracting recurrence does not amplify."""
    p, x0, inputs = recurrence(6)
    p["A"] = 0.5 * p["A"] / np.abs(np.linalg.eigvals(p["A"])).max()
    short = jax.tree.map(np.float32, (p, x0, inputs))
    double = jax.tree.map(np.float64, short)
    single = evaluated(*short, method)
    assert single.states.dtype == np.float32
    close(single.states, evaluated(*double, method).states, 2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_single_precision_posterior_is_the_double_one(form):
    short = [np.float32(x) for x in linear(7)]
    single = smoothed(*short, form=form)
    assert single[0].dtype == np.float32
    close(single, smoothed(*map(np.float64, short), form=form), 2e-4)


@given(seeds)
@settings(max_examples=20)
def test_every_form_and_backend_has_the_same_posterior(seed):
    model = linear(seed)
    one = smoothed(*model)
    for form in FORMS:
        for backend in ("sequential", "associative"):
            close(smoothed(*model, form=form, backend=backend), one, 1e-8)
