"""A failed solve never silently trains: the pattern of the README."""

import jax
import jax.numpy as jnp
import optax
import pytest

import elk_ssm as elk

OPTIMIZER = optax.adam(1e-1)
START = jnp.zeros(2)


@jax.jit
def step(weight, opt_state, inputs):
    def loss(weight):
        sol = elk.evaluate(lambda h, u: jnp.tanh(weight * h + u), START, inputs)
        return (sol.states**2).mean(), sol.status

    (value, status), grads = jax.value_and_grad(loss, has_aux=True)(weight)
    updates, next_state = OPTIMIZER.update(grads, opt_state, weight)
    stepped = (optax.apply_updates(weight, updates), next_state)
    good = status == elk.Status.converged
    weight, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), stepped, (weight, opt_state)
    )
    return weight, opt_state, value, status


@pytest.mark.parametrize("poison", [False, True])
def test_only_converged_solves_move_the_parameters(poison):
    weight = jnp.array([0.5, -0.3])
    inputs = jnp.ones((30, 2))
    inputs = inputs.at[17].set(jnp.nan) if poison else inputs
    before = OPTIMIZER.init(weight)
    after, state, _, status = step(weight, before, inputs)
    assert bool(jnp.array_equal(after, weight)) == poison
    moved = [
        not bool(jnp.array_equal(a, b))
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state))
    ]
    assert any(moved) != poison
    expected = elk.Status.nonfinite if poison else elk.Status.converged
    assert int(status) == expected


def test_raising_names_the_failing_element():
    inputs = jnp.ones((3, 20, 2)).at[1, 5].set(jnp.nan)
    sol = jax.vmap(
        lambda u: elk.evaluate(lambda h, u: jnp.tanh(0.5 * h + u), START, u)
    )(inputs)
    with pytest.raises(RuntimeError, match="nonfinite in batch elements 1"):
        elk.raise_if_failed(sol)
