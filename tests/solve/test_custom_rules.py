"""Gradients through derivative rules of a user's own, against `lax.scan`'s.

A rule need not be linear in the cotangent, so it must be applied where the scan applies
it: once a step, to all that arrives there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

T, D = 7, 2
pytestmark = pytest.mark.usefixtures("x64")


def clip(x):
    return jnp.clip(x, -0.1, 0.1)


def with_vjp(forward, backward, function, **options):
    rule = jax.custom_vjp(function, **options.pop("where", {}))
    rule.defvjp(forward, backward, **options)
    return rule


def spikes(v):
    return (v > 0.1).astype(v.dtype)


def gently(v, g):
    return (g / (1 + 5 * jnp.abs(v - 0.1)) ** 2,)


def quarters(x):
    return jnp.round(4 * x) / 4


def same(x):
    return x


def leave(x):
    return x, None


clipped = with_vjp(leave, lambda _, g: (clip(g),), same)
again = with_vjp(leave, lambda _, g: (clip(g),), same, optimize_remat=True)
rounded = with_vjp(lambda x: (quarters(x), None), lambda _, g: (g,), quarters)
spiking = with_vjp(lambda v: (spikes(v), v), gently, spikes)
scaled = with_vjp(
    lambda factor, x: (x, None),
    lambda factor, _, g: (factor * g + 0.01,),
    lambda factor, x: x,
    where={"nondiff_argnums": (0,)},
)
paired = with_vjp(
    lambda xs: (xs["a"] * xs["n"], xs),
    lambda xs, g: ({"a": clip(g) * xs["n"], "n": None},),
    lambda xs: xs["a"] * xs["n"],
)
symbolic = with_vjp(
    lambda x, y: (x.value + y.value, None),
    lambda _, g: (clip(g), 2 * g),
    lambda x, y: x + y,
    symbolic_zeros=True,
)


def on_host(v):
    return jax.pure_callback(np.sinh, v, v, vmap_method="broadcast_all") / 2


kernel = with_vjp(
    lambda v: (on_host(v), v), lambda v, g: (g * jnp.cosh(v) / 2,), on_host
)


@jax.custom_gradient
def by_gradient(x):
    return 0.9 * x, clip


@jax.custom_jvp
def through(x):
    return quarters(x)


through.defjvp(lambda p, t: (through(*p), 0.5 * t[0]))


@jax.custom_jvp
def weighted(x, y):
    return x * y


weighted.defjvps(lambda t, ans, x, y: 3 * t * y, None)


@jax.custom_jvp
def watched(x):
    return jnp.sin(x)


def watched_jvp(primals, tangents):
    (tangent,) = tangents
    still = type(tangent) is jax.custom_derivatives.SymbolicZero
    return watched(*primals), tangent if still else 2 * tangent


watched.defjvp(watched_jvp, symbolic_zeros=True)


def in_loop(x):
    return jax.lax.fori_loop(0, 2, lambda _, y: clipped(0.9 * y), x)


def in_branch(x):
    return jax.lax.cond(x.sum() > 0, jax.jit(clipped), jnp.sin, x)


def root(x):
    def solve(f, y):
        return jax.lax.fori_loop(0, 30, lambda _, y: y - f(y) / 2, y)

    def tangent(g, y):
        return y / g(jnp.ones_like(y))

    return jax.lax.custom_root(lambda y: y + y**3 / 9 - x, x, solve, tangent)


def linear(x):
    matrix = jnp.outer(x, x) + 2 * jnp.eye(x.size)
    return jnp.linalg.solve(matrix, x) + 0.1 * jnp.linalg.det(matrix)


RULES = {
    "clipped": clipped,
    "optimize_remat": jax.checkpoint(again),
    "straight_through": rounded,
    "spike": spiking,
    "nondiff_argnums": lambda x: scaled(0.5, x),
    "pytree": lambda x: paired({"a": x, "n": jnp.arange(1, 1 + x.size)}),
    "symbolic_zeros": lambda x: symbolic(x, jnp.ones_like(x)),
    "symbolic_both": lambda x: symbolic(x, jnp.sin(x)),
    "kernel": kernel,
    "custom_gradient": by_gradient,
    "loop": in_loop,
    "branch": in_branch,
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(clipped(x))),
    "jvp": through,
    "jvp_none": lambda x: weighted(x, 1 + x**2),
    "jvp_symbolic": watched,
    "relu_silu": lambda x: jax.nn.silu(jax.nn.relu(x)),
    "softplus": jax.nn.softplus,
    "root": root,
    "linalg": linear,
    "stopped": lambda x: x + jax.lax.stop_gradient(x**2),
}
PLACES = {
    "state": lambda rule, p, x, u: jnp.tanh(p @ rule(x) + u),
    "result": lambda rule, p, x, u: rule(jnp.tanh(p @ x + u)),
    "parameter": lambda rule, p, x, u: jnp.tanh(p[0] * x + rule(p[1]) * x[::-1] + u),
    "input": lambda rule, p, x, u: jnp.tanh(p @ x + rule(u)),
    "everywhere": lambda rule, p, x, u: rule(jnp.tanh(rule(p[0]) * rule(x) + rule(u))),
}
METHODS = {
    "auto": {},
    "deer": {"method": elk.deer()},
    "quasi_elk": {"method": elk.quasi_elk(1.0), "adjoint": "parallel"},
    "blocks": {"method": elk.deer(block_size=3), "adjoint": "blocks"},
    "jacobi": {"method": elk.jacobi(), "adjoint": "sequential"},
}
CASES = [
    ("clipped", "parameter", "auto"),
    ("clipped", "everywhere", "deer"),
    ("optimize_remat", "state", "blocks"),
    ("straight_through", "parameter", "quasi_elk"),
    ("spike", "state", "deer"),
    ("nondiff_argnums", "everywhere", "jacobi"),
    ("pytree", "state", "quasi_elk"),
    ("symbolic_zeros", "parameter", "jacobi"),
    ("symbolic_both", "input", "blocks"),
    ("kernel", "result", "deer"),
    ("custom_gradient", "input", "deer"),
    ("loop", "everywhere", "blocks"),
    ("branch", "state", "jacobi"),
    ("checkpoint", "parameter", "blocks"),
    ("jvp", "state", "deer"),
    ("jvp_none", "parameter", "blocks"),
    ("jvp_symbolic", "everywhere", "deer"),
    ("relu_silu", "state", "quasi_elk"),
    ("softplus", "input", "jacobi"),
    ("root", "parameter", "deer"),
    ("linalg", "state", "jacobi"),
    ("stopped", "state", "deer"),
]


def problem():
    draw = np.random.default_rng(1).normal
    return tuple(jnp.asarray(draw(size=s)) for s in ((D, D), (D,), (T, D)))


def by_scan(f, x0, inputs):
    return jax.lax.scan(lambda x, u: (f(x, u),) * 2, x0, inputs)[1]


def by_elk(**options):
    return lambda f, x0, inputs: elk.evaluate(f, x0, inputs, **options).states


def loss(cell, solve):
    def run(p, x0, inputs):
        states = solve(lambda x, u: cell(p, x, u), x0, inputs)
        return jnp.sum(jnp.cos(jnp.arange(T * D).reshape(T, D)) * jnp.sin(states))

    return run


def equal(found, expected, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=rtol * max(np.abs(b).max(), 1))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradients_are_those_of_the_scan(case):
    rule, place, method = case

    def cell(p, x, u):
        return PLACES[place](RULES[rule], p, x, u)

    def gradient(solve):
        return jax.jit(jax.value_and_grad(loss(cell, solve), (0, 1, 2)))(*problem())

    expected = gradient(by_scan)
    assert np.abs(expected[1][0]).max() > 1e-3
    equal(gradient(by_elk(**METHODS[method])), expected)


def clipping(p, x, u):
    return jnp.tanh(clipped(p) @ clipped(x) + u)


def test_a_batch_is_clipped_as_the_batched_scan_clips():
    p, x0, inputs = problem()
    batch = jnp.stack([inputs, 2 * inputs, -inputs])

    def total(solve):
        def run(p):
            return jax.vmap(lambda u: loss(clipping, solve)(p, x0, u))(batch).sum()

        return jax.jit(jax.grad(run))(p)

    equal(total(by_elk(method=elk.jacobi())), total(by_scan))


@pytest.mark.parametrize("keep", ["last", "boundaries"])
def test_states_that_are_not_kept_are_passed_through(keep):
    chosen = {"last": lambda x: x[-1], "boundaries": lambda x: x[2::3]}[keep]
    ours = by_elk(method=elk.jacobi(block_size=3), keep=keep)

    def gradient(solve):
        def run(p, x0, inputs):
            found = solve(lambda x, u: clipping(p, x, u), x0, inputs)
            return jnp.sum(jnp.sin(found))

        return jax.jit(jax.grad(run, (0, 1, 2)))(*problem())

    expected = gradient(lambda *args: chosen(by_scan(*args)))
    equal(gradient(ours), expected)


def test_scan_gives_a_rule_what_arrives_from_carry_and_output():
    def step(p):
        def run(carry, u):
            x, count = carry
            now = clipped(3 * jnp.tanh(clipped(p[0]) * x + u))
            return (0.5 * now, count + 1), (clipped(p[1]) * now, count)

        return run

    def gradient(scan):
        def run(p, x0, inputs):
            start = x0, jnp.asarray(0)
            (last, _), (ys, counts) = scan(step(p), start, inputs, reverse=True)
            return jnp.sum(jnp.sin(last)) + jnp.sum(ys**2 * counts[:, None])

        return jax.jit(jax.value_and_grad(run, (0, 1, 2)))(*problem())

    def ours(f, init, xs, **options):
        return elk.scan(f, init, xs, method=elk.jacobi(), **options)

    equal(gradient(ours), gradient(jax.lax.scan))


def test_second_derivatives_in_reverse():
    def cell(p, x, u):
        return 0.5 * x + p @ spiking(x) + u

    def product(solve):
        gradient = jax.grad(loss(cell, solve))
        _, x0, inputs = problem()
        squares = jax.grad(lambda p: jnp.sum(gradient(p, x0, inputs) ** 2))
        return jax.jit(squares)(problem()[0])

    equal(product(by_elk(method=elk.jacobi())), product(by_scan))


def test_forward_mode_says_why_not():
    p, x0, inputs = problem()

    def run(p):
        return loss(clipping, by_elk(method=elk.jacobi()))(p, x0, inputs)

    with pytest.raises(TypeError, match=r"forward-mode autodiff .* custom_vjp"):
        jax.jvp(run, (p,), (p,))


def test_nothing_is_followed_where_nothing_is_differentiated():
    _, x0, inputs = problem()

    def loops(rule):
        def run(p):
            f = lambda x, u: jnp.tanh(p @ rule(x) + u)  # noqa: E731
            return elk.evaluate(f, x0, inputs, method=elk.jacobi()).states

        return jax.jit(run).lower(problem()[0]).compile().as_text().count(" while(")

    assert loops(clipped) == loops(same)


def test_tasks_that_need_jacobians_take_those_of_the_values():
    p, x0, inputs = problem()
    f = lambda x, u: jnp.tanh(p @ clipped(x) + u)  # noqa: E731
    g = lambda x, u: jnp.tanh(p @ x + u)  # noqa: E731
    found, expected = (elk.diagnose(h, x0, inputs).growth for h in (f, g))
    np.testing.assert_allclose(found, expected)
    one, two = (
        elk.iterates(h, x0, inputs, num_iters=2, method=elk.deer()) for h in (f, g)
    )
    np.testing.assert_allclose(one, two, atol=1e-14)


# ------------------------------------------------------------ rules of rules


def chain(*factors):
    """A sine whose k-th derivative is `factors[k]` times too large."""
    functions = (jnp.sin, jnp.cos, lambda x: -jnp.sin(x), lambda x: -jnp.cos(x))

    def link(k):
        if k == len(factors):
            return functions[k]

        @jax.custom_jvp
        def function(x):
            return functions[k](x)

        following = link(k + 1)

        @function.defjvp
        def _(primals, tangents):
            slope = following(*primals)
            return function(*primals), factors[k] * slope * tangents[0]

        return function

    return link(0)


def in_turn(f, x0, inputs):
    """The oracle: second derivatives of `lax.scan` in reverse drop rules of rules."""
    states = [x0]
    for u in inputs:
        states.append(f(states[-1], u))
    return jnp.stack(states[1:])


ORDERS = {
    "forward over reverse": lambda f: jax.jacfwd(jax.grad(f)),
    "reverse over reverse": lambda f: jax.grad(jax.grad(f)),
    "third": lambda f: jax.jacfwd(jax.grad(jax.grad(f))),
}


@pytest.mark.parametrize(
    ("order", "adjoint"), list(zip(ORDERS, ("parallel", "blocks", "sequential")))
)
def test_rules_of_rules_are_honoured(order, adjoint):
    inputs = jnp.linspace(-1, 1, 3)[:, None]

    def derivative(solve, *factors):
        def run(p):
            sine = chain(*factors)
            states = solve(lambda x, u: sine(p * x + u), jnp.ones(1), inputs)
            return jnp.sum(states**2)

        return jax.jit(ORDERS[order](run))(0.7)

    ours = by_elk(method=elk.quasi_deer(), adjoint=adjoint)
    for factors in ((1.0, 3.0, 1.0), (1.0, 3.0, -2.0)):
        found, expected = derivative(ours, *factors), derivative(in_turn, *factors)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
