"""`kernel="pallas"`: what it runs, what it refuses, and what it says elsewhere.

The kernel itself is tested in `tests/kernels`; here, that programs lowered for a GPU
hold it, in every place that it serves, and that nothing changes on a CPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

SHORT = elk.auto(strategy="short_blocks", block_size=8)
WEIGHTS = 0.4 * jax.random.normal(jax.random.key(0), (4, 4))
INPUTS = jax.random.normal(jax.random.key(1), (50, 4))
START = jnp.zeros(4)


def rnn(x, u):
    return jnp.tanh(WEIGHTS @ x + u)


def for_gpu(function, *arguments):
    """Text of the program for a GPU, traced on a CPU."""
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def short_blocks(x, u):
    return elk.evaluate(rnn, x, u, method=SHORT, kernel="pallas").states


def in_turn(x, u):
    return elk.sequential(rnn, x, u, kernel="pallas").states


def gradient(x, u):
    def loss(x):
        found = elk.evaluate(
            rnn, x, u, method=SHORT, kernel="pallas", adjoint="short_blocks"
        )
        return jnp.sum(found.states**2)

    return jax.grad(loss)(x)


@pytest.mark.parametrize(
    ("function", "kernels"), [(short_blocks, 2), (in_turn, 1), (gradient, 3)]
)
def test_programs_for_a_gpu_hold_the_kernel(function, kernels, every_platform):
    text = for_gpu(function, START, INPUTS)
    assert text.count('name = "elk_rollout"') >= kernels
    assert "elk_rollout" not in jax.jit(function).lower(START, INPUTS).as_text()


@pytest.mark.parametrize("function", [short_blocks, in_turn, gradient])
def test_nothing_changes_on_a_cpu(function):
    def plain(x, u):
        return jax.lax.scan(lambda x, u: (rnn(x, u),) * 2, x, u)[1]

    expected = plain(START, INPUTS)
    if function is gradient:
        expected = jax.grad(lambda x: jnp.sum(plain(x, INPUTS) ** 2))(START)
    found = jax.jit(function)(START, INPUTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_plan_says_that_this_platform_has_none():
    for sol in (
        elk.evaluate(rnn, START, INPUTS, method=SHORT, kernel="pallas"),
        elk.sequential(rnn, START, INPUTS, kernel="pallas"),
    ):
        assert int(sol.plan.in_kernel) == -1
        assert "no Triton" in sol.plan.describe()
    asked_for_none = elk.evaluate(rnn, START, INPUTS, method=SHORT)
    assert "kernel" not in asked_for_none.plan.describe()


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="sort"):
        elk.evaluate(lambda x, u: jnp.sort(x) + u, START, INPUTS, kernel="pallas")
    with pytest.raises(ValueError, match="other methods and meshes"):
        elk.evaluate(rnn, START, INPUTS, method=elk.deer(), kernel="pallas")
    with pytest.raises(ValueError, match="kernel must be one of pallas"):
        elk.evaluate(rnn, START, INPUTS, kernel="triton")


def test_sequential_by_request_is_the_scan():
    asked = elk.auto(strategy="sequential")
    sol = elk.evaluate(rnn, START, INPUTS, method=asked)
    np.testing.assert_array_equal(sol.states, elk.sequential(rnn, START, INPUTS).states)
    assert sol.plan.describe() == "sequential: as asked for"
