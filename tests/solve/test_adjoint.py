"""Derivatives equal those through `jax.lax.scan`, whichever method found the states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

T, D = 9, 2
METHODS = {
    "deer": elk.deer(),
    "quasi_elk": elk.quasi_elk(10.0),
    "elk_smoother": elk.elk(10.0, estimate="smoother"),
    "jacobi": elk.jacobi(),
    "blocks": elk.quasi_deer(block_size=4),
}
pytestmark = pytest.mark.usefixtures("x64")


def make():
    rng = np.random.default_rng(0)
    parameters = {
        "mix": jnp.asarray(rng.normal(size=(D, D)) * 0.8),
        "bias": jnp.asarray(rng.normal(size=D)),
    }
    return (
        parameters,
        jnp.asarray(rng.normal(size=D)),
        jnp.asarray(rng.normal(size=(T, D))),
    )


def cell(parameters):
    return lambda x, u: jnp.tanh(parameters["mix"] @ x + u) + parameters["bias"] * x


def by_scan(parameters, x0, inputs):
    f = cell(parameters)
    return jax.lax.scan(lambda x, u: (f(x, u),) * 2, x0, inputs)[1]


def by_method(method, **options):
    def solve(parameters, x0, inputs):
        f = cell(parameters)
        return elk.evaluate(f, x0, inputs, method=method, **options).states

    return solve


def loss(solve):
    weights = jnp.linspace(0.5, 1.5, T * D).reshape(T, D)
    return lambda *args: jnp.sum(weights * jnp.sin(solve(*args)))


def equal(found, expected, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(b).max()
        assert scale > 1e-3
        np.testing.assert_allclose(a, b, atol=rtol * scale)


@pytest.fixture(scope="module")
def expected():
    with jax.enable_x64(True):
        return jax.grad(loss(by_scan), argnums=(0, 1, 2))(*make())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_gradients_do_not_depend_on_the_method(method, expected):
    found = jax.grad(loss(by_method(method)), argnums=(0, 1, 2))(*make())
    equal(found, expected)


def test_gradients_do_not_depend_on_the_adjoint(expected):
    for adjoint in ("sequential", "parallel"):
        solve = by_method(elk.quasi_deer(), adjoint=adjoint)
        equal(jax.grad(loss(solve), argnums=(0, 1, 2))(*make()), expected)


def test_tangents_equal_and_transpose_the_cotangents():
    primals = make()
    tangents = jax.tree.map(lambda x: jnp.cos(3 * x), primals)
    for adjoint in ("sequential", "parallel"):
        solve = by_method(elk.deer(), adjoint=adjoint)
        states, found = jax.jvp(solve, primals, tangents)
        equal(found, jax.jvp(by_scan, primals, tangents)[1])
        cotangent = jnp.sin(states)
        pulled = jax.vjp(solve, *primals)[1](cotangent)
        inner = sum(
            jnp.vdot(a, b)
            for a, b in zip(jax.tree.leaves(pulled), jax.tree.leaves(tangents))
        )
        np.testing.assert_allclose(inner, jnp.vdot(cotangent, found), rtol=1e-10)


def test_hessian_vector_products():
    parameters, x0, inputs = make()
    direction = jax.tree.map(jnp.cos, parameters)

    def product(solve):
        gradient = jax.grad(lambda p: loss(solve)(p, x0, inputs))
        return jax.jvp(gradient, (parameters,), (direction,))[1]

    equal(product(by_method(elk.quasi_deer())), product(by_scan))


def test_noise_guess_and_tolerance_have_no_derivative():
    parameters, x0, inputs = make()

    def total(noise, guess, tol):
        states = elk.evaluate(
            cell(parameters),
            x0,
            inputs,
            method=elk.elk(noise),
            guess=guess,
            tol=tol,
        ).states
        return jnp.sum(states)

    found = jax.grad(total, argnums=(0, 1, 2))(10.0, jnp.ones((T, D)), 1e-12)
    for gradient in found:
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


def test_gradients_through_jit_vmap_and_scan():
    parameters, x0, inputs = make()
    batch = jnp.stack([inputs, 0.5 * inputs])

    def mean(solve):
        return jax.jit(
            jax.grad(lambda p: jax.vmap(lambda u: loss(solve)(p, x0, u))(batch).sum())
        )(parameters)

    equal(mean(by_method(elk.deer())), mean(by_scan))


def test_discrete_leaves_do_not_break_the_gradient():
    key = jax.random.key(0)

    def f(w):
        def step(state, u):
            x, n, key = state
            key, now = jax.random.split(key)
            x = jnp.tanh(w * x + u["x"]) + 0.1 * n * u["count"]
            return x + 0.1 * jax.random.normal(now, (D,)), n + 1, key

        return step

    x0 = jnp.ones(D), jnp.asarray(0), key
    inputs = {"x": make()[2], "count": jnp.arange(T)}

    def total(w):
        return jnp.sum(elk.evaluate(f(w), x0, inputs, method=elk.deer()).states[0] ** 2)

    def exact(w):
        step = f(w)
        return jnp.sum(
            jax.lax.scan(lambda s, u: (step(s, u),) * 2, x0, inputs)[1][0] ** 2
        )

    np.testing.assert_allclose(jax.grad(total)(0.7), jax.grad(exact)(0.7), rtol=1e-10)


def test_gradient_through_scan_s_carry_and_outputs():
    parameters, x0, inputs = make()

    def total(scan):
        def run(parameters):
            f = cell(parameters)

            def step(x, u):
                return f(x, u), parameters["bias"] * x**2

            carry, ys = scan(step, x0, inputs)
            return jnp.sum(carry**3) + jnp.sum(jnp.sin(ys))

        return jax.grad(run)(parameters)

    def ours(step, init, xs):
        return elk.scan(step, init, xs, method=elk.quasi_deer())

    equal(total(ours), total(jax.lax.scan))


def test_no_array_of_all_jacobians_in_the_backward_pass(largest_array):
    length, size = 4096, 16
    weight = jnp.full((size, size), 0.05)
    inputs = jnp.ones((length, size))

    def total(method, adjoint):
        def run(weight):
            f = lambda x, u: jnp.tanh(weight @ x + u)  # noqa: E731
            return elk.evaluate(
                f, jnp.zeros(size), inputs, method=method, adjoint=adjoint
            ).states.sum()

        return jax.grad(run)

    bound = length * size * size
    assert largest_array(total(elk.quasi_deer(), "sequential"), weight) < bound
    assert largest_array(total(elk.quasi_deer(), "auto"), weight) < bound
    # The search does find the array where there is one.
    assert largest_array(total(elk.quasi_deer(), "parallel"), weight) >= bound
