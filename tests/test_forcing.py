"""Generalised teacher forcing: the loop in Python, its limits, its mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

T, D = 60, 3
RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(1.5 * RNG.normal(size=(D, D)), jnp.float32)
START = jnp.asarray(RNG.normal(size=D), jnp.float32)
DATA = jnp.asarray(RNG.normal(size=(T, D)), jnp.float32)
INPUTS = jnp.asarray(RNG.normal(size=(T, D)), jnp.float32)


def step(x, u):
    return jnp.tanh(WEIGHTS @ x + u)


def by_hand(alpha, data=DATA, first=START):
    """The recurrence as it is written, in NumPy and float64."""
    weights, x = np.asarray(WEIGHTS, float), np.asarray(START, float)
    before = np.concatenate([np.asarray(first)[None], np.asarray(data)[:-1]])
    states = []
    for d, u in zip(before, np.asarray(INPUTS, float)):
        pulled = (1 - alpha) * x + alpha * d
        x = np.tanh(weights @ np.where(np.isnan(pulled), x, pulled) + u)
        states.append(x)
    return np.stack(states)


def run(alpha, data=DATA, solve=elk.sequential, **options):
    g = elk.forced(step, alpha)
    return solve(g, START, g.inputs(START, data, INPUTS), **options)


@pytest.mark.parametrize("alpha", [0.0, 0.3, np.array([0.0, 0.5, 1.0]), 1.0])
def test_the_states_are_those_of_the_loop_in_python(alpha):
    np.testing.assert_allclose(run(alpha).states, by_hand(alpha), atol=3e-5)


@pytest.mark.parametrize("method", [elk.deer(), elk.quasi_deer(block_size=4)])
def test_every_method_finds_them(method):
    for alpha in (np.array([0.2, 0.5, 1.0]), np.full(D, 0.7)):
        found = run(alpha, solve=elk.evaluate, method=method).states
        np.testing.assert_allclose(found, by_hand(alpha), atol=3e-5)


def test_without_a_pull_it_is_the_free_run_to_the_bit():
    free = elk.sequential(step, START, INPUTS).states
    assert np.array_equal(run(0.0).states, free)


def test_a_full_pull_predicts_one_step_ahead_and_depends_on_no_state():
    before = jnp.concatenate([START[None], DATA[:-1]])
    expected = jax.vmap(step)(before, INPUTS)
    g = elk.forced(step, 1.0)
    pairs = g.inputs(START, DATA, INPUTS)
    passes = elk.iterates(g, START, pairs, num_iters=1, method=elk.jacobi())
    np.testing.assert_allclose(passes[1], expected, atol=1e-6)
    jacobian = jax.jacfwd(g)(START, (DATA[0], INPUTS[0]))
    assert np.array_equal(jacobian, np.zeros((D, D)))


def test_missing_data_pull_nothing_in_values_and_derivatives():
    holes = np.array(DATA)
    holes[5:40:3] = np.nan
    holes[50:, 1] = np.nan
    np.testing.assert_allclose(run(0.4, holes).states, by_hand(0.4, holes), atol=3e-5)
    nothing = jnp.full((T, D), jnp.nan)
    free = elk.sequential(step, START, INPUTS).states
    assert np.array_equal(run(0.4, nothing).states[:2], free[:2])

    def loss(alpha, data):
        return jnp.sum(run(alpha, data).states ** 2)

    slopes = jax.grad(loss, argnums=(0, 1))(0.4, jnp.asarray(holes))
    assert all(np.all(np.isfinite(x)) for x in slopes)
    assert not np.any(np.asarray(slopes[1])[np.isnan(holes)])


def test_derivatives_are_those_of_the_scan(x64):
    start, data, inputs = (np.asarray(x, float) for x in (START, DATA, INPUTS))
    weights = np.asarray(WEIGHTS, float)

    def by_scan(alpha, weights, data):
        def body(x, du):
            d, u = du
            x = jnp.tanh(weights @ ((1 - alpha) * x + alpha * d) + u)
            return x, x

        before = jnp.concatenate([start[None], data[:-1]])
        return jnp.sum(jax.lax.scan(body, start, (before, inputs))[1] ** 3)

    def ours(alpha, weights, data):
        g = elk.forced(lambda x, u: jnp.tanh(weights @ x + u), alpha)
        pairs = g.inputs(start, data, inputs)
        return jnp.sum(elk.evaluate(g, start, pairs, method=elk.deer()).states ** 3)

    arguments = (jnp.full(D, 0.4), jnp.asarray(weights), jnp.asarray(data))
    found, expected = (
        jax.grad(h, argnums=(0, 1, 2))(*arguments) for h in (ours, by_scan)
    )
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_a_pull_is_data_another_number_compiles_nothing():
    traces = []

    def counted(x, u):
        traces.append(0)
        return step(x, u)

    @jax.jit
    def last(alpha):
        g = elk.forced(counted, alpha)
        pairs = g.inputs(START, DATA, INPUTS)
        return elk.evaluate(g, START, pairs, method=elk.quasi_deer()).states[-1]

    first = last(0.2)
    before = len(traces)
    assert not np.allclose(first, last(0.7))
    assert len(traces) == before


def test_states_are_trees_and_leaves_may_be_free_or_counters():
    start = {"a": START[:2], "b": jnp.float32(0.5), "n": jnp.int32(0)}
    data = {"a": DATA[:, :2], "b": None, "n": None}

    def f(x, _):
        return {
            "a": jnp.sin(3 * x["a"]) + x["b"],
            "b": jnp.cos(x["b"] + jnp.sum(x["a"])),
            "n": x["n"] + 1,
        }

    g = elk.forced(f, {"a": jnp.array([0.5, 0.0]), "b": 0.9, "n": 1.0})
    sol = elk.sequential(g, start, g.inputs(start, data))
    x = jax.tree.map(np.asarray, start)
    for t in range(10):
        d = START[:2] if t == 0 else DATA[t - 1, :2]
        x = f(x | {"a": np.array([0.5, 1.0]) * x["a"] + np.array([0.5, 0.0]) * d}, None)
        np.testing.assert_allclose(sol.states["a"][t], x["a"], atol=1e-3)
    assert sol.states["n"].tolist() == list(range(1, T + 1))


def test_a_step_of_scan_is_forced_as_well():
    g = elk.forced(lambda x, u: (step(x, u), jnp.sum(x)), 0.6)
    pairs = g.inputs(START, DATA, INPUTS)
    carry, ys = elk.scan(g, START, pairs, method=elk.deer())
    states = by_hand(0.6)
    pulled = 0.4 * states[:-1] + 0.6 * np.asarray(DATA[:-1])
    np.testing.assert_allclose(carry, states[-1], atol=3e-5)
    np.testing.assert_allclose(ys[1:], pulled.sum(axis=1), atol=1e-4)


def test_a_datum_of_its_own_before_the_first_step():
    g = elk.forced(step, 0.5)
    pairs = g.inputs(START, DATA, INPUTS, initial_datum=2 * START)
    np.testing.assert_allclose(
        elk.sequential(g, START, pairs).states, by_hand(0.5, first=2 * START), atol=3e-5
    )


def test_chaos_is_tamed_by_a_pull_towards_its_own_data(x64):
    def logistic(x, _):
        return 3.9 * x * (1 - x)

    start = jnp.array([0.3])
    data = elk.sequential(logistic, start, length=200).states
    g = elk.forced(logistic, 0.6)
    pairs = g.inputs(start, data)
    free = elk.evaluate(logistic, start, length=200, method=elk.deer())
    tamed = elk.evaluate(g, start, pairs, method=elk.deer())
    # On its own trajectory a pull changes nothing, but errors die out.
    np.testing.assert_allclose(tamed.states, data, atol=1e-10)
    assert 10 * int(tamed.num_iters) < int(free.num_iters)


@pytest.mark.parametrize(
    ("alpha", "error", "said"),
    [
        (1.5, ValueError, "from 0 to 1"),
        (np.array([0.5, np.nan]), ValueError, "from 0 to 1"),
        ("much", TypeError, "must be a number"),
        (0.5j, TypeError, "must be real"),
        (None, TypeError, "from 0 to 1; got None"),
    ],
)
def test_a_pull_that_is_none(alpha, error, said):
    with pytest.raises(error, match=said):
        elk.forced(step, alpha)


def test_mistakes_are_named_with_their_shapes():
    g = elk.forced(step, 0.5)
    with pytest.raises(ValueError, match=r"\(T, 3\).*got \(60, 2\)"):
        g.inputs(START, DATA[:, :2], INPUTS)
    with pytest.raises(ValueError, match=r"float32\[61, 3\].*without d_0"):
        g.inputs(START, jnp.concatenate([START[None], DATA]), INPUTS)
    with pytest.raises(ValueError, match="structure of the state"):
        g.inputs({"a": START}, DATA, INPUTS)
    with pytest.raises(ValueError, match="one array for each leaf"):
        g.inputs(START, {"a": DATA, "b": DATA}, INPUTS)
    with pytest.raises(ValueError, match=r"initial_datum needs shape \(3,\)"):
        g.inputs(START, DATA, INPUTS, initial_datum=START[:2])
    with pytest.raises(ValueError, match="Nothing is forced"):
        g.inputs(START, None, INPUTS)
    for inputs in (INPUTS, (INPUTS[:, :2], INPUTS), ({"a": DATA}, INPUTS)):
        for solve in (elk.evaluate, elk.sequential):
            with pytest.raises(ValueError, match=r"^A forced recurrence takes"):
                solve(g, START, inputs)
    with pytest.raises(TypeError, match=r"first argument .* order is forced\(f, alpha"):
        elk.forced(0.5, step)
    pairs = g.inputs(START, DATA, INPUTS)
    with pytest.raises(ValueError, match=r"^alpha of shape \(2,\)"):
        elk.evaluate(elk.forced(step, np.array([0.1, 0.2])), START, pairs)
    with pytest.raises(ValueError, match="a pytree that the state extends"):
        elk.evaluate(elk.forced(step, [0.1, 0.2, 0.3]), START, pairs)


def test_a_free_run_looks_at_no_datum():
    free = elk.evaluate(lambda x, _: 0.5 * x + 1, jnp.ones(1), length=4).states
    data = jnp.array([[1.0], [jnp.inf], [jnp.nan], [3.0]])
    g = elk.forced(lambda x, _: 0.5 * x + 1, 0.0)
    found = elk.evaluate(g, jnp.ones(1), g.inputs(jnp.ones(1), data))
    np.testing.assert_array_equal(found.states, free)
