"""Scaled and clipped Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.surrogate.linearization import Linearization, Where

pytestmark = pytest.mark.usefixtures("x64")
D, T = 4, 80
RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(D, D))
INPUTS = RNG.normal(size=(T, D))
AT = Where(jnp.asarray(0), jnp.asarray(0))


def wild(x, u):
    return jnp.tanh(1.5 * jnp.asarray(MATRIX) @ x + u)


def push(linearization, x):
    x = jnp.asarray(x)
    start = linearization.start(D, x.dtype)
    return linearization.push(wild, x, jnp.zeros(D), start, AT)[1].to_dense()


X = 0.1 * RNG.normal(size=D)


@pytest.mark.parametrize("inner", [elk.DenseJacobian(), elk.DiagonalJacobian()])
def test_what_is_pushed(inner):
    whole = push(inner, X)
    np.testing.assert_allclose(push(elk.Scaled(inner, 0.3), X), 0.3 * whole)
    for radius in (0.1, 1.0, 100.0):
        clipped = push(elk.Clipped(inner, radius), X)
        assert np.abs(np.linalg.eigvals(clipped)).max() <= radius * (1 + 1e-12)
        assert np.linalg.norm(clipped, 2) <= radius * (1 + 1e-12)
    np.testing.assert_allclose(clipped, whole)


METHODS = {
    "scaled": elk.quasi_deer(linearization=elk.Scaled(elk.DiagonalJacobian(), 0.7)),
    "clipped": elk.deer(linearization=elk.Clipped(elk.DenseJacobian())),
    "clipped blocks": elk.deer(
        linearization=elk.Clipped(elk.BlockDiagonalJacobian(2), 0.9), block_size=5
    ),
    "scaled and clipped": elk.quasi_deer(
        linearization=elk.Scaled(elk.Clipped(elk.DiagonalJacobian()), 0.9)
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_converges_to_the_scan(name, reference, close):
    assert isinstance(METHODS[name].linearization, Linearization)
    sol = elk.evaluate(wild, jnp.zeros(D), INPUTS, method=METHODS[name])
    close(
        elk.raise_if_failed(sol).states,
        reference(wild, jnp.zeros(D), INPUTS),
        atol=1e-9,
    )


def test_numbers_are_data(reference, close):
    def solve(radius):
        how = elk.Clipped(elk.DiagonalJacobian(), radius)
        method = elk.quasi_deer(linearization=how)
        return elk.evaluate(wild, jnp.zeros(D), INPUTS, method=method)

    sols = jax.jit(jax.vmap(solve))(jnp.array([0.1, 10.0]))
    expected = reference(wild, jnp.zeros(D), INPUTS)
    for states in sols.states:
        close(states, expected, atol=1e-9)


@pytest.mark.parametrize("a", [0.3, 0.8])
@pytest.mark.parametrize("k", [0.2, 0.6, 0.9])
def test_the_noise_that_a_scale_stands_for(a, k):
    """The closed loop of the stationary filter is k a, as the docstring says."""
    noise = k / ((1 - k) * (1 - k * a**2))
    start = jnp.zeros(1)
    states = jnp.zeros((60, 1)).at[0].set(1.0)  # a wrong first state, and no other

    def f(x, u):
        return a * x

    surrogate = elk.linearize(f, states, initial_state=start, noise=noise)
    means = surrogate.filter().means[:, 0]
    increments = means - states[:, 0]
    np.testing.assert_allclose(increments[30:] / increments[29:-1], k * a, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: elk.Scaled(0.5, 0.5), "takes a linearisation first"),
        (lambda: elk.Scaled(elk.DiagonalJacobian(), 1.5), "k must be a positive"),
        (lambda: elk.Scaled(elk.DiagonalJacobian(), 0), "k must be a positive"),
        (lambda: elk.Clipped(elk.DenseJacobian(), -1.0), "radius must be a positive"),
        (lambda: elk.Clipped(elk.DenseJacobian(), jnp.ones(2)), "radius must be"),
        (lambda: elk.Clipped(elk.DenseJacobian(), "1"), "radius must be a number"),
        (
            lambda: elk.Scaled(elk.DenseJacobian(), np.float32(2)),
            "k must be a positive",
        ),
        (lambda: elk.Scaled(elk.DenseJacobian, 0.5), "takes a linearisation first"),
    ],
)
def test_mistakes_are_named(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()
