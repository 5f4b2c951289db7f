"""`evaluate`, `sequential` and `iterates` against `jax.lax.scan`."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

METHODS = {
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "elk": elk.elk(1e2),
    "elk_smoother": elk.elk(1e2, estimate="smoother"),
    "quasi_elk": elk.quasi_elk(1e2),
    "quasi_elk_smoother": elk.quasi_elk(1e2, estimate="smoother"),
    "picard": elk.picard(),
    "jacobi": elk.jacobi(),
}
CELLS = ["gru", "lstm", "rnn", "linear"]
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
undamped = pytest.mark.parametrize("name", ["deer", "quasi_deer", "picard", "jacobi"])


def decay(x, u):
    return jnp.tanh(0.5 * x + u)


def nan_above(x, u):
    """NaN on the true trajectory where an input exceeds 5."""
    return jnp.where(u > 5, jnp.nan, jnp.tanh(0.5 * x + 0.1 * u))


def small_integers(length):
    """A kinked recurrence whose every intermediate is an exact float32."""
    rng = np.random.default_rng(2)
    weights = jnp.asarray([[1.0, -1.0], [1.0, 1.0]])
    inputs = jnp.asarray(rng.integers(-3, 4, size=(length, 2)), jnp.float32)

    def step(x, u):
        return jnp.abs((weights * x).sum(-1) + u) / 2

    return step, jnp.asarray([1.0, 2.0]), inputs


# ------------------------------------------------------------ against lax.scan


@pytest.fixture(scope="module")
def all_cells(switched, reference):
    """Trajectories of the four cells by `lax.scan`, computed once for every length."""

    @cache
    def run(length):
        @jax.jit
        def one(which):
            return reference(*switched(which, length))

        return [one(which) for which in range(len(CELLS))]

    return run


def check_all_cells(solve, length, all_cells, close):
    """Compare `solve(which)` with the scan for each of the four cells."""
    for which, cell in enumerate(CELLS):
        solution = solve(which)
        assert solution.status == elk.Status.converged, cell
        assert solution.failed_step == -1
        assert solution.num_iters <= length
        expected = all_cells(length)[which]
        # The tolerance is 1e-5 of the largest state.
        size = max(1.0, *(float(abs(x).max()) for x in expected))
        close(solution.states, expected, atol=1e-4 * size)


@methods
def test_equals_scan(method, switched, all_cells, close):
    @jax.jit
    def solve(which):
        return elk.evaluate(*switched(which, 1000), method=method)

    check_all_cells(solve, 1000, all_cells, close)


# Compile time is what these tests cost, so they go without LLVM's optimisations.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize("length", [1, 2])
@methods
def test_equals_scan_over_one_and_two_steps(method, length, switched, all_cells, close):
    @partial(jax.jit, compiler_options=QUICK)
    def solve(which):
        return elk.evaluate(*switched(which, length), method=method)

    check_all_cells(solve, length, all_cells, close)


@pytest.mark.parametrize("cell", CELLS)
def test_the_switched_cells_are_the_cells(cell, switched, problem, reference):
    size = 2 if cell == "lstm" else 4
    pair = reference(*switched(CELLS.index(cell), 6))
    plain = reference(*problem(cell, 6, size=size))
    if cell != "lstm":
        pair = jnp.concatenate(pair, axis=-1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), pair, plain)
    assert max(float(abs(x).max()) for x in jax.tree.leaves(pair)) > 0.3


def test_every_cell_as_it_is(problem, reference, close):
    for cell in ("gru", "lstm"):
        f, x0, inputs = problem(cell, 40)
        solution = elk.evaluate(f, x0, inputs, method=elk.deer())
        assert solution.status == elk.Status.converged
        assert solution.history is None
        close(solution.states, reference(f, x0, inputs), atol=1e-4)


@pytest.mark.parametrize("name", ["deer", "quasi_elk_smoother"])
def test_equals_scan_in_double_precision(name, x64, problem, reference, close):
    f, x0, inputs = problem("gru", 40)
    assert inputs.dtype == jnp.float64
    solution = elk.evaluate(f, x0, inputs, method=METHODS[name])
    assert solution.status == elk.Status.converged
    assert solution.residual_norm.dtype == jnp.float64
    close(solution.states, reference(f, x0, inputs), atol=1e-11)


@pytest.mark.parametrize(
    ("factory", "block_size", "length"),
    [
        (elk.deer, 3, 17),
        (elk.deer, 8, 3),
        (elk.quasi_deer, 3, 17),
        (elk.quasi_deer, 8, 17),
        (elk.quasi_deer, 8, 3),
        (elk.jacobi, 8, 17),
    ],
)
def test_blocks_equal_scan(factory, block_size, length, problem, reference, close):
    f, x0, inputs = problem("rnn", length)
    method = factory(block_size=block_size)
    solution = elk.evaluate(f, x0, inputs, method=method)
    assert solution.status == elk.Status.converged
    assert solution.num_iters <= max(length // block_size, 1)
    close(solution.states, reference(f, x0, inputs), atol=1e-5)


def test_damped_blocks_equal_scan(problem, reference, close):
    f, x0, inputs = problem("gru", 17)
    method = elk.elk(jnp.ones((5, 1)), block_size=3)
    solution = elk.evaluate(f, x0, inputs, method=method)
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-5)


def test_dense_and_diagonal_blocks_differ():
    f, x0, inputs = small_integers(12)
    dense, diagonal = (
        elk.iterates(f, x0, inputs, num_iters=1, method=m(block_size=3))
        for m in (elk.deer, elk.quasi_deer)
    )
    assert not np.array_equal(dense[1], diagonal[1])


def test_default_method_equals_scan(problem, reference, close):
    f, x0, inputs = problem("gru", 30)
    solution = elk.raise_if_failed(elk.evaluate(f, x0, inputs))
    close(solution.states, reference(f, x0, inputs), atol=1e-5)


@pytest.mark.parametrize(
    "method", [elk.elk(3.0), elk.quasi_elk(3.0, estimate="smoother")]
)
def test_backends_agree(method, problem, close):
    f, x0, inputs = problem("rnn", 5, size=2)
    one, two = (
        elk.iterates(f, x0, inputs, num_iters=2, method=method, backend=backend)
        for backend in ("sequential", "associative")
    )
    close(one, two, atol=1e-5)


# ------------------------------------------------------------ defining properties


def test_linear_recurrence_is_exact_after_one_dense_iteration(
    x64, problem, reference, close
):
    f, x0, inputs = problem("linear", 40)
    found = elk.iterates(f, x0, inputs, num_iters=1, method=elk.deer())
    close(found[1], reference(f, x0, inputs), atol=1e-12)
    solution = elk.evaluate(f, x0, inputs, method=elk.deer(), max_iters=3)
    assert solution.status == elk.Status.converged
    assert solution.num_iters == 2


@undamped
def test_first_k_states_are_exact_after_k_iterations(name, reference):
    f, x0, inputs = small_integers(8)
    exact = reference(f, x0, inputs)
    found = elk.iterates(f, x0, inputs, num_iters=8, method=METHODS[name])
    np.testing.assert_array_equal(found[0], jnp.broadcast_to(x0, (8, 2)))
    for k in range(9):
        np.testing.assert_array_equal(found[k, :k], exact[:k])
    assert not np.array_equal(found[1], exact)


def test_exact_blocks_after_k_passes(reference):
    f, x0, inputs = small_integers(12)
    exact = reference(f, x0, inputs)
    found = elk.iterates(f, x0, inputs, num_iters=4, method=elk.jacobi(block_size=3))
    for k in range(5):
        np.testing.assert_array_equal(found[k, : 3 * k], exact[: 3 * k])
    assert not np.array_equal(found[1], exact)


def test_at_most_as_many_iterations_as_steps(problem):
    f, x0, inputs = problem("rnn", 12)
    stubborn, eager = (
        elk.evaluate(f, x0, inputs, method=elk.elk(noise)) for noise in (1e-6, 1e6)
    )
    assert stubborn.status == eager.status == elk.Status.converged
    assert eager.num_iters < stubborn.num_iters == 12
    np.testing.assert_allclose(stubborn.states, eager.states, atol=1e-5)


def test_quasi_is_full_in_one_dimension(problem, close):
    f, x0, inputs = problem("gru", 20, size=1)
    full, quasi = (
        elk.iterates(f, x0, inputs, num_iters=3, method=m)
        for m in (elk.elk(2.0), elk.quasi_elk(2.0))
    )
    close(full, quasi, atol=1e-6)


def test_the_undamped_iterate_is_the_limit_of_both_estimates(x64, problem, close):
    f, x0, inputs = problem("rnn", 12)
    undamped = elk.iterates(f, x0, inputs, num_iters=2, method=elk.deer())
    found = {}
    for estimate in ("filter", "smoother"):

        @jax.jit
        def run(noise, estimate=estimate):
            method = elk.elk(noise, estimate=estimate)
            return elk.iterates(f, x0, inputs, num_iters=2, method=method)

        far = [float(abs(run(noise) - undamped).max()) for noise in (1e3, 1e6, 1e9)]
        # The distance to the limit is of first order in 1 / noise.
        assert far[0] > 300 * far[1] > 300 * 300 * far[2] > 0
        close(run(1e30), undamped, atol=1e-12)
        # Small noise stays where it is, beyond the first states, which are exact.
        moved = [float(abs(run(noise)[1, 2:] - x0).max()) for noise in (1e-4, 1e-2)]
        assert moved[0] < moved[1] / 10 < abs(undamped[1, 2:] - x0).max() / 100
        found[estimate] = run(1.0)
    assert abs(found["filter"] - found["smoother"]).max() > 1e-3


def test_huge_noise_agrees_with_deer(problem, close):
    f, x0, inputs = problem("gru", 40)
    damped = elk.evaluate(f, x0, inputs, method=elk.elk(1e30), history=5)
    newton = elk.evaluate(f, x0, inputs, method=elk.deer(), history=5)
    assert damped.num_iters == newton.num_iters
    close(damped.states, newton.states, atol=1e-6)


@pytest.mark.parametrize(
    ("damped", "plain"), [(elk.elk, elk.deer), (elk.quasi_elk, elk.quasi_deer)]
)
def test_infinite_noise_is_bitwise_undamped(damped, plain, problem):
    f, x0, inputs = problem("gru", 40)

    def solve(noise):
        return elk.evaluate(f, x0, inputs, method=damped(noise), history=5)

    expected = elk.evaluate(f, x0, inputs, method=plain(), history=5)
    for found in (solve(jnp.inf), solve(jnp.full((40, 3), jnp.inf))):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("damped", "plain"), [(elk.elk, elk.deer), (elk.quasi_elk, elk.quasi_deer)]
)
def test_a_traced_infinity_takes_the_undamped_steps(damped, plain, problem, close):
    # Another program: the same steps, and f rounded as that program rounds it.
    f, x0, inputs = problem("gru", 40)
    solve = jax.jit(lambda s: elk.evaluate(f, x0, inputs, method=damped(s), history=5))
    found, expected = solve(jnp.inf), elk.evaluate(f, x0, inputs, method=plain())
    assert int(found.num_iters) == int(expected.num_iters)
    close(found.states, expected.states, atol=1e-6)


# ------------------------------------------------------------ guess, tol, history


@pytest.mark.parametrize("value", [jnp.nan, 1e30, -jnp.inf])
def test_a_bad_guess_still_converges(value, problem, reference, close):
    f, x0, inputs = problem("gru", 40)
    guess = jnp.full((40, 3), value)
    solution = elk.evaluate(f, x0, inputs, method=elk.deer(), guess=guess)
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-5)


def test_the_answer_as_guess_needs_one_iteration(problem, reference):
    f, x0, inputs = problem("gru", 40)
    cold = elk.evaluate(f, x0, inputs, method=elk.deer())
    guess = reference(f, x0, inputs)
    warm = elk.evaluate(f, x0, inputs, method=elk.deer(), guess=guess)
    assert warm.num_iters == 1 < cold.num_iters


def test_a_looser_tolerance_stops_earlier(problem):
    f, x0, inputs = problem("gru", 40)
    loose, strict = (
        elk.evaluate(f, x0, inputs, method=elk.quasi_deer(), tol=tol, history=5)
        for tol in (1e-1, 1e-6)
    )
    assert loose.num_iters < strict.num_iters
    assert loose.step_norm > strict.step_norm


def test_history_has_a_fixed_size_with_nan_past_the_end(problem):
    f, x0, inputs = problem("gru", 40)
    solution = elk.evaluate(f, x0, inputs, method=elk.elk(1e4), history=40)
    done = int(solution.num_iters)
    assert 1 < done < 40
    for values in solution.history:
        assert values.shape == (40,)
        assert np.isnan(values[done:]).all()
        assert not np.isnan(values[:done]).any()
    assert solution.history.residual_norm[done - 1] == solution.residual_norm
    assert solution.history.step_norm[done - 1] == solution.step_norm
    np.testing.assert_allclose(solution.history.noise[:done], 1e4, rtol=1e-5)


@pytest.mark.parametrize("block_size", [1, 4])
def test_history_tells_how_far_the_iterates_are_exact(block_size, reference):
    def logistic(x, u):
        return 3.9 * x * (1 - x)

    x0, inputs = jnp.array([0.3]), jnp.zeros((36, 1))
    method = elk.deer(block_size=block_size, gate=elk.Gate())
    seen = elk.evaluate(logistic, x0, inputs, method=method, history=9).history
    found = elk.iterates(logistic, x0, inputs, method=method, num_iters=9)[1:]
    truth = reference(logistic, x0, inputs)
    for number, iterate in enumerate(found):
        if np.isnan(seen.exact[number]):
            break
        steps = block_size * int(seen.exact[number])
        assert steps >= block_size * (number + 1)
        np.testing.assert_allclose(iterate[:steps], truth[:steps], atol=1e-4)
    assert number > 2


def test_history_counts_the_states_that_were_set_back(problem):
    def logistic(x, u):
        return 3.9 * x * (1 - x)

    def set_back(f, x0, inputs, gate):
        method = elk.deer(gate=gate)
        seen = elk.evaluate(f, x0, inputs, method=method, history=20).history
        return np.asarray(seen.set_back)

    wild = logistic, jnp.array([0.3]), jnp.zeros((36, 1))
    counts = set_back(*wild, elk.Gate())
    known = counts[np.isfinite(counts)]
    assert known.max() > 0
    assert ((known >= 0) & (known <= 36)).all()
    # Newton's steps overflow here, and what is not finite is set back without a gate.
    assert np.nansum(set_back(*wild, None)) > 0
    assert np.nansum(set_back(*problem("gru", 20), None)) == 0
    assert np.nansum(set_back(*problem("linear", 20), elk.Gate())) == 0


def test_history_keeps_only_the_first_iterations(problem):
    f, x0, inputs = problem("gru", 40)
    short, long = (
        elk.evaluate(f, x0, inputs, method=elk.elk(1e4), history=n).history
        for n in (2, 40)
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:2]), short, long)


def test_iterates_start_at_the_guess(problem):
    f, x0, inputs = problem("rnn", 6)
    guess = jnp.full((6, 3), 0.3)
    found = elk.iterates(f, x0, inputs, num_iters=2, method=elk.deer(), guess=guess)
    np.testing.assert_array_equal(found[0], guess)


# ------------------------------------------------------------ how it fails


def test_max_iters_reached(problem, reference):
    f, x0, inputs = problem("gru", 40)
    solution = elk.evaluate(f, x0, inputs, method=elk.quasi_deer(), max_iters=2)
    assert solution.status == elk.Status.max_iters_reached
    assert solution.num_iters == 2
    assert abs(solution.states - reference(f, x0, inputs)).max() > 1e-4


@methods
def test_planted_nan_is_found(method, reference):
    inputs = jnp.ones((23, 2)).at[17, 1].set(9.0)
    solution = elk.evaluate(nan_above, jnp.zeros(2), inputs, method=method)
    assert solution.status == elk.Status.nonfinite
    assert solution.failed_step == 17
    assert jnp.isfinite(solution.states).all()
    exact = reference(nan_above, jnp.zeros(2), inputs)
    np.testing.assert_allclose(solution.states[:17], exact[:17], atol=1e-5)


@pytest.mark.parametrize("factory", [elk.deer, elk.quasi_deer, elk.jacobi])
@pytest.mark.parametrize("position", [0, 17, 21])
def test_planted_nan_is_found_in_blocks(factory, position):
    inputs = jnp.ones((23, 3)).at[position, 1].set(9.0)
    method = factory(block_size=5)
    solution = elk.evaluate(nan_above, jnp.zeros(3), inputs, method=method)
    assert solution.status == elk.Status.nonfinite
    assert solution.failed_step == position
    assert jnp.isfinite(solution.states).all()


@pytest.mark.parametrize("position", [0, 500, 998])
def test_nan_in_a_shape_whose_jitted_maximum_drops_it(position):
    # At (999, 5) the maximum of a NaN among ones is 1 on some CPU backends.
    inputs = jnp.ones((999, 5)).at[position, 2].set(9.0)
    solution = elk.evaluate(nan_above, jnp.zeros(5), inputs, method=elk.quasi_deer())
    assert solution.status == elk.Status.nonfinite
    assert solution.failed_step == position
    # Found once the states before it have converged, not when the prefix gets there.
    assert solution.num_iters < 40


def test_nan_everywhere():
    inputs = jnp.full((999, 5), 9.0)
    solution = elk.evaluate(nan_above, jnp.zeros(5), inputs, method=elk.quasi_deer())
    assert solution.status == elk.Status.nonfinite
    assert solution.failed_step == 0


def test_overflow_is_nonfinite():
    solution = elk.evaluate(
        lambda x, _: x * x, jnp.full(2, 10.0), length=20, method=elk.deer()
    )
    assert solution.status == elk.Status.nonfinite
    assert solution.failed_step == 5


def test_nan_off_the_trajectory_is_survived(reference, close):
    # Newton's first steps leave the domain of the logarithm, the solution does not.
    def f(x, u):
        return u - jnp.log(x)

    inputs = jnp.full((40, 1), 2.0)
    x0 = jnp.full(1, 0.2)
    wild = elk.iterates(f, x0, inputs, num_iters=1, method=elk.deer())[1]
    assert (wild < 0).any()
    solution = elk.evaluate(f, x0, inputs, method=elk.deer())
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-4)


def test_chaos_in_single_precision_ends_at_the_precision_limit():
    def lorenz(x, _):
        drift = [
            10 * (x[1] - x[0]),
            x[0] * (28 - x[2]) - x[1],
            x[0] * x[1] - 2.7 * x[2],
        ]
        return x + 0.01 * jnp.stack(drift)

    x0 = jnp.ones(3)
    first = elk.sequential(lorenz, x0, length=1500).states
    # A start that is right up to rounding, in whatever way this compiler rounds.
    first = first * (1 + 1e-7 * jnp.cos(jnp.arange(1500.0)))[:, None]
    solution = elk.evaluate(
        lorenz, x0, length=1500, method=elk.deer(), guess=first, tol=1e-6
    )
    assert solution.status == elk.Status.precision_limit
    assert solution.num_iters < 1500
    # Rounding grows by e^13 on the way, so no step falls below the tolerance.
    assert solution.step_norm > 1e-3
    # A trajectory of the map up to rounding, not the one that lax.scan rounds to.
    before = jnp.concatenate([x0[None], solution.states[:-1]])
    residual = solution.states - jax.vmap(lorenz, (0, None))(before, None)
    # The rounding floor is 32 units in the last place of the largest state.
    floor = 32 * jnp.finfo(jnp.float32).eps * abs(solution.states).max()
    assert abs(residual).max() < floor


def test_sequential_reports_failure():
    inputs = jnp.ones((9, 2)).at[4, 0].set(9.0)
    solution = elk.sequential(nan_above, jnp.zeros(2), inputs)
    assert solution.status == elk.Status.nonfinite
    assert solution.failed_step == 4
    fine = elk.sequential(nan_above, jnp.zeros(2), jnp.ones((9, 2)))
    assert fine.status == elk.Status.converged
    assert fine.failed_step == -1
    assert fine.num_iters == 1


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.complex64, bool])
def test_sequential_takes_any_dtype(dtype, reference):
    def f(x, u):
        return (x + u).astype(dtype)

    x0, inputs = jnp.zeros(2, dtype), jnp.ones((5, 2), dtype)
    states = elk.sequential(f, x0, inputs).states
    assert states.dtype == dtype
    np.testing.assert_array_equal(states, reference(f, x0, inputs))


# ------------------------------------------------------------ compilation


def test_one_compilation_serves_all_noises_and_closures(compilations):
    x0, inputs = jnp.zeros(2), jnp.ones((11, 2))

    def solve(noise, weight):
        return elk.evaluate(
            lambda x, u: jnp.tanh(weight * x + u),
            x0,
            inputs,
            method=elk.quasi_elk(noise),
            tol=1e-6,
        ).states

    weights = [jnp.full(2, w) for w in (0.3, 0.4, 0.5)]
    first = solve(1.0, weights[0])
    with compilations() as count:
        second = solve(10.0, weights[1])
        third = solve(100.0, weights[2])
    assert count == [0]
    assert abs(first - second).max() > 1e-3
    assert abs(second - third).max() > 1e-3
    with compilations() as count:
        jax.jit(lambda x: 2 * jnp.sin(x) - 0.123)(x0)
    assert count[0] > 0


@jax.custom_jvp
def with_own_rule(x):
    return jnp.sin(x)


with_own_rule.defjvp(lambda p, t: (jnp.sin(p[0]), jnp.cos(p[0]) * t[0]))


@pytest.mark.parametrize(
    "nonlinearity",
    [
        jax.nn.relu,
        jax.nn.gelu,
        jax.jit(jnp.tanh),
        with_own_rule,
        lambda x: jax.lax.fori_loop(0, 2, lambda _, y: jnp.tanh(y), x),
    ],
    ids=["relu", "gelu", "jit", "custom_jvp", "loop"],
)
def test_nothing_recompiles_for_a_new_lambda(nonlinearity, compilations):
    def solve(weight):
        return elk.evaluate(
            lambda x, u: nonlinearity(weight * x + u),
            jnp.zeros(2),
            jnp.ones((5, 2)),
            method=elk.quasi_deer(),
        ).states

    weights = jnp.full(2, 0.3), jnp.full(2, 0.4)
    first = solve(weights[0])
    with compilations() as count:
        second = solve(weights[1])
    assert count == [0]
    assert abs(first - second).max() > 1e-3


def test_f_is_traced_once_per_call_inside_the_engine():
    calls = []

    def f(x, u):
        calls.append(None)
        return decay(x, u)

    jitted = jax.jit(
        lambda noise: (
            elk.evaluate(
                f, jnp.zeros(2), jnp.ones((7, 2)), method=elk.elk(noise)
            ).states
        )
    )
    jitted(1.0)
    traces = len(calls)
    jitted(2.0)
    assert len(calls) == traces
    # One look at the result's shape and one trace; the engine runs the traced program.
    assert traces <= 3


def test_parameters_changed_in_place_are_seen(reference, close):
    parameters = {"w": jnp.full(2, 0.2)}

    def f(x, u):
        return jnp.tanh(parameters["w"] * x + u)

    x0, inputs = jnp.zeros(2), jnp.ones((8, 2))
    for value in (0.2, 0.9):
        parameters["w"] = jnp.full(2, value)
        found = elk.evaluate(f, x0, inputs, method=elk.deer()).states
        close(found, reference(f, x0, inputs), atol=1e-5)


def test_numpy_parameters_changed_in_place_are_seen(reference, close):
    weight = np.full(2, 0.2, np.float32)

    def f(x, u):
        return jnp.tanh(weight * x + u)

    x0, inputs = jnp.zeros(2), jnp.ones((8, 2))
    for value in (0.2, 0.9):
        weight[:] = value
        found = elk.evaluate(f, x0, inputs, method=elk.deer()).states
        close(found, reference(f, x0, inputs), atol=1e-5)


# ------------------------------------------------------------ transformations


def test_vmap_over_noise_equals_a_loop(problem, close):
    f, x0, inputs = problem("rnn", 12)

    def solve(noise):
        return elk.evaluate(f, x0, inputs, method=elk.elk(noise))

    noises = jnp.asarray([1e-1, 1e2, jnp.inf])
    batched = jax.vmap(solve)(noises)
    assert len(set(batched.num_iters.tolist())) > 1
    for i, noise in enumerate(noises):
        single = solve(noise)
        assert batched.num_iters[i] == single.num_iters
        assert batched.status[i] == single.status
        close(batched.states[i], single.states, atol=1e-5)


def test_vmap_over_the_batch_equals_a_loop(problem, reference, close):
    f, x0, _ = problem("gru", 40)
    rng = np.random.default_rng(3)
    inputs = jnp.asarray(rng.normal(size=(4, 40, 2)) * 3, jnp.float32)
    inputs = inputs.at[2].set(0.0)

    def solve(inputs):
        return elk.evaluate(f, x0, inputs, method=elk.quasi_deer(), history=5)

    batched = jax.vmap(solve)(inputs)
    assert batched.history.noise.shape == (4, 5)
    for i in range(4):
        single = solve(inputs[i])
        assert batched.num_iters[i] == single.num_iters
        close(batched.states[i], single.states, atol=1e-6)
        close(batched.states[i], reference(f, x0, inputs[i]), atol=1e-4)


def test_one_failing_element_of_a_batch_leaves_the_others_alone(reference):
    inputs = jnp.ones((3, 12, 2)).at[1, 6, 0].set(9.0)
    solve = jax.vmap(
        lambda u: elk.evaluate(nan_above, jnp.zeros(2), u, method=elk.deer())
    )
    solution = solve(inputs)
    assert solution.status.tolist() == [0, 2, 0]
    assert solution.failed_step.tolist() == [-1, 6, -1]
    assert jnp.isfinite(solution.states).all()
    exact = reference(nan_above, jnp.zeros(2), inputs[0])
    np.testing.assert_allclose(solution.states[0], exact, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"nonfinite in batch elements 1:"):
        elk.raise_if_failed(solution)


def test_inside_jit_scan_and_vmap(reference, close):
    x0, inputs = jnp.zeros(2), jnp.linspace(0, 1, 8)[:, None] * jnp.ones(2)

    @jax.jit
    def run(scales):
        def body(start, scale):
            solve = jax.vmap(
                lambda x: (
                    elk.evaluate(decay, x, scale * inputs, method=elk.deer()).states
                )
            )
            states = solve(start)
            return states[:, -1], states

        return jax.lax.scan(body, jnp.stack([x0, x0 + 1]), scales)[1]

    found = run(jnp.asarray([1.0, 2.0]))
    assert found.shape == (2, 2, 8, 2)
    exact = reference(decay, x0 + 1, inputs)
    close(found[0, 1], exact, atol=1e-5)
    close(found[1, 1], reference(decay, exact[-1], 2 * inputs), atol=1e-5)


# ------------------------------------------------------------ kinds of data


def test_scalar_state_and_no_inputs(reference, close):
    solution = elk.evaluate(lambda x, _: jnp.cos(x), 0.5, length=12, method=elk.deer())
    expected = reference(lambda x, _: jnp.cos(x), jnp.asarray(0.5), None, 12)
    assert solution.states.shape == (12,)
    np.testing.assert_allclose(solution.states, expected, atol=1e-6)


def test_integer_and_boolean_inputs(reference, close):
    def f(x, u):
        return jnp.where(u["on"], jnp.tanh(0.5 * x + u["count"]), x)

    inputs = {"count": jnp.arange(9), "on": jnp.arange(9) % 2 == 0}
    x0 = jnp.zeros(2)
    solution = elk.evaluate(f, x0, inputs, method=elk.deer())
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_counters_and_keys_in_the_state(wrap, reference, close):
    @wrap
    def f(state, u):
        key, now = jax.random.split(state["key"])
        kick = 0.1 * jax.random.normal(now, (2,))
        h = jnp.tanh(0.5 * state["h"] + u + kick) * (1 + 0.1 * state["n"])
        return {"h": h, "n": state["n"] + 1, "key": key}

    x0 = {"h": jnp.zeros(2), "n": jnp.asarray(0), "key": jax.random.PRNGKey(3)}
    inputs = jnp.ones((9, 2))
    solution = elk.evaluate(f, x0, inputs, method=elk.deer())
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-4)


def test_typed_keys_in_the_state(reference):
    def f(state, u):
        h, key = state
        key, now = jax.random.split(key)
        return jnp.tanh(0.5 * h + u + jax.random.normal(now, (2,))), key

    x0, inputs = (jnp.zeros(2), jax.random.key(3)), jnp.ones((9, 2))
    states, keys = elk.evaluate(f, x0, inputs, method=elk.deer()).states
    expected, expected_keys = reference(f, x0, inputs)
    np.testing.assert_allclose(states, expected, atol=1e-5)
    np.testing.assert_array_equal(
        jax.random.key_data(keys), jax.random.key_data(expected_keys)
    )


def test_leaves_of_two_precisions(x64, reference, close):
    def f(state, u):
        a, b = state
        return jnp.tanh(0.5 * a + u), jnp.tanh(0.5 * b + a.astype(jnp.float64))

    x0 = jnp.zeros(2, jnp.float32), jnp.zeros(2)
    inputs = jnp.ones((9, 2), jnp.float32)
    solution = elk.evaluate(f, x0, inputs, method=elk.deer())
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-6)


def test_single_precision_under_x64(x64):
    x0 = jnp.zeros(2, jnp.float32)
    inputs = jnp.ones((9, 2), jnp.float32)
    solution = elk.evaluate(decay, x0, inputs, method=elk.elk(1.0))
    assert solution.states.dtype == jnp.float32
    assert solution.status == elk.Status.converged


# ------------------------------------------------------------ mistakes


X0, INPUTS = jnp.zeros(2), jnp.ones((5, 2))
MISTAKES = {
    "structure": (lambda x, u: {"x": x}, X0, INPUTS, {}, ValueError, "same structure"),
    "shape": (lambda x, u: x[:1], X0, INPUTS, {}, ValueError, r"float32\[2\].*\[1\]"),
    "dtype": (
        lambda x, u: x.astype(jnp.bfloat16),
        X0,
        INPUTS,
        {},
        ValueError,
        r"float32\[2\].*bfloat16\[2\]",
    ),
    "output": (lambda x, u: (x, u), X0, INPUTS, {}, ValueError, r"elk\.scan"),
    "axis": (
        decay,
        X0,
        (INPUTS, jnp.ones((4, 2))),
        {},
        ValueError,
        r"share.*lengths \[4, 5\]",
    ),
    "list": (decay, X0, [1.0, 2.0], {}, ValueError, r"jnp\.asarray"),
    "scalar input": (decay, X0, 1.0, {}, ValueError, "leading time axis"),
    "text": (decay, X0, "abc", {}, TypeError, "'abc'"),
    "no length": (decay, X0, None, {}, ValueError, "length=T"),
    "length": (decay, X0, INPUTS, {"length": 4}, ValueError, "length is 4.*5 steps"),
    "no step": (decay, X0, jnp.ones((0, 2)), {}, ValueError, "T = 0"),
    "no steps": (lambda x, u: x, X0, None, {"length": 0}, ValueError, "T = 0"),
    "float length": (lambda x, u: x, X0, None, {"length": 2.0}, TypeError, "2.0"),
    "order": (X0, decay, INPUTS, {}, TypeError, r"evaluate\(f, initial_state"),
    "bfloat16": (
        lambda x, u: x,
        X0.astype(jnp.bfloat16),
        INPUTS,
        {},
        TypeError,
        "bfloat16",
    ),
    "float16": (
        lambda x, u: x,
        X0.astype(jnp.float16),
        INPUTS,
        {},
        TypeError,
        "float32 or",
    ),
    "complex": (
        lambda x, u: x,
        X0.astype(jnp.complex64),
        INPUTS,
        {},
        TypeError,
        "complex64",
    ),
    "integer": (
        lambda x, u: x + 1,
        jnp.zeros(2, int),
        INPUTS,
        {},
        TypeError,
        "floating-point leaf.*int32",
    ),
    "empty": (lambda x, u: x, jnp.zeros(0), INPUTS, {}, ValueError, r"float32\[0\]"),
    "no leaves": (lambda x, u: x, (), INPUTS, {}, TypeError, "floating-point leaf"),
    "backend": (
        decay,
        X0,
        INPUTS,
        {"backend": "gpu"},
        ValueError,
        "auto, sequential, associative; got 'gpu'",
    ),
    "adjoint": (decay, X0, INPUTS, {"adjoint": "dense"}, ValueError, "'dense'"),
    "guess": (
        decay,
        X0,
        INPUTS,
        {"guess": jnp.ones((4, 2))},
        ValueError,
        r"guess must be.*length 5.*float32\[5, 2\].*float32\[4, 2\]",
    ),
    "guess tree": (decay, X0, INPUTS, {"guess": (INPUTS,)}, ValueError, "guess"),
    "method": (decay, X0, INPUTS, {"method": "deer"}, TypeError, r"elk\.deer\(\)"),
    "factory": (decay, X0, INPUTS, {"method": elk.deer}, TypeError, r"elk\.deer\(\)"),
    "tol": (decay, X0, INPUTS, {"tol": 0.0}, ValueError, "tol must be.*0.0"),
    "nan tol": (decay, X0, INPUTS, {"tol": jnp.nan}, ValueError, "tol must be"),
    "array tol": (decay, X0, INPUTS, {"tol": X0}, ValueError, "tol must be"),
    "max_iters": (decay, X0, INPUTS, {"max_iters": 0}, ValueError, "max_iters"),
    "np max_iters": (
        decay,
        X0,
        INPUTS,
        {"max_iters": np.int64(-1)},
        ValueError,
        "max_iters",
    ),
    "real max_iters": (decay, X0, INPUTS, {"max_iters": 2.5}, TypeError, "max_iters"),
    "history": (decay, X0, INPUTS, {"history": -1}, ValueError, "history.*-1"),
    "noise": (
        decay,
        X0,
        INPUTS,
        {"method": elk.elk(jnp.ones(3))},
        ValueError,
        r"shape \(3,\).*\(2,\) per dimension, \(5, 1\) per step or \(5, 2\)",
    ),
    "branch": (
        lambda x, u: x if x[0] > 0 else u,
        X0,
        INPUTS,
        {},
        TypeError,
        "f failed on one state.*bool",
    ),
    "batch": (
        lambda x, u: jnp.dot(jnp.eye(2), x) + u,
        jnp.zeros((3, 2)),
        jnp.ones((3, 5, 2)),
        {},
        TypeError,
        r"jax\.vmap",
    ),
    "states before inputs": (
        lambda x, u: jnp.eye(2) @ x + u.sum(),
        INPUTS,
        X0,
        {},
        TypeError,
        r"The order is evaluate\(f, initial_state, inputs\).*What f said: dot_general",
    ),
    "a list of steps": (
        lambda x, u: x + u,
        X0,
        [np.ones(2)] * 40,
        {},
        TypeError,
        r"\.\.\. \(40 leaves\).*inputs is a Python list.*its 40 entries.*jnp\.asarray",
    ),
    "a list of numbers": (
        lambda x, u: x + u,
        X0,
        [1.0, 2.0],
        {},
        ValueError,
        r"Python list is a pytree of its entries: pass jnp\.asarray",
    ),
    "a list as state": (
        lambda x, u: x + u,
        [0.0, 0.0],
        INPUTS,
        {},
        TypeError,
        r"initial_state is a Python list.*its 2 entries",
    ),
    "a pair": (
        lambda x, u: (x, x),
        X0,
        INPUTS,
        {},
        ValueError,
        r"same structure, float32\[2\]; got \(.*elk\.scan",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_explained(mistake):
    f, x0, inputs, options, error, message = mistake
    with pytest.raises(error, match=f"(?s){message}"):
        elk.evaluate(f, x0, inputs, **options)


def test_counters_that_depend_on_floats_are_refused():
    def f(state, u):
        x, n = state
        return decay(x, u), n + (x[0] > 0)

    with pytest.raises(TypeError, match="evolve independently"):
        elk.evaluate(f, (X0, jnp.asarray(0)), INPUTS)


def test_sequential_takes_counters_that_depend_on_floats(reference, close):
    def f(state, u):
        x, n = state
        return decay(x, u), n + (x[0] > 0)

    x0 = (X0, jnp.asarray(0))
    found = elk.sequential(f, x0, INPUTS).states
    close(found, reference(f, x0, INPUTS), atol=1e-6)
