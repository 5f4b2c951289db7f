"""How a solve fails, and what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.evaluate.cases import methods, nan_above

import elk_ssm as elk


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
