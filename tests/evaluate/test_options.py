"""Guess, tolerance, history and iterates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk


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
