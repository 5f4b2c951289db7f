"""`layers.linen.RNN` does what `flax.linen.RNN` does, evaluated in parallel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.interop.cell_zoo import C, D, jitter

import elk_ssm as elk

nn = pytest.importorskip("flax.linen")
linen = pytest.importorskip("elk_ssm.interop.cells.layers.linen")

B, T = 3, 12
LENGTHS = jnp.array([12, 5, 9])


def both(cell, x, method=None, call=None, **options):
    """Apply flax's layer and ours with the same variables."""
    theirs = nn.RNN(cell, **options)
    ours = linen.RNN(cell, method=method or elk.quasi_deer(), **options)
    variables = jitter(start(theirs, x))
    call = call or {}

    @jax.jit
    def run(variables, x):
        results = [layer.apply(variables, x, **call) for layer in (ours, theirs)]
        return tuple(results)

    return run(variables, x)


def start(layer, x):
    return jax.jit(layer.init)(jax.random.key(0), x)


def sequences(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


CASES = {
    "carry": ({"return_carry": True}, {}),
    "reverse": ({"reverse": True, "unroll": 4}, {}),
    "reverse, lengths": (
        {"reverse": True, "return_carry": True},
        {"seq_lengths": LENGTHS},
    ),
    "all of it": (
        {"reverse": True, "keep_order": True, "return_carry": True},
        {"seq_lengths": LENGTHS},
    ),
    "overridden": (
        {"reverse": True},
        {"reverse": False, "return_carry": True, "keep_order": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_options_mean_what_they_mean_in_flax(case, close, x64):
    options, call = CASES[case]
    cell = nn.LSTMCell(D, param_dtype=jnp.float64)
    close(*both(cell, sequences(B, T, C), call=call, **options), atol=1e-10)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_time_major(lengths, close, x64):
    cell = nn.GRUCell(D, param_dtype=jnp.float64)
    call = {"seq_lengths": lengths, "reverse": True, "keep_order": True}
    options = {"time_major": True, "return_carry": True}
    close(*both(cell, sequences(T, B, C), call=call, **options), atol=1e-10)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch, close, x64):
    cell = nn.GRUCell(D, param_dtype=jnp.float64)
    close(*both(cell, sequences(*batch, T, C), return_carry=True), atol=1e-10)


def test_initial_carry_is_used(close, x64):
    cell = nn.GRUCell(D, param_dtype=jnp.float64)
    call = {"initial_carry": sequences(B, D, seed=4)}
    close(*both(cell, sequences(B, T, C), call=call), atol=1e-10)


def test_a_carry_drawn_at_random_is_the_same(close, x64):
    normal = nn.initializers.normal(1.0)
    cell = nn.GRUCell(D, param_dtype=jnp.float64, carry_init=normal)
    call = {"init_key": jax.random.key(9)}
    close(*both(cell, sequences(B, T, C), call=call), atol=1e-10)


def test_a_cell_with_spatial_axes(close):
    cell = nn.ConvLSTMCell(2, kernel_size=(3,))
    x = sequences(2, 3, 4, 3)
    close(*both(cell, x, method=elk.auto()), atol=1e-5)


def test_bidirectional_stacks(close, x64):
    x = sequences(B, T, C)

    def stack(layer):
        class Stack(nn.Module):
            @nn.compact
            def __call__(self, x):
                for size in (D, 2):
                    pair = [
                        layer(nn.GRUCell(size, param_dtype=jnp.float64))
                        for _ in range(2)
                    ]
                    x = nn.Bidirectional(*pair)(x, seq_lengths=LENGTHS)
                return x

        return Stack()

    theirs, ours = stack(nn.RNN), stack(linen.RNN)
    variables = start(theirs, x)
    found = [jax.jit(layer.apply)(variables, x) for layer in (ours, theirs)]
    close(*found, atol=1e-10)
    close(start(ours, x), variables, atol=0)


def test_a_cell_shared_by_both_directions(close, x64):
    cell = nn.GRUCell(D, param_dtype=jnp.float64)
    x = sequences(B, T, C)
    ours = nn.Bidirectional(linen.RNN(cell), linen.RNN(cell))
    theirs = nn.Bidirectional(nn.RNN(cell), nn.RNN(cell), return_carry=False)
    variables = start(theirs, x)
    found = [jax.jit(layer.apply)(variables, x) for layer in (ours, theirs)]
    close(*found, atol=1e-10)


def test_init_draws_the_same_parameters(close):
    x = sequences(B, T, C)
    ours = linen.RNN(nn.GRUCell(D)).init(jax.random.key(0), x)
    close(ours, nn.RNN(nn.GRUCell(D)).init(jax.random.key(0), x), atol=0)


def test_gradients_are_those_of_flax(x64):
    cell = nn.GRUCell(D, param_dtype=jnp.float64)
    x = sequences(B, T, C)
    theirs, ours = nn.RNN(cell), linen.RNN(cell, method=elk.quasi_deer())
    variables = jitter(start(theirs, x))

    def gradient(layer):
        loss = jax.jit(lambda v: (layer.apply(v, x) ** 2).mean())
        return jax.grad(loss)(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10),
        gradient(ours),
        gradient(theirs),
    )


def test_padding_changes_nothing(x64):
    """Outputs at valid steps and carries do not see what stands in the padding."""
    cell = nn.GRUCell(D, param_dtype=jnp.float64)
    layer = linen.RNN(cell, return_carry=True, reverse=True, keep_order=True)
    x = sequences(B, T, C)
    variables = start(layer, x)
    valid = (jnp.arange(T) < LENGTHS[:, None])[..., None]
    runs = [
        jax.jit(layer.apply)(variables, jnp.where(valid, x, pad), seq_lengths=LENGTHS)
        for pad in (0.0, 1e3)
    ]
    np.testing.assert_allclose(runs[0][0], runs[1][0], atol=1e-11)
    kept = [jnp.where(valid, outputs, 0) for _, outputs in runs]
    np.testing.assert_allclose(*kept, atol=1e-11)


def test_a_cell_with_dropout_is_left_to_flax(close):
    class Dropping(nn.RNNCellBase):
        @nn.compact
        def __call__(self, carry, x):
            x = nn.Dropout(0.5, deterministic=False)(x)
            carry, y = nn.GRUCell(D)(carry, x)
            return carry, y

        def initialize_carry(self, key, shape):
            return jnp.zeros((*shape[:-1], D))

        @property
        def num_feature_axes(self):
            return 1

    x = sequences(B, T, C)
    options = {"split_rngs": {"params": False, "dropout": True}}
    layers = [kind(Dropping(), **options) for kind in (linen.RNN, nn.RNN)]
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = layers[1].init(keys, x)
    runs = [
        layer.apply(variables, x, rngs={"dropout": jax.random.key(2)})
        for layer in layers
    ]
    close(*runs, atol=0)


def test_shapes_that_do_not_fit_are_refused():
    layer = linen.RNN(nn.GRUCell(D))
    variables = layer.init(jax.random.key(0), sequences(B, T, C))
    with pytest.raises(ValueError, match="seq_lengths must have the shape"):
        layer.apply(variables, sequences(B, T, C), seq_lengths=jnp.array([1, 2]))
    with pytest.raises(ValueError, match="need a time axis"):
        layer.apply(variables, jnp.ones(C), initial_carry=jnp.zeros(D))
