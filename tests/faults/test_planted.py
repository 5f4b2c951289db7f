"""NaN and infinities planted where nobody chose: in f, in data, in models.

What is planted, and where, are inputs of compiled programs, so that a place costs
milliseconds. On the trajectory a fault is `nonfinite` at its step, with what comes
before it right and all states finite; off the trajectory it accuses nobody.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

T, D, PLACES = 60, 3, 24
METHODS = {
    "auto": None,
    "newton": elk.auto(strategy="newton", block_size=8),
    "short_blocks": elk.auto(strategy="short_blocks", block_size=8),
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "elk": elk.elk(1e2),
    "quasi_elk": elk.quasi_elk(1e2),
    "smoother": elk.quasi_elk(1e2, estimate="smoother"),
    "blocks_and_gate": elk.deer(block_size=7, gate=elk.Gate()),
}
every_method = pytest.mark.parametrize("name", METHODS)
BAD = np.asarray([np.nan, np.inf, -np.inf], np.float32)

rng = np.random.default_rng(20)
WEIGHTS = np.asarray(rng.normal(size=(D, D)) / D, np.float32)
INPUTS = np.asarray(rng.normal(size=(T, D)), np.float32)
START = np.zeros(D, np.float32)


def planted(x, entry):
    """A cell whose dimension `where` is `what` at steps so marked."""
    u, what, where, there = entry
    y = jnp.tanh(jnp.asarray(WEIGHTS) @ x + u)
    return jnp.where(there & (jnp.arange(D) == where), what, y)


def by_loop():
    """The trajectory without a fault, in NumPy."""
    x, states = START, []
    for u in INPUTS:
        x = np.tanh(WEIGHTS @ x + u)
        states.append(x)
    return np.stack(states)


@every_method
def test_at_a_step_of_the_trajectory(name):
    """At any step, in any dimension; in the second half of the cases at two steps."""

    def run(step, again, what, where):
        index = jnp.arange(T)
        there = (index == step) | (index == again)
        full = (jnp.full(T, what), jnp.full(T, where), there)
        return elk.evaluate(
            planted, START, (jnp.asarray(INPUTS), *full), method=METHODS[name]
        )

    steps = np.concatenate([[0, T - 1], rng.integers(0, T, PLACES - 2)])
    again = np.where(np.arange(PLACES) < PLACES // 2, steps, rng.integers(0, T, PLACES))
    what, where = rng.choice(BAD, PLACES), rng.integers(0, D, PLACES)
    sol = jax.jit(jax.vmap(run))(steps, again, what, where)
    first = np.minimum(steps, again)
    np.testing.assert_array_equal(sol.status, elk.Status.nonfinite)
    np.testing.assert_array_equal(sol.failed_step, first)
    assert np.isfinite(sol.states).all()
    exact = by_loop()
    for states, step in zip(np.asarray(sol.states), first):
        np.testing.assert_allclose(states[:step], exact[:step], atol=1e-4)
    with pytest.raises(RuntimeError, match="nonfinite in batch elements 0, 1, 2"):
        elk.raise_if_failed(sol)


@every_method
def test_where_only_an_iterate_comes(name):
    """f breaks in a ball around a point off the trajectory, at one step.

    The point is where the passes of the method itself come by: half-way between an
    iterate and the truth.
    """
    method = METHODS[name]
    exact = by_loop()

    def fragile(x, entry):
        u, what, centre, radius = entry
        y = jnp.tanh(jnp.asarray(WEIGHTS) @ x + u)
        return jnp.where(jnp.sum((x - centre) ** 2) < radius**2, what, y)

    def run(step, centre, radius, what):
        radii = jnp.where(jnp.arange(T) == step, radius, 0.0)
        entries = (jnp.asarray(INPUTS), jnp.full(T, what))
        entries += (jnp.broadcast_to(centre, (T, D)), radii)
        return elk.evaluate(fragile, START, entries, method=method)

    # Every iterate begins at x_0 in the steps that no pass has reached, and f is asked
    # there: a ball around x_0 that the truth stays out of is always met.
    steps = rng.integers(2, T, PLACES)
    before = exact[steps - 1]
    share = np.asarray(rng.uniform(0, 0.5, (PLACES, 1)), np.float32)
    centres = share * before
    radii = 0.8 * np.linalg.norm(before - centres, axis=1)
    sol = jax.jit(jax.vmap(run))(steps, centres, radii, rng.choice(BAD, PLACES))
    np.testing.assert_array_equal(sol.status, elk.Status.converged)
    np.testing.assert_array_equal(sol.failed_step, -1)
    np.testing.assert_allclose(sol.states, np.stack([exact] * PLACES), atol=1e-4)


MODEL = elk.LGSSM(
    initial_mean=jnp.asarray([0.5, -0.3]),
    initial_covariance=jnp.asarray([[1.0, 0.2], [0.2, 0.7]]),
    dynamics_weights=jnp.asarray(0.3 * rng.normal(size=(12, 2, 2)), jnp.float32),
    dynamics_covariance=jnp.broadcast_to(0.3 * jnp.eye(2), (12, 2, 2)),
    emission_weights=jnp.asarray(rng.normal(size=(12, 2, 2)), jnp.float32),
    emission_covariance=jnp.broadcast_to(0.5 * jnp.eye(2), (12, 2, 2)),
    dynamics_bias=jnp.zeros((12, 2)),
    emission_bias=jnp.ones((12, 2)),
)
SERIES = jnp.asarray(rng.normal(size=(12, 2)), jnp.float32)
FIELDS = [name for name in MODEL._fields if getattr(MODEL, name) is not None]
FORMS = ("covariance", "square_root")


@pytest.fixture(scope="module")
def smoothers():
    """The smoother in both forms, compiled: log likelihood and smoothed means."""

    def made(form):
        @jax.jit
        def smooth(model, series):
            found = elk.lgssm_smoother(model, series, form=form)
            return found.log_likelihood, found.smoothed_means

        return smooth

    return {form: made(form) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("field", FIELDS)
def test_in_a_matrix_of_a_linear_model(form, field, smoothers):
    array = getattr(MODEL, field)
    for what in BAD:
        place = tuple(int(rng.integers(n)) for n in array.shape)
        # Entry 0 of the dynamics is never used.
        if array.shape[0] == len(SERIES):
            place = (int(rng.integers(1, len(SERIES))), *place[1:])
        broken = MODEL._replace(**{field: array.at[place].set(what)})
        means_something = field.endswith("covariance") and what == np.inf
        if means_something and field in ("initial_covariance", "emission_covariance"):
            continue  # Nothing is known; it is missing.
        with pytest.raises(ValueError, match=field):
            elk.lgssm_smoother(broken, SERIES, form=form)
        likelihood, means = smoothers[form](broken, SERIES)
        assert np.isnan(likelihood), (place, what)
        assert np.isnan(means).any(), (place, what)


@pytest.mark.parametrize("form", FORMS)
def test_in_emissions(form, smoothers):
    """NaN is missing, the same as a mask; an infinity is named, or gives NaN."""
    for _ in range(6):
        place = tuple(int(rng.integers(n)) for n in SERIES.shape)
        seen = np.ones(SERIES.shape, bool)
        seen[place] = False
        found = smoothers[form](MODEL, SERIES.at[place].set(np.nan))
        masked = elk.lgssm_smoother(MODEL, SERIES, mask=jnp.asarray(seen), form=form)
        np.testing.assert_allclose(found[0], masked.log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(found[1], masked.smoothed_means, atol=1e-5)
        infinite = SERIES.at[place].set(rng.choice(BAD[1:]))
        with pytest.raises(ValueError, match=r"emissions are infinite at \(\d+, \d\)"):
            elk.lgssm_smoother(MODEL, infinite, form=form)
        hidden = elk.lgssm_smoother(MODEL, infinite, mask=jnp.asarray(seen), form=form)
        np.testing.assert_allclose(hidden.smoothed_means, found[1], atol=1e-5)
        likelihood, means = smoothers[form](MODEL, infinite)
        assert np.isnan(likelihood)
        assert np.isnan(means).any()


def nonlinear(what, there):
    """A model whose dynamics break at a step that the inputs mark."""

    def dynamics(z, there):
        return jnp.where(there, what, jnp.tanh(0.8 * z))

    one = elk.ScaledIdentity(0.3)
    return elk.NonlinearSSM(jnp.zeros(2), one, dynamics, one, lambda z, _: z, one)


def test_in_the_dynamics_and_data_of_a_nonlinear_model():
    y = SERIES[:, :2]

    @jax.jit
    @jax.vmap
    def run(step, what, series):
        there = jnp.arange(12) == step
        found = elk.smooth(nonlinear(what, there), series, there)
        return found.status, found.means

    steps, what = rng.integers(1, 12, PLACES), rng.choice(BAD, PLACES)
    series = jnp.broadcast_to(y, (PLACES, *y.shape))
    status, _ = run(steps, what, series)
    assert (status != elk.Status.converged).all()
    # At no step, and in the data: an infinity has no mode, a gap has one.
    nowhere = np.full(PLACES, -1)
    at = (np.arange(PLACES), rng.integers(0, 12, PLACES), rng.integers(0, 2, PLACES))
    status, means = run(nowhere, what, series.at[at].set(what))
    gaps = np.isnan(what)
    np.testing.assert_array_equal(np.asarray(status) == 0, gaps)
    assert np.isfinite(np.asarray(means)[gaps]).all()
    model = nonlinear(0.0, False)
    with pytest.raises(ValueError, match=r"emissions are infinite at \(3, 1\)"):
        elk.smooth(model, y.at[3, 1].set(np.inf), jnp.zeros(12, bool))


@pytest.mark.parametrize("what", ["value", "slope"])
def test_in_the_objective_of_a_fit(what):
    """Beyond an edge that the prior pulls over: steps there are refused and counted."""
    y = np.cumsum(rng.normal(size=40)) + rng.normal(size=40)
    model = elk.models.local_level()
    name = model.free[0]

    def prior(values):
        x = values[name]
        # Of a root at zero the value is fine and the slope is not.
        broken = (lambda x: x * jnp.nan) if what == "value" else _root_of_zero
        pull = -50 * (x - EDGE - 1) ** 2
        return pull + jax.lax.cond(x > EDGE, broken, lambda x: 0 * x, x)

    found = elk.fit(model, y, prior=prior, standard_errors=False, start="model")
    assert found.num_refused > 0
    assert found.num_iters > 0
    assert np.isfinite(found.log_likelihood)
    values = {name: np.asarray(x) for name, x in found.parameters.items()}
    assert all(np.isfinite(x).all() for x in values.values())
    assert values[name] <= np.exp(EDGE) * (1 + 1e-6)


EDGE = 0.5


def _root_of_zero(x):
    return jnp.sqrt(0 * x)


def test_in_one_chain_of_several():
    """One chain breaks at its step; the others go on, to what a loop finds."""
    length, count = 30, 8
    step_of = rng.integers(0, length, count)
    broken = np.arange(count) % 2 == 0
    what = rng.choice(BAD, count)

    def kernel(parameters):
        step, breaks, bad = parameters

        def move(key, state):
            x, index = state
            y = 0.5 * x + jax.random.normal(key, x.shape)
            return jnp.where(breaks & (index == step), bad, y), index + 1

        return move

    keys = jax.random.split(jax.random.key(0), count)
    start = (jnp.zeros((count, 2)), jnp.zeros(count, jnp.int32))
    parameters = tuple(map(jnp.asarray, (step_of, broken, what)))
    for method in (None, elk.quasi_deer()):
        found = elk.chains(
            kernel, start, keys, length, parameters=parameters, method=method
        )
        status = np.where(broken, elk.Status.nonfinite, elk.Status.converged)
        np.testing.assert_array_equal(found.status, status)
        np.testing.assert_array_equal(found.failed_step, np.where(broken, step_of, -1))
        states = np.asarray(found.states[0])
        assert np.isfinite(states).all()
        for chain in range(count):
            x, last = np.zeros(2), step_of[chain] if broken[chain] else length
            for t, key in enumerate(jax.random.split(keys[chain], length)[:last]):
                x = 0.5 * x + np.asarray(jax.random.normal(key, (2,)))
                np.testing.assert_allclose(states[chain, t], x, atol=1e-4)
