"""`vmap`, `jit`, and `evaluate` inside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.evaluate.cases import decay, nan_above

import elk_ssm as elk


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
