"""`layers.equinox.RNN` is a scan of an equinox cell with the call of flax's RNN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.interop.cell_zoo import C, D

import elk_ssm as elk

eqx = pytest.importorskip("equinox")
layers = pytest.importorskip("elk_ssm.interop.cells.layers.equinox")

B, T = 3, 12
LENGTHS = np.array([12, 5, 9])


def make(name, seed=0):
    return getattr(eqx.nn, name)(C, D, key=jax.random.key(seed))


def sequences(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def by_hand(cell, x, length):
    """Run one sequence step by step; return the last state and the outputs."""
    pair = isinstance(cell, eqx.nn.LSTMCell)
    state = (jnp.zeros(D), jnp.zeros(D)) if pair else jnp.zeros(D)
    outputs, step = [], jax.jit(cell.__call__)
    for value in x[:length]:
        state = step(value, state)
        outputs.append(state[0] if pair else state)
    return state, jnp.stack(outputs)


@pytest.mark.parametrize(("name", "reverse"), [("GRUCell", False), ("LSTMCell", True)])
def test_sequences_of_different_lengths(name, reverse, close, x64):
    cell, x = make(name), sequences(B, T, C)
    layer = layers.RNN(cell, return_carry=True, reverse=reverse, keep_order=True)
    carry, outputs = layer(x, seq_lengths=jnp.asarray(LENGTHS))
    for b, length in enumerate(LENGTHS):
        valid = x[b, :length][::-1] if reverse else x[b]
        state, expected = by_hand(cell, valid, length)
        expected = expected[::-1] if reverse else expected
        np.testing.assert_allclose(outputs[b, :length], expected, atol=1e-10)
        close(jax.tree.map(lambda leaf, b=b: leaf[b], carry), state, atol=1e-10)


def test_single_sequences_vmap_and_time_major(close, x64):
    cell, x = make("GRUCell"), sequences(B, T, C)
    layer = layers.RNN(cell, method=elk.quasi_deer())
    outputs = layer(x)
    np.testing.assert_allclose(outputs[0], by_hand(cell, x[0], T)[1], atol=1e-10)
    close(jax.vmap(layer)(x), outputs, atol=1e-10)
    swapped = layer(jnp.swapaxes(x, 0, 1), time_major=True)
    close(jnp.swapaxes(swapped, 0, 1), outputs, atol=1e-10)


def test_bidirectional(close, x64):
    x, lengths = sequences(B, T, C), jnp.asarray(LENGTHS)
    forward, backward = layers.RNN(make("GRUCell")), layers.RNN(make("GRUCell", 1))
    pair = layers.Bidirectional(forward, backward, return_carry=True)
    carry, outputs = pair(x, seq_lengths=lengths)
    call = {"seq_lengths": lengths, "return_carry": True}
    ahead = forward(x, **call)
    back = backward(x, reverse=True, keep_order=True, **call)
    close(outputs, jnp.concatenate([ahead[1], back[1]], -1), atol=0)
    close(carry, (ahead[0], back[0]), atol=0)
    summed = layers.Bidirectional(forward, backward, merge_fn=jnp.add)(x)
    assert summed.shape == (B, T, D)


def test_filter_grad_and_filter_jit(x64):
    x = sequences(B, T, C)

    @eqx.filter_jit
    def gradient(layer):
        return eqx.filter_grad(lambda layer: (layer(x) ** 2).mean())(layer)

    def loss_by_hand(cell):
        def body(state, value):
            state = jax.vmap(cell)(value, state)
            return state, state

        by_time = jax.lax.scan(body, jnp.zeros((B, D)), jnp.swapaxes(x, 0, 1))[1]
        return (by_time**2).mean()

    cell = make("GRUCell")
    ours = gradient(layers.RNN(cell)).cell
    theirs = eqx.filter_jit(eqx.filter_grad(loss_by_hand))(cell)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_a_module_of_your_own(close, x64):
    class Leaky(eqx.Module):
        mix: eqx.nn.Linear

        def __call__(self, x, state):
            return {"h": 0.9 * state["h"] + jnp.tanh(self.mix(x))}

    cell = Leaky(eqx.nn.Linear(C, D, key=jax.random.key(0)))
    x = sequences(B, T, C)
    layer = layers.RNN(cell, output=lambda state: state["h"][..., :1])
    outputs = layer(x, initial_carry={"h": jnp.ones((B, D))})
    assert outputs.shape == (B, T, 1)
    with pytest.raises(ValueError, match="pass it"):
        layer(x)
