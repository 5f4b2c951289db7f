"""The default method: right on everything, bounded, and honest about what it did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.solve.leaky import drive as leaky_drive
from tests.solve.leaky import leaky

import elk_ssm as elk
from benchmarks import problems

LENGTH = 1200
FORGETFUL = elk.auto(strategy="forgetful", block_size=16, max_passes=4)
NEWTON = elk.auto(strategy="newton", block_size=16)
SHORT = elk.auto(strategy="short_blocks", block_size=16)


def drive(rate, length=LENGTH, seed=0):
    return leaky_drive(rate, length, seed)


def solve(inputs, method=FORGETFUL, start=None):
    start = jnp.ones(2) if start is None else start
    return elk.evaluate(leaky, start, inputs, method=method)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 0.999, 1.0, 1.005])
def test_right_at_every_rate_of_forgetting(rate, reference):
    inputs = drive(rate)
    sol = solve(inputs)
    expected = reference(leaky, jnp.ones(2), inputs)
    assert int(sol.status) == elk.Status.converged
    np.testing.assert_allclose(
        sol.states, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max())
    )


def test_blocks_where_the_state_is_forgotten_and_steps_where_not():
    fast, slow = solve(drive(0.5)), solve(drive(1.0))
    assert int(fast.plan.kind) == elk.PlanKind.forgetful_blocks
    assert 0 < int(fast.plan.forgetting_length) < 32
    assert int(fast.plan.sequential_steps) < LENGTH // 4
    assert int(slow.plan.kind) == elk.PlanKind.sequential
    assert int(slow.plan.forgetting_length) == -1
    assert int(slow.plan.sequential_steps) == LENGTH
    assert "forgotten" in fast.plan.describe()
    assert "sequential" in slow.plan.describe()


def test_a_stretch_that_stops_forgetting_is_evaluated_step_by_step(reference):
    # The probe sees forgetting; later on 320 steps remember everything.
    rate = np.full(LENGTH, 0.5)
    rate[600:920] = 1.0
    inputs = drive(rate)
    sol = solve(inputs)
    expected = reference(leaky, jnp.ones(2), inputs)
    assert int(sol.plan.kind) == elk.PlanKind.forgetful_blocks
    assert 320 - 32 <= int(sol.plan.sequential_steps) <= 320 + 64
    np.testing.assert_allclose(sol.states, expected, rtol=0, atol=1e-4)


def test_two_basins_are_told_apart(reference):
    # Every block forgets within its basin, so blocks agree on the wrong one.
    def bistable(x, u):
        return jnp.tanh(3 * x + u)

    inputs = np.zeros((LENGTH, 1), np.float32)
    inputs[700:705] = -6.0
    inputs = jnp.asarray(inputs)
    start = jnp.array([0.5])
    sol = elk.evaluate(bistable, start, inputs, method=FORGETFUL)
    np.testing.assert_allclose(
        sol.states, reference(bistable, start, inputs), rtol=0, atol=1e-5
    )


def test_passes_never_exceed_the_stated_bound():
    for rate in (0.3, 0.8, 0.95, 0.999):
        sol = solve(drive(rate))
        assert int(sol.num_iters) <= FORGETFUL.max_passes
        newton = solve(drive(rate), NEWTON)
        assert int(newton.num_iters) <= LENGTH // 16


@pytest.mark.parametrize("length", [1, 2, 15, 64, 191, 192, 1000])
def test_any_length(length, reference):
    inputs = drive(0.5, length)
    for method in (FORGETFUL, SHORT, NEWTON):
        np.testing.assert_allclose(
            solve(inputs, method).states,
            reference(leaky, jnp.ones(2), inputs),
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("method", [FORGETFUL, SHORT, NEWTON])
def test_nan_on_the_true_trajectory_is_reported_with_its_step(method):
    inputs = drive(0.5).at[777, 1].set(jnp.nan)
    sol = solve(inputs, method)
    assert int(sol.status) == elk.Status.nonfinite
    assert int(sol.failed_step) == 777
    assert bool(jnp.all(jnp.isfinite(sol.states)))


def test_a_linear_unstable_recurrence_takes_two_newton_passes(x64):
    # The gate must not hold back states that are far out and right.
    sol = solve(drive(1.02), NEWTON)
    assert int(sol.num_iters) == 2


@pytest.mark.parametrize("bad", [jnp.nan, 1e30])
def test_a_bad_guess_does_no_harm(bad, reference):
    inputs = drive(0.5, 100)
    guess = jnp.full((100, 2), bad)
    for method in (FORGETFUL, NEWTON, elk.deer(), elk.quasi_deer(block_size=8)):
        sol = elk.evaluate(leaky, jnp.ones(2), inputs, method=method, guess=guess)
        assert int(sol.status) == elk.Status.converged
        np.testing.assert_allclose(
            sol.states, reference(leaky, jnp.ones(2), inputs), rtol=0, atol=1e-4
        )


def test_choices_fixed_by_hand_are_checked():
    with pytest.raises(ValueError, match="strategy"):
        elk.auto(strategy="fast")
    with pytest.raises(ValueError, match="block_size"):
        elk.auto(block_size=0)
    with pytest.raises(ValueError, match="max_passes"):
        elk.auto(max_passes=1)


def test_works_under_vmap_and_in_scan(reference):
    inputs = jnp.stack([drive(0.5), drive(1.0)])
    mapped = jax.vmap(solve)(inputs)
    for i in range(2):
        expected = reference(leaky, jnp.ones(2), inputs[i])
        np.testing.assert_allclose(mapped.states[i], expected, rtol=0, atol=1e-3)
    assert mapped.plan.kind.tolist() == [1, 0]


def test_a_batch_is_stepped_through_as_it_is(reference):
    inputs = jnp.stack([drive(0.5, seed=i) for i in range(9)])
    mapped = jax.jit(jax.vmap(solve))(inputs)
    assert mapped.plan.kind.tolist() == [elk.PlanKind.sequential] * 9
    assert "batch" in jax.tree.map(lambda x: x[0], mapped.plan).describe()
    expected = jax.vmap(lambda u: reference(leaky, jnp.ones(2), u))(inputs)
    np.testing.assert_allclose(mapped.states, expected, rtol=0, atol=1e-5)


def test_batches_over_anything_and_of_batches():
    inputs, starts = drive(0.5), jnp.ones((3, 2, 2)) * jnp.arange(1.0, 4)[:, None, None]
    nested = jax.vmap(jax.vmap(lambda x: solve(inputs, start=x).states))(starts)
    for i in range(3):
        one = solve(inputs, start=starts[i, 0]).states
        np.testing.assert_allclose(nested[i, 1], one, rtol=0, atol=1e-4)


def test_a_failure_in_a_batch_names_its_step():
    inputs = jnp.stack([drive(0.5, seed=i) for i in range(9)])
    sol = jax.vmap(solve)(inputs.at[4, 777, 1].set(jnp.nan))
    assert sol.failed_step.tolist() == [-1] * 4 + [777] + [-1] * 4
    assert bool(jnp.all(jnp.isfinite(sol.states)))


# The suite: the same defaults on every problem, errors against float64 `lax.scan`.
HARD = ("argru_seed0", "lorenz63", "cubic", "bistable_rnn", "linear_unstable")


@pytest.mark.parametrize("name", HARD)
def test_newton_blocks_converge_on_the_suite(name, x64):
    problem = problems.make(name, length=160, seed=0, dtype="float64")
    sol = elk.evaluate(
        problem.f, problem.initial_state, problem.inputs, length=160, method=NEWTON
    )
    assert int(sol.status) == elk.Status.converged
    assert int(sol.num_iters) <= 10
    found = jax.tree.leaves(sol.states)
    for a, b in zip(found, jax.tree.leaves(problem.reference())):
        # Ten times the tolerance, and what these flows amplify within 160 steps.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * np.abs(b).max())


def test_second_derivatives_inside_a_scan_of_the_users_own(x64, reference):
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 2)))

    def loss(weights, evaluate):
        def body(x, u):
            states = evaluate(lambda x, v: jnp.tanh(weights * x + v), x, u)
            return states[-1], jnp.sum(states**2)

        return jnp.sum(jax.lax.scan(body, jnp.zeros(2), inputs)[1])

    def ours(f, x, u):
        return elk.evaluate(f, x, u).states

    weights = jnp.asarray([0.5, 0.3])
    found, expected = (
        jax.hessian(lambda w, evaluate=evaluate: loss(w, evaluate))(weights)
        for evaluate in (ours, reference)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
