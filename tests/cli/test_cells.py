"""The cells are flax's cells, weights and equations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.cli.cells import CELL_NAMES, hidden_states, make_cell

D, C = 5, 3
GATES = {
    "rnn": (nn.SimpleCell, [("i", "h")]),
    "gru": (nn.GRUCell, [("ir", "hr"), ("iz", "hz"), ("in", "hn")]),
    "lstm": (nn.LSTMCell, [("ii", "hi"), ("if", "hf"), ("ig", "hg"), ("io", "ho")]),
}


def flax_step(name, params, state, value):
    cell = GATES[name][0](features=D)
    zeros = cell.init(jax.random.key(0), state, value)["params"]
    params = {key: {**zeros[key], "kernel": kernel} for key, kernel in params.items()}
    return cell.apply({"params": params}, state, value)[0]


def gates_of(step):
    """The gates a cell's step closes over, in the order they were drawn."""
    free = dict(zip(step.__code__.co_freevars, step.__closure__))
    return {name: cell.cell_contents for name, cell in free.items()}


ROLES = {
    "rnn": ["gate"],
    "gru": ["reset_gate", "update_gate", "candidate"],
    "lstm": ["input_gate", "forget_gate", "candidate", "output_gate"],
}


@pytest.mark.parametrize("name", CELL_NAMES)
def test_step_equals_flax(name):
    cell = make_cell(name, D, C, seed=3)
    gates = gates_of(cell.step)
    params = {}
    for role, (from_input, from_state) in zip(ROLES[name], GATES[name][1]):
        params[from_input] = gates[role].from_input
        params[from_state] = gates[role].from_state
    state = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(1), x.shape), cell.initial_state
    )
    value = jnp.linspace(-2.0, 1.0, C)
    ours, theirs = cell.step(state, value), flax_step(name, params, state, value)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("name", CELL_NAMES)
def test_weights_are_drawn_as_flax_draws_them(name):
    gates = gates_of(make_cell(name, 64, 256, seed=0).step)
    for gate in gates.values():
        product = gate.from_state @ gate.from_state.T
        np.testing.assert_allclose(product, np.eye(64), atol=1e-5)
        assert np.std(gate.from_input) == pytest.approx(256**-0.5, rel=0.05)


def test_the_seed_and_the_gate_decide_the_weights():
    gates = gates_of(make_cell("gru", D, C, seed=0).step)
    assert not np.allclose(*(gates[r].from_input for r in ("reset_gate", "candidate")))
    other = gates_of(make_cell("gru", D, C, seed=1).step)
    assert not np.allclose(gates["candidate"].from_input, other["candidate"].from_input)


def test_hidden_states_leave_the_memory_out():
    assert hidden_states(("memory", "hidden")) == "hidden"
    assert hidden_states("hidden") == "hidden"


def test_an_unknown_cell_is_refused():
    with pytest.raises(ValueError, match="gru, lstm, rnn"):
        make_cell("GRU", D, C, seed=0)
