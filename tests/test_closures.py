"""Hoisted functions: equal when they compute the same, and only then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm import _programs
from elk_ssm._closures import hoist

ONES, ZEROS = jnp.ones(3), jnp.zeros(3)
X = jax.ShapeDtypeStruct((3,), jnp.float32)


def scaled(weight):
    return lambda x: {"y": jnp.tanh(weight * x)}


def test_the_captured_array_becomes_an_argument():
    function, consts = hoist(scaled(jnp.full(3, 2.0)), X)
    assert len(consts) == 1
    found = function([jnp.full(3, 5.0)], jnp.ones(3))
    np.testing.assert_allclose(found["y"], np.tanh(5.0 * np.ones(3)), rtol=1e-6)


def test_two_traces_of_one_program_are_equal():
    one, first = hoist(scaled(jnp.full(3, 2.0)), X)
    two, second = hoist(scaled(jnp.full(3, 9.0)), X)
    assert one == two
    assert hash(one) == hash(two)
    assert first[0][0] != second[0][0]


def with_scan(n):
    return lambda x: jax.lax.scan(lambda c, _: (c + n, None), x, None, length=2)[0]


def where(value):
    return lambda x: jnp.where(x > 0, x, value)


DIFFERENT = {
    "primitive": (jnp.sin, jnp.cos),
    "literal": (lambda x: x * 2.0, lambda x: x * 3.0),
    "signed zero": (where(0.0), where(-0.0)),
    "nan": (where(jnp.nan), where(0.0)),
    "order": (lambda x: x[:1] - x[1:2], lambda x: x[1:2] - x[:1]),
    "axis": (lambda x: jnp.flip(x), lambda x: jnp.roll(x, 1)),
    "inner literal": (with_scan(1.0), with_scan(2.0)),
    "constant shape": (scaled(jnp.ones(3)), scaled(jnp.ones(()))),
    "constant dtype": (
        lambda x: x + jnp.ones(3, jnp.int32),
        lambda x: x + jnp.ones(3, jnp.int16),
    ),
    "tree": (lambda x: (x, x + 1), lambda x: [x, x + 1]),
    "output": (lambda x: (x, x + 1), lambda x: (x + 1, x)),
    "which constant": (
        lambda x: (ONES - ZEROS) * x,
        lambda x: (ZEROS - ONES - ONES) * x,
    ),
    "unhashable parameter": (
        lambda x: jax.pure_callback(np.sin, X, x),
        lambda x: jax.pure_callback(np.cos, X, x),
    ),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_different_programs_are_different(pair):
    one, two = (hoist(f, X)[0] for f in pair)
    assert one != two
    assert one == hoist(pair[0], X)[0]


def sine(rule):
    """A sine with the derivative rule `rule(x) * tangent`."""

    @jax.custom_jvp
    def function(x):
        return jnp.sin(x)

    function.defjvp(lambda p, t: (function(*p), rule(*p) * t[0]))
    return function


def passing(backward, forward=lambda x: (x, None)):
    """The identity with a backward rule."""

    @jax.custom_vjp
    def function(x):
        return x

    function.defvjp(forward, lambda r, g: (backward(g) if r is None else r * g,))
    return function


def plainly(x):
    return jnp.sin(x)


def twice(f):
    return lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0]


def chosen(f):
    return lambda x: jax.lax.cond(x[0] > 0, jax.jit(f), plainly, x)


def tripled(x):
    return 3 * x


def self_similar(factor):
    """A rule that calls its own function, a factor away from the truth."""

    @jax.custom_jvp
    def function(x):
        return jnp.exp(x)

    function.defjvp(lambda p, t: (function(*p), factor * function(*p) * t[0]))
    return function


def chain(depth, last):
    """Sines as rules of sines, of which the last one's rule differs."""
    rule = sine(last)
    for _ in range(depth):
        rule = sine(rule)
    return rule


# Pairs of factories, so that every program is made anew in every trace.
RULES = {
    "first order": (lambda: sine(jnp.cos), lambda: sine(jnp.sin)),
    "second order": (lambda: chain(1, jnp.cos), lambda: chain(1, jnp.sin)),
    "third order": (lambda: chain(2, jnp.cos), lambda: chain(2, jnp.sin)),
    "of a rule or none": (lambda: sine(plainly), lambda: sine(sine(plainly))),
    "inside a scan": (lambda: twice(chain(1, jnp.cos)), lambda: twice(sine(plainly))),
    "inside a cond": (lambda: chosen(chain(1, jnp.cos)), lambda: chosen(sine(plainly))),
    "checkpoint": (
        lambda: jax.checkpoint(chain(1, jnp.cos)),
        lambda: jax.checkpoint(chain(1, jnp.sin)),
    ),
    "backward": (lambda: passing(plainly), lambda: passing(tripled)),
    "forward": (
        lambda: passing(plainly, lambda x: (x, jnp.sin(x))),
        lambda: passing(plainly, lambda x: (x, jnp.cos(x))),
    ),
    "rule of a backward rule": (
        lambda: passing(sine(jnp.cos)),
        lambda: passing(sine(jnp.sin)),
    ),
    "backward inside a scan": (
        lambda: twice(passing(plainly)),
        lambda: twice(passing(tripled)),
    ),
    "backward in a rule": (
        lambda: sine(passing(plainly)),
        lambda: sine(passing(tripled)),
    ),
    "constant of a rule": (
        lambda: sine(lambda x: jnp.full(3, 2.0) * x),
        lambda: sine(lambda x: jnp.asarray([2.0, 2.0, 3.0]) * x),
    ),
    "constant of a backward rule": (
        lambda: passing(lambda g: np.float32([1, 2, 3]) * g),
        lambda: passing(lambda g: np.float32([1, 2, 4]) * g),
    ),
    "self-similar": (lambda: self_similar(1.0), lambda: self_similar(2.0)),
}


