"""`layers.nnx.RNN` does what `flax.nnx.RNN` does, evaluated in parallel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.interop.cell_zoo import C, D

import elk_ssm as elk

nnx = pytest.importorskip("flax.nnx")
layers = pytest.importorskip("elk_ssm.interop.cells.layers.nnx")

B, T = 3, 12
LENGTHS = jnp.array([12, 5, 9])


def make(name, **options):
    kind = getattr(nnx, name)
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return kind(C, D, rngs=nnx.Rngs(0), **dtypes, **options)


def sequences(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


CASES = {
    "plain": {},
    "lengths": {"return_carry": True, "seq_lengths": LENGTHS},
    "reverse": {"reverse": True},
    "all of it": {
        "reverse": True,
        "keep_order": True,
        "return_carry": True,
        "seq_lengths": LENGTHS,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_options_mean_what_they_mean_in_flax(case, close, x64):
    cell, x = make("LSTMCell"), sequences(B, T, C)
    call = CASES[case]
    ours = layers.RNN(cell, method=elk.quasi_deer())(x, **call)
    close(ours, nnx.RNN(cell)(x, **call), atol=1e-10)


def test_constructor_options_and_time_major(close, x64):
    cell, x = make("GRUCell"), sequences(T, B, C)
    options = {"time_major": True, "return_carry": True, "reverse": True, "unroll": 2}
    ours, theirs = layers.RNN(cell, **options), nnx.RNN(cell, **options)
    close(ours(x), theirs(x), atol=1e-10)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch, close, x64):
    cell, x = make("SimpleCell"), sequences(*batch, T, C)
    carry = sequences(*batch, D, seed=4)
    ours = layers.RNN(cell)(x, initial_carry=carry, return_carry=True)
    theirs = nnx.RNN(cell)(x, initial_carry=carry, return_carry=True)
    close(ours, theirs, atol=1e-10)


def test_bidirectional(close, x64):
    pair = make("GRUCell"), make("GRUCell")
    x = sequences(B, T, C)
    ours = nnx.Bidirectional(*(layers.RNN(cell) for cell in pair))
    theirs = nnx.Bidirectional(*(nnx.RNN(cell) for cell in pair))
    expected = theirs(x, seq_lengths=LENGTHS, return_carry=True)
    close(ours(x, seq_lengths=LENGTHS, return_carry=True), expected, atol=1e-10)


def test_training_transforms_see_an_ordinary_module(x64):
    cell, x = make("GRUCell"), sequences(B, T, C)

    @nnx.jit
    def gradient(layer):
        return nnx.grad(lambda layer: (layer(x) ** 2).mean())(layer)

    ours = gradient(layers.RNN(cell, method=elk.quasi_elk(jnp.asarray(1e3))))
    theirs = gradient(nnx.RNN(cell))
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_a_cell_with_streams_of_its_own_is_left_to_flax(close):
    class Dropping(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.GRUCell(C, D, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, carry, x):
            return self.inner(carry, self.dropout(x))

        def initialize_carry(self, shape, rngs=None):
            return jnp.zeros((*shape[:-1], D))

        num_feature_axes = 1

    x = sequences(B, T, C)
    runs = [
        kind(Dropping(nnx.Rngs(params=0, dropout=1)))(x)
        for kind in (layers.RNN, nnx.RNN)
    ]
    close(*runs, atol=0)
    clean = layers.RNN(Dropping(nnx.Rngs(params=0, dropout=1)).inner)(x)
    assert not np.allclose(clean, runs[0])
