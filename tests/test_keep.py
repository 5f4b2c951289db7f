"""Only the last state, or one per block: the same values, without the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

LENGTH, SIZE = 1003, 3
START = jnp.linspace(-1.0, 1.0, SIZE)
INPUTS = jax.random.normal(jax.random.key(0), (LENGTH, SIZE))
WEIGHTS = 0.4 * jax.random.normal(jax.random.key(1), (SIZE, SIZE))
METHODS = {
    "forgetful": elk.auto(strategy="forgetful", block_size=16, max_passes=4),
    "newton": elk.auto(strategy="newton", block_size=16),
    "deer": elk.deer(block_size=16),
    "quasi_elk": elk.quasi_elk(1e3, block_size=16),
    "jacobi, one step": elk.jacobi(),
}


def cell(weights, x, u):
    return jnp.tanh(weights @ x + u)


def solve(weights, start, inputs, method, keep):
    def f(x, u):
        return cell(weights, x, u)

    return elk.evaluate(f, start, inputs, method=method, keep=keep)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_kept_is_what_all_would_give(name, reference):
    method, size = METHODS[name], 1 if "one" in name else 16
    expected = reference(lambda x, u: cell(WEIGHTS, x, u), START, INPUTS)
    ends = solve(WEIGHTS, START, INPUTS, method, "boundaries")
    last = solve(WEIGHTS, START, INPUTS, method, "last")
    assert ends.states.shape == (LENGTH // size, SIZE)
    assert last.states.shape == (SIZE,)
    assert int(ends.status) == int(last.status) == elk.Status.converged
    np.testing.assert_allclose(ends.states, expected[size - 1 :: size], atol=3e-5)
    np.testing.assert_allclose(last.states, expected[-1], atol=3e-5)


@pytest.mark.parametrize("adjoint", ["sequential", "blocks"])
@pytest.mark.parametrize(
    ("keep", "pick"), [("last", np.s_[-1]), ("boundaries", np.s_[15::16])]
)
def test_derivatives_are_those_of_the_scan(keep, pick, adjoint, x64, reference):
    method = elk.deer(block_size=16)

    def ours(weights, start, inputs):
        states = elk.evaluate(
            lambda x, u: cell(weights, x, u),
            start,
            inputs,
            method=method,
            keep=keep,
            adjoint=adjoint,
        ).states
        return jnp.sum(jnp.sin(states))

    def scan(weights, start, inputs):
        states = reference(lambda x, u: cell(weights, x, u), start, inputs)
        return jnp.sum(jnp.sin(states[pick]))

    args = [x.astype(float) for x in (WEIGHTS, START, INPUTS[:200])]
    found = jax.grad(ours, (0, 1, 2))(*args)
    expected = jax.grad(scan, (0, 1, 2))(*args)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("step", [5, 700, 1002])
def test_a_failure_is_located(step):
    broken = INPUTS.at[step, 0].set(jnp.nan)
    for name in ("forgetful", "newton"):
        sol = solve(WEIGHTS, START, broken, METHODS[name], "last")
        assert int(sol.status) == elk.Status.nonfinite
        assert int(sol.failed_step) == step
        assert bool(jnp.all(jnp.isfinite(sol.states)))


def test_counters_and_keys_are_kept_with_the_rest():
    def f(state, _):
        x, count, key = state
        key, now = jax.random.split(key)
        return 0.5 * x + jax.random.normal(now, x.shape), count + 1, key

    start = (jnp.zeros(2), jnp.asarray(0), jax.random.key(3))
    sol = elk.evaluate(f, start, length=500, method=METHODS["forgetful"], keep="last")
    expected = elk.sequential(f, start, length=500).states
    np.testing.assert_allclose(sol.states[0], expected[0][-1], atol=1e-5)
    assert int(sol.states[1]) == 500
    assert sol.states[2] == expected[2][-1]


def test_works_under_vmap(reference):
    many = jnp.stack([INPUTS, INPUTS[::-1]])
    sol = jax.vmap(lambda u: solve(WEIGHTS, START, u, None, "last"))(many)
    for i in range(2):
        expected = reference(lambda x, u: cell(WEIGHTS, x, u), START, many[i])[-1]
        np.testing.assert_allclose(sol.states[i], expected, atol=3e-5)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="keep must be one of all, boundaries, last"):
        solve(WEIGHTS, START, INPUTS, None, "final")


@pytest.mark.parametrize("differentiated", [False, True])
def test_memory_is_that_of_the_boundaries(differentiated):
    # Ten million steps of 32 states: 1.28 GB as an array.
    length, size = 10_000_000, 32

    def run(weights, inputs):
        return solve(weights, jnp.zeros(size), inputs, None, "last").states.sum()

    function = jax.grad(run) if differentiated else run
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((size, size), (length, size))
    ]
    memory = jax.jit(function).lower(*shapes).compile().memory_analysis()
    trajectory = 4 * length * size
    assert memory.temp_size_in_bytes < trajectory / 20
