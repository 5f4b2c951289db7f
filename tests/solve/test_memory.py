"""Memory grows with T times D: pinned by what the compiler reserves, not by a clock."""

import jax
import jax.numpy as jnp
import pytest

import elk_ssm as elk

D, T = 64, 10_000
UNIT = T * D * 4  # One float32 trajectory.
# The diagonal methods linearise 128 steps at once, with a (D, D) intermediate each.
BLOCK = 128 * D * D * 4


def cell(weights, h, u):
    z = jax.nn.sigmoid(weights[0] @ h + u)
    n = jnp.tanh(weights[1] @ h - u)
    return (1 - z) * n + z * h


def loss(method):
    def run(weights, start, inputs):
        sol = elk.evaluate(
            lambda h, u: cell(weights, h, u), start, inputs, method=method
        )
        return jnp.sum(sol.states**2)

    return run


def reserved(function):
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, D, D), (D,), (T, D))
    ]
    program = jax.jit(function).lower(*shapes).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "method",
    [
        elk.quasi_deer(),
        elk.quasi_elk(1e2),
        elk.jacobi(block_size=32),
        elk.auto(strategy="forgetful"),
    ],
    ids=["quasi_deer", "quasi_elk", "zero blocks", "auto"],
)
def test_forward_and_backward_within_twelve_trajectories(method):
    gradient = jax.grad(loss(method), argnums=(0, 1, 2))
    assert reserved(gradient) <= 12 * UNIT + BLOCK


def test_the_dense_method_does_not_fit_there():
    # The bound above means something: deer holds (T, D, D) Jacobians.
    assert reserved(loss(elk.deer())) > 64 * UNIT
