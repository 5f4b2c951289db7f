"""An adapted cell takes the steps that its framework takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.interop.cell_zoo import ALL, IDS, C, D, make, rounding, states_and_inputs

import elk_ssm as elk
from elk_ssm.interop import cells


@pytest.mark.parametrize(("framework", "name"), ALL, ids=IDS)
def test_steps_are_the_frameworks_own(framework, name, close, x64):
    case = make(framework, name)
    again, initial = case.adapt_again()
    close(initial, case.initial, atol=0)
    leaves = jax.tree.leaves(initial)
    assert {leaf.shape for leaf in leaves} == {(D,)}  # no batch axis
    assert len(leaves) == (2 if "LSTM" in name else 1)
    states, inputs = states_and_inputs(case.initial, 2)
    state = jax.tree.map(lambda x: x[1], states)
    expected = case.own_step(state, inputs[1])
    close(case.f(state, inputs[1]), expected, atol=rounding(state))
    close(again(state, inputs[1]), expected, atol=rounding(state))


ONE_EACH = [
    ("linen", "OptimizedLSTMCell"),
    ("nnx", "GRUCell"),
    ("equinox", "LSTMCell"),
    ("haiku", "LSTM"),
    ("keras", "LSTMCell"),
]


@pytest.mark.parametrize(("framework", "name"), ONE_EACH)
def test_trajectory_is_that_of_lax_scan(framework, name, close, reference, x64):
    case = make(framework, name)
    _, inputs = states_and_inputs(case.initial, 40)
    expected = reference(case.own_step, case.initial, inputs)
    sol = elk.evaluate(case.f, case.initial, inputs, method=elk.deer())
    assert int(sol.status) == elk.Status.converged
    # Keras takes tanh in float32 whatever the dtype of its cell.
    close(sol.states, expected, atol=1e-6 if framework == "keras" else 1e-10)


def test_gradients_reach_linen_variables(x64):
    nn = pytest.importorskip("flax.linen")
    cell = nn.GRUCell(D, param_dtype=jnp.float64)
    variables = cell.init(jax.random.key(0), jnp.zeros(D), jnp.zeros(C))
    inputs = jax.random.normal(jax.random.key(1), (30, C))

    def loss(variables, evaluator):
        f, h0 = cells.from_linen(cell, variables)
        return (evaluator(f, h0).states ** 2).mean()

    def parallel(f, h0):
        method = elk.quasi_deer(linearization=cells.diagonal(f))
        return elk.evaluate(f, h0, inputs, method=method)

    ours = jax.grad(loss)(variables, parallel)
    theirs = jax.grad(loss)(variables, lambda f, h0: elk.sequential(f, h0, inputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), ours, theirs)


def test_gradients_reach_keras_variables(x64):
    keras = pytest.importorskip("keras")
    cell = keras.layers.GRUCell(D, dtype="float64")
    cell.build((None, C))
    values = [v.value for v in cell.trainable_variables]
    inputs = jax.random.normal(jax.random.key(1), (20, C))

    def loss(values, evaluator):
        f, h0 = cells.from_keras(cell, variables=values)
        return (evaluator(f, h0, inputs).states[0] ** 2).mean()

    ours = jax.grad(loss)(values, elk.evaluate)
    theirs = jax.grad(loss)(values, elk.sequential)
    assert float(jnp.abs(theirs[0]).max()) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), ours, theirs)


def test_given_states_are_kept():
    eqx = pytest.importorskip("equinox")
    cell = eqx.nn.GRUCell(C, D, key=jax.random.key(0))
    assert (cells.from_equinox(cell, jnp.ones(D))[1] == 1).all()
    nnx = pytest.importorskip("flax.nnx")
    cell = nnx.GRUCell(C, D, rngs=nnx.Rngs(0))
    assert (cells.from_nnx(cell, jnp.ones(D))[1] == 1).all()


def test_users_own_subclass_of_a_frameworks_cell(reference, close):
    nn = pytest.importorskip("flax.linen")

    class Leaky(nn.RNNCellBase):
        @nn.compact
        def __call__(self, carry, x):
            carry = 0.9 * carry + 0.1 * jnp.tanh(nn.Dense(D)(x))
            return carry, carry

    cell = Leaky()
    variables = cell.init(jax.random.key(0), jnp.zeros(D), jnp.zeros(C))
    f, h0 = cells.from_cell(cell, variables, jnp.zeros(D))
    inputs = jax.random.normal(jax.random.key(1), (30, C))
    sol = elk.evaluate(f, h0, inputs, method=elk.deer())
    close(sol.states, reference(f, h0, inputs), atol=1e-5)
    assert isinstance(cells.diagonal(f), elk.DiagonalJacobian)
