"""Small programs written out entry by entry are what `vmap` makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.test_random_steps import random_step

from elk_ssm.kernels.entries import LARGEST, entry_by_entry
from elk_ssm.linalg.small import matmul, solve

LANES = 5


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def products(a, b):
    return matmul(a, matmul(b, a.T)), jnp.einsum("ij,kj->ik", a, b) @ a[0], a.sum() > 0


def elimination(a, b):
    return solve(jnp.eye(3) + a @ a.T, b)


def loop(a, b):
    def one(carry, row):
        return carry + jnp.tanh(row @ carry) * b[1], carry[0]

    return jax.lax.scan(one, a[0], b)


def masks(a, b):
    here = jnp.arange(3) >= 1
    first = jnp.where(here[:, None], a, 0.0)
    return first @ b, jnp.triu(b), jnp.any(a > 1, axis=0), jnp.argmax(a, axis=1)


def moves(a, b):
    c = a.at[:, 1].set(b[0]).at[2].set(1.0)
    joined = jnp.concatenate([c, b[:2]]), jnp.stack([a[0], b[1]]), jnp.diagonal(a)
    return *joined, jnp.pad(b, ((1, 0), (0, 2))), a[::-1], b[:, jnp.array([2, 0])]


def extremes(a, b):
    return jnp.max(a, axis=0), jnp.min(b), jnp.argmax(b), jnp.clip(a, -1, 1)


def branches(a, b):
    return jax.lax.cond(a[0, 0] > 0, lambda: a + b, lambda: a - b)


FUNCTIONS = [products, elimination, loop, masks, moves, extremes, branches]


def written_out(function, *arguments, axis=0):
    one = [jax.eval_shape(lambda x: jnp.take(x, 0, axis), x) for x in arguments]
    return entry_by_entry(function, *one, axis=axis)


def agree(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_equals_vmap(function, axis):
    with jax.enable_x64(True):
        a, b = (normal(LANES, 3, 3, seed=i) for i in range(2))
        expected = jax.vmap(function, 0, axis)(a, b)
        a, b = (jnp.moveaxis(x, 0, axis) for x in (a, b))
        entries = written_out(function, a, b, axis=axis)
        assert entries is not None
        agree(entries(a, b), expected)


@pytest.mark.parametrize("seed", range(6))
def test_equals_vmap_for_random_programs(seed):
    step, x, u = random_step(seed, 3), normal(LANES, 3), normal(LANES, 3, seed=1)

    def function(x, u):
        return step((), x, u)

    found, expected = written_out(function, x, u)(x, u), jax.vmap(function)(x, u)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, -1])
def test_derivatives_are_those_of_the_program(axis):
    with jax.enable_x64(True):
        a, b = (jnp.moveaxis(normal(LANES, 3, 3, seed=i), 0, axis) for i in range(2))

        def function(a, b):
            # A root whose derivative at zero a rule makes finite.
            return elimination(a, b) * jnp.sqrt(jnp.where(b > 0, b, 1.0))

        entries = written_out(function, a, b, axis=axis)
        plainly = jax.vmap(function, axis, axis)

        def total(function):
            return lambda a: jnp.sum(jnp.sin(function(a, b)))

        for derive in (jax.grad, lambda f: jax.jacfwd(jax.grad(f))):
            agree(derive(total(entries))(a), derive(total(plainly))(a))
        batch = jnp.stack([a, 2 * a])
        each = (jax.vmap(jax.grad(total(f)))(batch) for f in (entries, plainly))
        agree(*each)


def test_arrays_that_are_closed_over_are_no_numbers_of_the_program():
    def through(wrapped, w, a):
        def function(x):
            return w @ x + w.sum()

        return jnp.sum((written_out(function, a) if wrapped else jax.vmap(function))(a))

    with jax.enable_x64(True):
        w, a = normal(3, 3), normal(LANES, 3, seed=1)
        for derive in (lambda f: f, jax.grad, lambda f: jax.jacfwd(jax.grad(f))):
            found, expected = (
                jax.jit(derive(lambda w, on=on: through(on, w, a)))(w)
                for on in (True, False)
            )
            agree(found, expected)


def test_what_is_not_a_number_stays_so():
    a = normal(LANES, 3, 3).at[2, 1, 1].set(jnp.nan)
    found = written_out(extremes, a, a)(a, a)
    agree(found, jax.vmap(extremes)(a, a))


def places(a, _):
    return jax.lax.dynamic_index_in_dim(a, jnp.argmax(a[:, 0]), keepdims=False)


def unknown_length(a, _):
    return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + 1, a)


def too_large(a, b):
    for _ in range(LARGEST // 27 + 1):
        a = a @ b
    return a


@pytest.mark.parametrize(
    "function",
    [places, unknown_length, too_large, lambda a, _: jnp.sort(a)],
    ids=["index", "while", "large", "sort"],
)
def test_what_has_no_form(function):
    a = normal(LANES, 3, 3)
    assert written_out(function, a, a) is None


def bits(a, _):
    whole = jnp.floor(a * 4).astype(int)
    return whole | 1, whole & 1, whole & 0, (a > 0) | True, (a > 0) & False


def test_bits_of_integers_are_no_truth():
    with jax.enable_x64(True):
        a = normal(LANES, 3, 3)
        agree(written_out(bits, a, a)(a, a), jax.vmap(bits)(a, a))


def test_sums_over_nothing_have_no_form():
    a = normal(LANES, 0, 3)
    assert written_out(lambda a: jnp.sum(a, axis=0), a) is None
