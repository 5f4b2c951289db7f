"""What defines the methods: exact iterates, limits, prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.evaluate.cases import METHODS, small_integers, undamped

import elk_ssm as elk


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
