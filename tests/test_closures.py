"""Hoisted functions: equal when they compute the same, and only then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@jax.custom_jvp
def first_rule(x):
    return jnp.sin(x)


@jax.custom_jvp
def second_rule(x):
    return jnp.sin(x)


first_rule.defjvp(lambda p, t: (jnp.sin(p[0]), t[0]))
second_rule.defjvp(lambda p, t: (jnp.sin(p[0]), 2 * t[0]))


def test_functions_that_differ_in_a_derivative_rule_are_different():
    assert hoist(first_rule, X)[0] != hoist(second_rule, X)[0]


@pytest.mark.parametrize(
    "function",
    [jax.nn.relu, jax.nn.softplus, first_rule, jax.jit(jnp.tanh)],
    ids=["relu", "softplus", "custom_jvp", "jit"],
)
def test_derivative_rules_do_not_make_one_program_two(function):
    one, two = (hoist(lambda x: function(2.0 * x), X)[0] for _ in range(2))
    assert one == two


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