@pytest.mark.parametrize("pair", RULES.values(), ids=RULES.keys())
def test_programs_are_told_apart_by_their_derivative_rules(pair):
    one, two, again = (hoist(make(), X)[0] for make in (*pair, pair[0]))
    assert one != two
    assert one == again
    assert hash(one) == hash(again)


def test_vector_jacobian_rules_are_seen_at_any_depth():
    rule = passing(plainly)
    for f in (rule, twice(rule), chosen(rule), sine(rule), jax.checkpoint(rule)):
        assert hoist(f, X)[0].has_vjp_rules
    for f in (plainly, jax.nn.relu, chain(1, jnp.cos)):
        assert not hoist(f, X)[0].has_vjp_rules


def test_a_rule_that_cannot_be_traced_is_equal_only_to_itself():
    def refuse(_):
        raise NotImplementedError

    one, two = (hoist(passing(refuse), X)[0] for _ in range(2))
    assert one != two
    assert one == one


def test_two_functions_that_differ_at_second_order_have_their_own_hessians():
    def curvatures(rule):
        f = sine(rule)

        def last(p):
            step = lambda x, _: f(p * x)  # noqa: E731
            found = elk.evaluate(step, ONES[:1], length=2, method=elk.jacobi())
            return found.states[-1, 0]

        return [jax.hessian(g)(0.5) for g in (last, lambda p: f(p * f(p)))]

    for rule in (sine(jnp.cos), sine(tripled)):
        found, expected = curvatures(rule)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rules_made_anew_do_not_recompile(compilations):
    def gradient(p):
        rule, other = passing(tripled), self_similar(0.5)

        def total(p):
            step = lambda x, u: jnp.tanh(rule(p) * x + 0.1 * other(-u))  # noqa: E731
            found = elk.evaluate(step, ONES, inputs, method=elk.jacobi())
            return found.states.sum()

        return jax.grad(total)(p)

    inputs = jnp.ones((5, 3))
    gradient(0.5)
    with compilations() as count:
        gradient(0.4)
    assert count == [0]


@pytest.mark.parametrize(
    "function",
    [jax.nn.relu, jax.nn.softplus, sine(jnp.cos), jax.jit(jnp.tanh)],
    ids=["relu", "softplus", "custom_jvp", "jit"],
)
def test_derivative_rules_do_not_make_one_program_two(function):
    one, two = (hoist(lambda x: function(2.0 * x), X)[0] for _ in range(2))
    assert one == two


def test_too_many_rules_are_not_followed_and_the_program_is_itself(monkeypatch):
    monkeypatch.setattr(_programs, "_MOST", 0)
    rule = sine(jnp.cos)
    one, two = (hoist(lambda x: rule(rule(2.0 * x)), X)[0] for _ in range(2))
    assert one != two
    assert one == one
    np.testing.assert_allclose(one([], ONES), np.sin(np.sin(2 * np.ones(3))), rtol=1e-6)


def test_tracers_are_hoisted_and_differentiated():
    def total(weight):
        function, consts = hoist(scaled(weight), X)
        return function(consts, jnp.ones(3))["y"].sum()

    found = jax.grad(total)(0.5)
    np.testing.assert_allclose(found, 3 / np.cosh(0.5) ** 2, rtol=1e-6)


def test_numpy_constants_cross_a_jit_boundary():
    function, consts = hoist(scaled(np.full(3, 2.0, np.float32)), X)
    found = jax.jit(lambda c, x: function(c, x))(consts, jnp.ones(3))
    np.testing.assert_allclose(found["y"], np.tanh(2.0 * np.ones(3)), rtol=1e-6)
    assert all(isinstance(c, jax.Array) for c in consts)


def test_the_hoisted_function_keeps_nothing_of_the_closure():
    function, _ = hoist(scaled(jnp.full(3, 2.0)), X)
    one, two = (function([jnp.full(3, w)], jnp.ones(3))["y"] for w in (1.0, 2.0))
    assert abs(one - two).max() > 0.1
