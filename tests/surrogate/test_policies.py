"""Noise policies that change from iteration to iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.surrogate.policy import Seen


def f(x, u):
    return jnp.tanh(1.2 * x + u)


INPUTS = jnp.sin(jnp.arange(40.0))[:, None] * jnp.ones(2)
START = jnp.zeros(2)


def run(policy, **options):
    return elk.evaluate(
        f, START, INPUTS, method=elk.quasi_elk(policy), history=40, **options
    )


def seen(merit, last, predicted, iteration=3, size=0.5):
    residual = jnp.full((4, 2), size)
    return Seen(
        residual,
        jnp.float32(merit),
        jnp.float32(last),
        jnp.float32(predicted),
        jnp.int32(iteration),
    )


@pytest.mark.parametrize(
    "policy",
    [
        elk.Annealed(0.1, 4.0),
        elk.Annealed(0.1, 10.0, 1e3),
        elk.PerStep(jnp.linspace(0.5, 50.0, 40)),
        elk.ResidualProportional(1.0),
        elk.GainRatio(1.0),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_every_policy_reaches_the_trajectory(policy, reference):
    sol = run(policy)
    assert int(sol.status) == elk.Status.converged
    np.testing.assert_allclose(
        sol.states, reference(f, START, INPUTS), rtol=0, atol=1e-4
    )


def test_annealed_multiplies_up_to_its_maximum():
    noise = run(elk.Annealed(0.5, 3.0, 10.0)).history.noise
    recorded = noise[~jnp.isnan(noise)]
    expected = np.minimum(0.5 * 3.0 ** np.arange(len(recorded)), 10.0)
    assert len(recorded) > 3
    np.testing.assert_allclose(recorded, expected, rtol=1e-5)


def test_residual_proportional_follows_the_residual():
    policy = elk.ResidualProportional(2.0)
    state, accept = policy.update(jnp.float32(1.0), seen(1.0, 2.0, 0.5, size=0.25))
    assert bool(accept)
    np.testing.assert_allclose(policy.noise(state), 1 / (2.0 * 0.25), rtol=1e-6)
    at_rest, _ = policy.update(state, seen(0.0, 1.0, 0.0, size=0.0))
    assert jnp.isinf(at_rest)
    broken, _ = policy.update(state, seen(jnp.inf, 1.0, 0.0, size=jnp.nan))
    assert 0 < float(broken) < 1e-10


def test_per_step_equals_constant_of_the_same_shape():
    values = jnp.linspace(0.5, 50.0, 40)
    one, other = run(elk.PerStep(values)), run(values[:, None])
    assert int(one.num_iters) == int(other.num_iters)
    np.testing.assert_array_equal(one.states, other.states)


def test_per_step_of_the_wrong_length_says_so():
    with pytest.raises(ValueError, match="40 unknowns"):
        run(elk.PerStep(jnp.ones(39)))


def test_gain_ratio_grows_keeps_shrinks_and_refuses():
    policy = elk.GainRatio(1.0)
    noise = jnp.float32(1.0)
    good, accepted = policy.update(noise, seen(1.0, 10.0, 1.0))
    assert (float(good), bool(accepted)) == (8.0, True)
    fair, accepted = policy.update(noise, seen(5.0, 10.0, 1.0))
    assert (float(fair), bool(accepted)) == (1.0, True)
    poor, accepted = policy.update(noise, seen(9.0, 10.0, 1.0))
    assert (float(poor), bool(accepted)) == (0.25, True)
    worse, accepted = policy.update(noise, seen(11.0, 10.0, 1.0))
    assert (float(worse), bool(accepted)) == (0.25, False)
    broken, accepted = policy.update(noise, seen(jnp.inf, 10.0, 1.0))
    assert (float(broken), bool(accepted)) == (0.25, False)


def test_a_refused_iterate_is_not_kept():
    # Refuses everything after the guess, so only the exact prefix moves.
    never = elk.GainRatio(1.0, good=jnp.inf, poor=jnp.inf, reject=jnp.inf, minimum=1e-9)
    sol = run(never, max_iters=9)
    assert int(sol.status) == elk.Status.max_iters_reached
    np.testing.assert_array_equal(sol.states[10:], 0.0)
    np.testing.assert_allclose(
        sol.history.noise[1:9], 0.25 ** np.arange(1, 9), rtol=1e-5
    )


def test_numbers_in_a_policy_are_data(compilations):
    run(elk.Annealed(0.1, 4.0))
    with compilations() as count:
        run(elk.Annealed(0.2, 5.0, 7.0))
    assert count == [0]
    rates = jnp.array([2.0, 4.0])
    mapped = jax.vmap(lambda g: run(elk.Annealed(0.1, g)).num_iters)(rates)
    single = [int(run(elk.Annealed(0.1, g)).num_iters) for g in rates]
    assert mapped.tolist() == single
