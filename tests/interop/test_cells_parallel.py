"""Cells with diagonal recurrent weights: their diagonal is their Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.interop import cells

D, C, T = 5, 3, 60
KINDS = {
    "gru": (cells.init_diagonal_gru, cells.diagonal_gru),
    "lstm": (cells.init_diagonal_lstm, cells.diagonal_lstm),
}


def build(kind, forget_length=10.0, input_size=C, state_size=D, scale=0.3):
    """Make a cell whose every weight is moved away from its start."""
    init, make = KINDS[kind]
    key = jax.random.key(0)
    params = init(key, input_size, state_size, forget_length=forget_length)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [
        x + scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)
    ]
    return jax.tree.unflatten(tree, moved), make


@pytest.fixture
def inputs():
    with jax.enable_x64(True):
        return jax.random.normal(jax.random.key(1), (T, C))


@pytest.mark.parametrize("kind", KINDS)
def test_the_jacobian_is_its_diagonal(kind, inputs, x64):
    params, make = build(kind)
    f, _ = make(params)
    state = jax.random.normal(jax.random.key(2), (D,))
    jacobian = jax.jacfwd(f)(state, inputs[0])
    np.testing.assert_allclose(
        jnp.diag(f.jacobian_diagonal(state, inputs[0])), jacobian, atol=1e-14
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_diagonal_method_is_newtons(kind, inputs, reference, close, x64):
    params, make = build(kind)
    f, h0 = make(params)
    quasi = elk.quasi_deer(linearization=cells.diagonal(f))
    third = [
        elk.evaluate(f, h0, inputs, method=method, max_iters=3).states
        for method in (quasi, elk.deer())
    ]
    np.testing.assert_allclose(*third, atol=1e-10)
    sol = elk.raise_if_failed(elk.evaluate(f, h0, inputs, method=quasi))
    assert int(sol.num_iters) <= 10
    close(sol.states, reference(f, h0, inputs), atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [5.0, 50.0])
def test_a_start_is_forgotten_at_the_chosen_length(kind, length, x64):
    """|dh_L / dh_0| is 1 / e, up to what the small recurrent weights add."""
    init, make = KINDS[kind]
    params = init(jax.random.key(0), C, 8, forget_length=length)
    f, h0 = make(params)
    inputs = jax.random.normal(jax.random.key(1), (int(length), C))

    def end(h0):
        return elk.sequential(f, h0, inputs).states[-1]

    _, influence = jax.jvp(end, (h0,), (jnp.ones_like(h0),))
    np.testing.assert_allclose(influence, np.exp(-1), rtol=0.4)
    assert abs(float(influence.mean()) / np.exp(-1) - 1) < 0.1


def test_units_may_forget_at_different_lengths():
    lengths = jnp.array([2.0, 20.0, 200.0])
    params = cells.init_diagonal_gru(jax.random.key(0), C, 3, forget_length=lengths)
    kept = jax.nn.sigmoid(params.bias[1])
    np.testing.assert_allclose(kept, np.exp(-1 / lengths), rtol=1e-5)


def test_the_output_of_the_lstm_is_that_of_its_definition(inputs, x64):
    params, make = build("lstm")
    f, c0 = make(params)
    memories = elk.sequential(f, c0, inputs).states
    found = cells.lstm_output(params, memories, inputs)
    drive = np.einsum("tc,cd->td", inputs, params.kernel[:, 3]) + params.bias[3]
    gate = 1 / (1 + np.exp(-(drive + params.recurrent[3] * memories)))
    np.testing.assert_allclose(found, gate * np.tanh(memories), atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_lax_scan(kind, inputs, x64):
    params, make = build(kind)

    def loss(params, parallel):
        f, h0 = make(params)
        method = elk.quasi_deer(linearization=cells.diagonal(f))
        run = elk.evaluate if parallel else elk.sequential
        options = {"method": method} if parallel else {}
        return (run(f, h0, inputs, **options).states ** 2).mean()

    ours, theirs = (jax.grad(loss)(params, choice) for choice in (True, False))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), ours, theirs
    )


@pytest.mark.parametrize(
    ("sizes", "length", "message"),
    [
        ((0, 3), 5.0, "Sizes must be positive"),
        ((2, 3), -1.0, "forget_length must be positive"),
        ((2, 3), np.ones(2), r"of shape \(3,\)"),
    ],
)
def test_impossible_sizes_and_lengths_are_refused(sizes, length, message):
    for init, _ in KINDS.values():
        with pytest.raises(ValueError, match=message):
            init(jax.random.key(0), *sizes, forget_length=length)


def test_an_lstm_of_pairs_is_solved_by_newtons_method_in_blocks(
    inputs, reference, close, x64
):
    params = cells.init_paired_lstm(jax.random.key(0), C, D, forget_length=10.0)
    leaves, tree = jax.tree.flatten(params)
    moved = [x + 0.3 * np.random.default_rng(1).normal(size=x.shape) for x in leaves]
    f, start = cells.paired_lstm(jax.tree.unflatten(tree, moved))
    state = (jnp.linspace(-1, 1, D), jnp.linspace(0.5, -0.5, D))
    jacobian = jax.jacfwd(f)(state, inputs[0])
    for of_output in jacobian:
        for block in of_output:
            np.testing.assert_array_equal(block, np.diag(np.diag(block)))
            assert np.all(np.diag(block) != 0)
    blocks = elk.quasi_deer(linearization=elk.BlockDiagonalJacobian())
    sols = [elk.evaluate(f, start, inputs, method=m) for m in (blocks, elk.deer())]
    assert int(sols[0].num_iters) == int(sols[1].num_iters)
    close(elk.raise_if_failed(sols[0]).states, reference(f, start, inputs), atol=1e-10)


def test_the_output_of_an_lstm_of_pairs_is_that_of_an_lstm(x64):
    """Without peepholes, against the equations of `flax` with diagonal kernels."""
    nn = pytest.importorskip("flax.linen")
    params = cells.init_paired_lstm(jax.random.key(0), C, D, forget_length=10.0)
    params = params._replace(peephole=jnp.zeros((4, D)))
    f, _ = cells.paired_lstm(params)
    cell, state = nn.LSTMCell(D), (jnp.linspace(-1, 1, D), jnp.linspace(0.5, -0.5, D))
    weights = {}
    for k, gate in enumerate("ifgo"):
        weights[f"i{gate}"] = {"kernel": params.kernel[:, k]}
        recurrent = {"kernel": jnp.diag(params.recurrent[k]), "bias": params.bias[k]}
        weights[f"h{gate}"] = recurrent
    expected, _ = cell.apply({"params": weights}, state, jnp.arange(3.0))
    for found, one in zip(f(state, jnp.arange(3.0)), expected):
        np.testing.assert_allclose(found, one, atol=1e-12)
