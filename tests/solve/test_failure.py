"""`nonfinite` accuses f only where f breaks on its trajectory; states stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

METHODS = {
    "default": None,
    "newton": elk.auto(strategy="newton", block_size=8),
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "jacobi": elk.jacobi(),
    "elk": elk.elk(1e2),
    "annealed": elk.elk(elk.Annealed(1.0, 4.0)),
    "smoother": elk.quasi_elk(1e2, estimate="smoother"),
    "blocks": elk.deer(block_size=8),
}
every_method = pytest.mark.parametrize("name", METHODS)


def rectified_root(x, u):
    return jnp.stack([jax.nn.relu(0.7 * x[0] + u), jnp.sqrt(x[0])])


def rectified_logarithm(x, u):
    return jnp.stack([jnp.abs(0.5 * x[0] + u) + 1e-3, jnp.log(x[0])])


@pytest.mark.parametrize("f", [rectified_root, rectified_logarithm])
@every_method
def test_what_is_undefined_off_the_trajectory_accuses_nobody(name, f, reference):
    drawn = np.random.default_rng(0).normal(size=(40, 100))
    inputs = jnp.asarray(drawn, jnp.float32)
    start = jnp.asarray([0.5, 0.0])

    def run(u):
        return elk.evaluate(f, start, u, method=METHODS[name])

    sol = jax.jit(jax.vmap(run))(inputs)
    expected = jax.vmap(lambda u: reference(f, start, u))(inputs)
    assert np.all(sol.status == elk.Status.converged)
    assert np.all(sol.failed_step == -1)
    # A root turns an error at zero into the root of that error.
    np.testing.assert_allclose(sol.states, expected, atol=2e-3)
    assert np.all(np.isfinite(sol.residual_norm))


@every_method
@pytest.mark.parametrize("keep", ["all", "last"])
def test_an_overflow_is_found_and_the_states_stay_finite(name, keep):
    sol = elk.evaluate(
        lambda x, _: x * x * 1e3,
        jnp.full(1, 2.0),
        jnp.zeros(2003),
        method=METHODS[name],
        keep=keep,
    )
    assert int(sol.status) == elk.Status.nonfinite
    assert int(sol.failed_step) == 3
    assert np.all(np.isfinite(sol.states))


@pytest.mark.parametrize("length", [2400, 2403])
@pytest.mark.parametrize("keep", ["all", "boundaries", "last"])
@pytest.mark.parametrize("name", ["default", "newton", "blocks"])
def test_the_step_at_which_a_late_growth_overflows(name, keep, length, reference):
    gain = np.full(length, 0.5)
    gain[2000:] = 2.0
    inputs = jnp.asarray(gain, jnp.float32)[:, None]

    def f(x, u):
        return u * x + 1.0

    sol = elk.evaluate(f, jnp.ones(1), inputs, method=METHODS[name], keep=keep)
    expected = np.asarray(reference(f, jnp.ones(1), inputs))[:, 0]
    first = int(np.argmin(np.isfinite(expected)))
    assert int(sol.status) == elk.Status.nonfinite
    assert int(sol.failed_step) == first
    assert np.all(np.isfinite(sol.states))
    if keep == "all":
        np.testing.assert_allclose(sol.states[:first, 0], expected[:first], rtol=1e-5)


def test_a_tail_behind_the_last_block_that_breaks():
    def f(x, u):
        return jnp.sqrt(x + u)

    inputs = jnp.ones((35, 1)).at[33].set(-9.0)
    for keep in ("all", "last"):
        sol = elk.evaluate(f, jnp.ones(1), inputs, method=METHODS["blocks"], keep=keep)
        assert int(sol.status) == elk.Status.nonfinite
        assert int(sol.failed_step) == 33
        assert np.all(np.isfinite(sol.states))


@pytest.mark.parametrize("broken", [0, 1, 187, 188, 400, 511, 512, 699])
def test_what_lies_before_a_break_is_right_wherever_it_is(broken, reference):
    # The last of the chunks that are followed overlaps with the one before.
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(700, 1)), jnp.float32)
    inputs = inputs.at[broken].set(jnp.nan)
    sol = _solve_broken(jnp.ones(1), inputs)
    expected = reference(lambda x, u: 0.9 * x + u, jnp.ones(1), inputs)
    assert sol.status == elk.Status.nonfinite
    assert sol.failed_step == broken
    np.testing.assert_allclose(sol.states[:broken], expected[:broken], rtol=1e-4)
    last = expected[broken - 1] if broken else jnp.ones(1)
    np.testing.assert_allclose(
        sol.states[broken:], jnp.broadcast_to(last, (700 - broken, 1)), rtol=1e-4
    )


@jax.jit
def _solve_broken(initial, inputs):
    return elk.evaluate(
        lambda x, u: 0.9 * x + u, initial, inputs, method=elk.quasi_deer()
    )
