"""Blocks: layout, block maps and their Jacobians, rollouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.solve.nodes import cut, linearize_nodes, shift
from elk_ssm.solve.problem import Problem
from elk_ssm.solve.rollout import roll_out
from elk_ssm.surrogate.jacobians import (
    DenseJacobian,
    DiagonalJacobian,
    IdentityJacobian,
    ZeroJacobian,
)

T, D = 11, 2
X0 = jnp.asarray([0.5, -0.5])
INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(T, D)), jnp.float32)
MIX = jnp.asarray([[0.4, -0.9], [0.7, 0.2]])


def step(x, u):
    return jnp.tanh((MIX * x).sum(-1) + u)


def cut_into(inputs, size, **how):
    return cut(Problem(lambda _, x, u: step(x, u), [], X0, inputs, T), size, **how)


def block_map(x, inputs):
    for u in inputs:
        x = step(x, u)
    return x


def trajectory():
    states, x = [], X0
    for u in INPUTS:
        x = step(x, u)
        states.append(x)
    return jnp.stack(states)


@pytest.mark.parametrize("size", [1, 3, 8, 11])
def test_cut_keeps_every_step_once(size):
    blocks = cut_into({"u": INPUTS}, size)
    count = T // size
    assert blocks.inputs["u"].shape == (size, count, D)
    assert blocks.tail["u"].shape == (T % size, D)
    times = jnp.stack([blocks.entry(j)[1] for j in range(size)])
    np.testing.assert_array_equal(times.T.ravel(), jnp.arange(T - blocks.rest))
    lanes = jnp.swapaxes(blocks.inputs["u"], 0, 1).reshape(-1, D)
    np.testing.assert_array_equal(jnp.concatenate([lanes, blocks.tail["u"]]), INPUTS)


def test_inputs_left_in_place_give_the_same_entries():
    moved, left = (cut_into(INPUTS, 3, lay_out=way) for way in (True, False))
    for j in range(3):
        np.testing.assert_array_equal(moved.entry(j)[0], left.entry(j)[0])


def test_starts_shift_by_one_block():
    nodes = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(shift(X0, nodes), [X0, [0, 1], [2, 3]])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_operators_are_derivatives_of_the_block_maps(size):
    blocks = cut_into(INPUTS, size)
    nodes = trajectory()[size - 1 :: size][: T // size] + 0.1
    before = shift(X0, nodes)
    values, dense = linearize_nodes(DenseJacobian(), blocks, nodes, jnp.asarray(0))
    for k, x in enumerate(before):
        inputs = INPUTS[k * size : (k + 1) * size]
        np.testing.assert_allclose(values[k], block_map(x, inputs), atol=1e-6)
        expected = jax.jacrev(block_map)(x, inputs)
        np.testing.assert_allclose(dense.matrix[k], expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_diagonal_operators_multiply_along_a_block(size):
    blocks = cut_into(INPUTS, size)
    nodes = jnp.full((T // size, D), 0.2)
    _, found = linearize_nodes(DiagonalJacobian(), blocks, nodes, jnp.asarray(0))
    for k, x in enumerate(shift(X0, nodes)):
        product = np.ones(D)
        for u in INPUTS[k * size : (k + 1) * size]:
            product = product * np.diag(jax.jacrev(step)(x, u))
            x = step(x, u)
        np.testing.assert_allclose(found.diagonal[k], product, atol=1e-6)


@pytest.mark.parametrize(
    ("linearization", "value"), [(IdentityJacobian(), 1.0), (ZeroJacobian(), 0.0)]
)
@pytest.mark.parametrize("size", [1, 3])
def test_constant_operators(linearization, value, size):
    blocks = cut_into(INPUTS, size)
    nodes = jnp.zeros((T // size, D))
    _, found = linearize_nodes(linearization, blocks, nodes, jnp.asarray(0))
    np.testing.assert_array_equal(found.diagonal, jnp.full((T // size, D), value))


@pytest.mark.parametrize("size", [1, 3, 8, 11])
def test_rolling_out_exact_nodes_gives_the_trajectory(size):
    exact = trajectory()
    blocks = cut_into(INPUTS, size)
    nodes = exact[size - 1 :: size][: T // size]
    np.testing.assert_allclose(roll_out(blocks, nodes), exact, atol=1e-6)
