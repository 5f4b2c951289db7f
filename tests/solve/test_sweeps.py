"""Derivatives by short blocks: those of `lax.scan`, whatever the recurrence forgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.solve.leaky import drive as leaky_drive

import elk_ssm as elk

LENGTH = 300
METHOD = elk.auto(strategy="short_blocks", block_size=8)


def leaky(x, u):
    return u[0] * jnp.sin(x) + u[1]


def drive(rate):
    return leaky_drive(rate, LENGTH)


def states(adjoint, start, inputs):
    how = {"method": METHOD, "adjoint": adjoint}
    return elk.evaluate(leaky, start, inputs, **how).states


def scanned(start, inputs):
    return jax.lax.scan(lambda x, u: (leaky(x, u),) * 2, start, inputs)[1]


def everywhere(found):
    return jnp.sum(found**2)


def at_the_end(found):
    return jnp.sum(found[-1])


@pytest.mark.parametrize("loss", [everywhere, at_the_end])
@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_gradients_are_those_of_a_scan(rate, loss, x64):
    inputs, start = drive(rate), jnp.ones(2)
    ours = jax.jit(jax.grad(lambda *a: loss(states("short_blocks", *a)), (0, 1)))
    theirs = jax.jit(jax.grad(lambda *a: loss(scanned(*a)), (0, 1)))
    pairs = list(zip(ours(start, inputs), theirs(start, inputs)))
    # What is less than 1e-10 of the largest is right to rounding of that.
    size = max(float(jnp.abs(expected).max()) for _, expected in pairs)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * size)


def test_tangents_and_batches(x64):
    inputs = jnp.stack([drive(0.5), drive(0.999)])
    starts = jnp.ones((2, 2))

    def pushed(run):
        def along(x, u):
            return jax.jvp(run, (x, u), (x, u))[1]

        return jax.jit(jax.vmap(along))(starts, inputs)

    found = pushed(lambda *a: states("short_blocks", *a))
    np.testing.assert_allclose(found, pushed(scanned), rtol=1e-8, atol=1e-10)


def test_second_derivatives(x64):
    inputs, start = drive(0.5), jnp.ones(2)

    def curvature(run):
        def loss(s):
            return everywhere(run(s * start, inputs))

        return jax.jit(jax.grad(jax.grad(loss)))(1.0)

    found = curvature(lambda *a: states("short_blocks", *a))
    np.testing.assert_allclose(found, curvature(scanned), rtol=1e-9)


def test_sources_too_small_to_misfit_add_up(x64):
    # Nothing is forgotten, and every block adds less than rounding of what is there.
    def summed(x, u):
        return x + u

    weights = jnp.full(LENGTH, 1e-17).at[-1].set(1.0)

    def loss(run):
        return lambda v: jnp.sum(weights[:, None] * run(v))

    how = {"method": METHOD, "adjoint": "short_blocks"}

    def ours(v):
        return elk.evaluate(summed, jnp.zeros(1), v, **how).states

    found = jax.grad(loss(ours))(jnp.ones((LENGTH, 1)))
    expected = np.cumsum(np.asarray(weights)[::-1])[::-1]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-13)
