"""Closed-form diagonals are those of the Jacobian, and the methods use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tests.interop.cell_zoo import WITH_CLOSED_FORM, C, D, make, states_and_inputs

import elk_ssm as elk
from elk_ssm.interop import cells

NAMES = ["-".join(pair) for pair in WITH_CLOSED_FORM]


def check_diagonal(f, initial):
    """Compare a closed form with the diagonal that autodiff finds."""
    states, inputs = states_and_inputs(initial)
    for k in range(len(inputs)):
        state = jax.tree.map(lambda x, k=k: x[k], states)
        flat, unravel = ravel_pytree(state)
        jacobian = jax.jacfwd(
            lambda x, u=inputs[k], back=unravel: ravel_pytree(f(back(x), u))[0]
        )(flat)
        found = f.jacobian_diagonal(state, inputs[k])
        assert jax.tree.structure(found) == jax.tree.structure(state)
        np.testing.assert_allclose(
            ravel_pytree(found)[0], jnp.diagonal(jacobian), atol=1e-12
        )


@pytest.mark.parametrize(("framework", "name"), WITH_CLOSED_FORM, ids=NAMES)
def test_closed_form_is_the_diagonal(framework, name, x64):
    case = make(framework, name)
    check_diagonal(case.f, case.initial)


VARIANTS = [
    ("linen", "SimpleCell", {"residual": True}),
    ("linen", "GRUCell", {"gate_fn": jax.nn.hard_tanh, "activation_fn": jnp.sin}),
    ("linen", "LSTMCell", {"gate_fn": jax.nn.softplus, "activation_fn": jnp.sin}),
    ("nnx", "SimpleCell", {"residual": True}),
    ("nnx", "GRUCell", {"activation_fn": jnp.sin}),
    ("equinox", "GRUCell", {"use_bias": False}),
    ("equinox", "LSTMCell", {"use_bias": False}),
]


@pytest.mark.parametrize(("framework", "name", "options"), VARIANTS)
def test_options_of_the_cells_are_respected(framework, name, options, x64):
    case = make(framework, name, **options)
    check_diagonal(case.f, case.initial)


ONE_EACH = [("linen", "GRUCell"), ("nnx", "OptimizedLSTMCell"), ("equinox", "LSTMCell")]


@pytest.mark.parametrize(("framework", "name"), ONE_EACH)
def test_quasi_methods_iterate_as_with_autodiff(framework, name, x64):
    case = make(framework, name)
    _, inputs = states_and_inputs(case.initial, 30)
    closed = cells.diagonal(case.f)
    assert isinstance(closed, elk.UserJacobian)

    def third_iterate(linearization):
        method = elk.quasi_elk(1e2, linearization=linearization)
        sol = elk.evaluate(case.f, case.initial, inputs, method=method, max_iters=3)
        return ravel_pytree(sol.states)[0]

    np.testing.assert_allclose(
        third_iterate(closed), third_iterate(elk.DiagonalJacobian()), atol=1e-11
    )


@pytest.mark.parametrize(
    "method", [elk.quasi_deer, lambda **p: elk.quasi_elk(1e4, **p)]
)
def test_closed_form_converges_to_the_trajectory(method, reference, close, x64):
    case = make("linen", "LSTMCell")
    _, inputs = states_and_inputs(case.initial, 60)
    chosen = method(linearization=cells.diagonal(case.f))
    sol = elk.raise_if_failed(elk.evaluate(case.f, case.initial, inputs, method=chosen))
    close(sol.states, reference(case.own_step, case.initial, inputs), atol=1e-10)


def test_closed_form_needs_no_square_array(largest_array):
    """The autodiff diagonal passes through (chunk, D, D); the closed form does not."""
    nn = pytest.importorskip("flax.linen")
    size, length = 16, 64
    cell = nn.GRUCell(size)
    variables = cell.init(jax.random.key(0), jnp.zeros(size), jnp.zeros(C))
    f, h0 = cells.from_linen(cell, variables)

    def run(linearization):
        method = elk.quasi_deer(linearization=linearization)
        return largest_array(
            lambda u: elk.evaluate(f, h0, u, method=method).states,
            jnp.zeros((length, C)),
        )

    assert run(elk.DiagonalJacobian()) >= length * size * size
    assert run(cells.diagonal(f)) <= 4 * length * size


def test_cells_without_closed_form_fall_back_to_autodiff(x64):
    for framework, name in (("haiku", "GRU"), ("keras", "GRUCell")):
        f = make(framework, name).f
        assert isinstance(cells.diagonal(f), elk.DiagonalJacobian)
    f = make("linen", "MGUCell", reset_gate=False).f
    assert isinstance(cells.diagonal(f), elk.DiagonalJacobian)
    assert isinstance(cells.diagonal(lambda x, u: x), elk.DiagonalJacobian)


def test_diagonal_refuses_the_pair():
    eqx = pytest.importorskip("equinox")
    pair = cells.from_equinox(eqx.nn.GRUCell(C, D, key=jax.random.key(0)))
    with pytest.raises(TypeError, match="first of the pair"):
        cells.diagonal(pair)
