"""The problem suite: shapes, dtypes, determinism, references; the published step."""

import inspect
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import problems, published

LENGTH = 60
# Larger networks and the other AR-GRU weights run the same code.
_LIKE_OTHERS = r".*_D(32|64|128)|argru_seed[1-4]"
NAMES = [n for n in problems.NAMES if not re.fullmatch(_LIKE_OTHERS, n)]


def _leaves_equal(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return all(np.array_equal(_raw(x), _raw(y)) for x, y in zip(a, b, strict=True))


def _raw(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


@pytest.mark.parametrize("name", NAMES)
def test_step_keeps_structure_shape_and_dtype(name):
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            p = problems.make(name, LENGTH, seed=1, dtype=dtype)
            u = jax.tree.map(lambda x: x[0], p.inputs)
            out = jax.eval_shape(p.f, p.initial_state, u)
            expected = jax.eval_shape(lambda x: x, p.initial_state)
        assert out == expected
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(out))
        assert all(x.shape[0] == LENGTH for x in jax.tree.leaves(p.inputs))


@pytest.mark.parametrize("name", NAMES)
def test_reference_is_finite_and_the_float32_trajectory_follows_it(name):
    p = problems.make(name, LENGTH)
    reference = p.reference()
    trajectory = jax.jit(lambda: problems.sequential(p))()
    # Chaos at gain 3 multiplies a rounding error by about 1e4 in 20 steps.
    steps, tolerance = (15, 1e-2) if p.chaotic else (LENGTH, 1e-4)
    for exact, single in zip(jax.tree.leaves(reference), jax.tree.leaves(trajectory)):
        assert exact.dtype == np.float64
        assert exact.shape == single.shape == (LENGTH, *exact.shape[1:])
        assert np.isfinite(exact).all()
        np.testing.assert_allclose(
            single[:steps], exact[:steps], rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_everything(name):
    first, again = (problems.make(name, LENGTH, seed=3) for _ in range(2))
    other = problems.make(name, LENGTH, seed=4)
    assert _leaves_equal(first[2:4], again[2:4])
    assert not _leaves_equal(first[2:4], other[2:4])


@pytest.mark.parametrize("name", ["gru_D4", "mala_keys", "argru_seed0"])
def test_both_precisions_are_the_same_problem(name):
    with jax.enable_x64(True):
        double = problems.make(name, LENGTH, seed=2, dtype="float64")
    single = problems.make(name, LENGTH, seed=2)
    assert _leaves_equal(single.reference(), double.reference())


def test_suite_is_complete_and_any_size_can_be_had():
    assert [p.name for p in problems.problems(length=5)] == list(problems.NAMES)
    assert problems.make("gru_D10", 5).state_dim == 10
    assert problems.make("lstm_D6", 5).state_dim == 6
    assert all(inspect.getdoc(build) for build in problems._BUILDERS.values())


def test_bad_requests_say_what_is_wrong():
    with pytest.raises(ValueError, match="no problem"):
        problems.make("gru")
    with pytest.raises(ValueError, match="at least 1"):
        problems.make("gru_D4", 0)
    with pytest.raises(ValueError, match="enable_x64"):
        problems.make("gru_D4", 5, dtype="float64")


def test_flatten_packs_an_lstm_state():
    p = problems.make("lstm_D8", 20)
    flat = problems.flatten(p)
    c, h = problems.sequential(p)
    np.testing.assert_allclose(
        problems.sequential(flat), jnp.concatenate([c, h], axis=1), atol=1e-6
    )


@pytest.mark.parametrize("seed", range(problems.ARGRU_SEEDS))
def test_argru_weights_generate_a_noisy_sine(seed):
    p = problems.make(f"argru_seed{seed}", 2000)
    assert p.state_dim == 4
    samples = p.reference()[:, 0]
    assert 3 < samples.std() < 12


def test_argru_is_as_hard_as_recorded_and_as_the_published_one():
    record = json.loads((problems.DATA / "argru_difficulty.json").read_text())
    kept = [row for row in record["candidates"] if "kept as" in row]
    assert len(kept) == problems.ARGRU_SEEDS
    assert all(count > 1000 / 5 for row in kept for count in row["deer"])
    options = published.Options("deer", "sequential", "nan_to_num")
    p = problems.make("argru_seed2", 200)
    assert published.count_problem(p, options)[0] > 200 / 5


def test_cubic_map_is_bounded_but_its_undamped_iterates_overflow():
    p = problems.make("cubic", 200)
    assert np.abs(p.reference()).max() < 1.3
    options = published.Options("deer", "sequential")
    step = jax.jit(published.make_step(options, p.f, p.initial_state, p.inputs))
    assert not jnp.isfinite(step(step(jnp.zeros((200, 2))))).all()


def test_linear_unstable_stays_finite_in_float32_at_any_length():
    reference = problems.make("linear_unstable", 20_000).reference()
    assert np.abs(reference).max() < np.finfo(np.float32).max


@pytest.mark.parametrize("method", published.METHODS)
def test_published_step_has_the_same_value_on_both_backends(method):
    p = problems.make("gru_D4", 5)
    guess = 0.3 * jnp.ones((5, 4))

    def new(backend, lapack_solve=False):
        options = published.Options(method, backend, lapack_solve=lapack_solve)
        step = published.make_step(options, p.f, p.initial_state, p.inputs)
        return jax.jit(step)(guess, 3.0)

    expected = new("sequential")
    np.testing.assert_allclose(new("associative"), expected, atol=1e-6)
    assert np.abs(expected - guess).max() > 1e-2


def test_unrolled_elimination_solves_what_the_kalman_operator_asks():
    rng = np.random.default_rng(0)
    c, j = (m @ m.swapaxes(1, 2) for m in rng.standard_normal((2, 10, 5, 5)))
    right = rng.standard_normal((10, 5, 5))
    exact = np.linalg.solve(np.eye(5) + c @ j, right)
    ours = published.gauss_jordan_solve(
        jnp.asarray(np.eye(5) + c @ j, jnp.float32), jnp.asarray(right, jnp.float32)
    )
    np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["associative", "sequential"])
def test_published_deer_equals_sequential_evaluation(backend):
    p = problems.make("gru_D4", 40)
    step = published.make_step(
        published.Options("deer", backend, reset="clip"),
        p.f,
        p.initial_state,
        p.inputs,
    )
    guess = jnp.zeros((40, 4))
    states, count = jax.jit(lambda g: published.evaluate_until(step, g))(guess)
    assert count <= 8
    np.testing.assert_allclose(states, p.reference(), atol=1e-5)


def test_counting_agrees_with_the_full_trace():
    p = problems.make("gru_D4", 80)
    options = published.Options("quasi_deer", "sequential")
    step = published.make_step(options, p.f, p.initial_state, p.inputs)
    guess, reference = np.ones((80, 4), np.float32), p.reference()

    @jax.jit
    def trace_and_counts(guess):
        count = partial(
            published.iterations_to_mad, step, guess, reference, threshold=1e-3
        )
        trace = published.evaluate_fixed(step, guess, num_iters=10)
        return trace, count(max_iters=10), count(max_iters=1)

    trace, reached, missed = trace_and_counts(guess)
    errors = np.mean(np.abs(trace - reference), axis=(1, 2))
    assert reached == np.argmax(errors < 1e-3) > 1
    assert missed == -1
