"""`elk.scan` against `jax.lax.scan`, the function it stands in for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

U = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2)), jnp.float32)
H = jnp.asarray([0.1, -0.3])
METHOD = elk.deer()


def counter(carry, x):
    h, n = carry
    return (jnp.tanh(0.5 * h + x / (1 + n)), n + 1), {"h": h, "n": n}


def random_walk(carry, _):
    h, key = carry
    key, now = jax.random.split(key)
    h = 0.9 * h + jax.random.normal(now, (2,))
    return (h, key), h.sum()


def lstm(carry, x):
    c, h = carry
    c = jax.nn.sigmoid(h + x) * c + jnp.tanh(h - x)
    h = jnp.tanh(c) * jax.nn.sigmoid(x)
    return (c, h), (c.sum(), h)


def nested(carry, x):
    a, b = carry["a"], carry["b"]["c"][0]
    new = {"a": jnp.cos(a + x["p"]), "b": {"c": [0.5 * b + x["q"][0]]}}
    return new, {"y": (a, [b])}


CASES = {
    "array": (lambda c, x: (jnp.tanh(c + x), c), H, U, None),
    "scalar": (lambda c, x: (0.5 * c + x[0], c * x[1]), 0.25, U, None),
    "no inputs": (lambda c, _: (jnp.cos(c), c), H, None, 7),
    "no outputs": (lambda c, x: (jnp.tanh(c + x), None), H, U, None),
    "length and inputs": (lambda c, x: (jnp.tanh(c + x), c), H, U, 9),
    "counter": (counter, (H, 3), U, None),
    "old key": (random_walk, (H, jax.random.PRNGKey(1)), None, 6),
    "lstm": (lstm, (H, H + 1), U, None),
    "nested": (
        nested,
        {"a": H, "b": {"c": [jnp.asarray(1.0)]}},
        {"p": U, "q": (jnp.arange(9.0),)},
        None,
    ),
    "matrix": (
        lambda c, x: (jnp.tanh(c @ c.T / 4 + x), c.sum(0)),
        jnp.eye(2),
        U,
        None,
    ),
    "integer inputs": (
        lambda c, i: (jnp.sin(c + i), i * 2),
        H,
        jnp.arange(5),
        None,
    ),
    "one step": (lambda c, x: (jnp.tanh(c + x), c), H, U[:1], None),
    "outputs of other dtypes": (
        lambda c, x: (jnp.tanh(c + x), (c > 0, c.astype(jnp.bfloat16))),
        H,
        U,
        None,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_lax_scan(case, close):
    f, init, xs, length = case
    found = elk.scan(f, init, xs, length, method=METHOD)
    expected = jax.lax.scan(f, init, xs, length)
    close(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["counter", "nested"])
def test_reverse_equals_lax_scan(name, close):
    f, init, xs, _ = CASES[name]
    found = elk.scan(f, init, xs, reverse=True, method=METHOD)
    close(found, jax.lax.scan(f, init, xs, reverse=True), atol=1e-5)
    forward = elk.scan(f, init, xs, method=METHOD)
    first = jax.tree.leaves(found)[0], jax.tree.leaves(forward)[0]
    assert abs(first[0] - first[1]).max() > 1e-3


def test_typed_keys_in_the_carry():
    init = H, jax.random.key(4)
    (h, key), ys = elk.scan(random_walk, init, None, 6, method=METHOD)
    (expected_h, expected_key), expected = jax.lax.scan(random_walk, init, None, 6)
    np.testing.assert_allclose(h, expected_h, atol=1e-5)
    np.testing.assert_allclose(ys, expected, atol=1e-5)
    np.testing.assert_array_equal(
        jax.random.key_data(key), jax.random.key_data(expected_key)
    )


def test_the_default_method_equals_lax_scan(close):
    f, init, xs, _ = CASES["lstm"]
    close(elk.scan(f, init, xs), jax.lax.scan(f, init, xs), atol=1e-5)


def test_what_does_not_converge_is_evaluated_sequentially(close):
    def f(c, x):
        return 3.7 * c * (1 - c), c

    init = jnp.full(1, 0.3)
    method = elk.quasi_elk(1e-2)
    found = elk.scan(f, init, None, 12, method=method, max_iters=1)
    solution = elk.evaluate(
        lambda c, x: f(c, x)[0], init, length=12, method=method, max_iters=1
    )
    assert solution.status == elk.Status.max_iters_reached
    close(found, jax.lax.scan(f, init, None, 12), atol=1e-4)


@pytest.mark.parametrize("method", [elk.deer(), elk.quasi_elk(1.0), elk.jacobi()])
def test_a_nan_is_passed_on_as_lax_scan_does(method):
    def f(c, x):
        return jnp.where(x > 5, jnp.nan, jnp.tanh(c + x)), c

    xs = U.at[4, 1].set(9.0)
    found, expected = elk.scan(f, H, xs, method=method), jax.lax.scan(f, H, xs)
    assert jnp.isnan(expected[0]).any()
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_inside_jit_grad_and_vmap(close):
    def total(scan):
        def run(w, x):
            step = lambda c, x: (jnp.tanh(w * c + x), c**2)  # noqa: E731
            carry, ys = scan(step, H, x)
            return carry.sum() + ys.sum()

        batch = jnp.stack([U, 2 * U])
        return jax.jit(jax.grad(lambda w: jax.vmap(run, (None, 0))(w, batch).sum()))

    def ours(f, init, xs):
        return elk.scan(f, init, xs, method=METHOD)

    close(total(ours)(0.5), total(jax.lax.scan)(0.5), atol=1e-4)


def test_unroll_is_accepted(close):
    f, init, xs, _ = CASES["array"]
    found = elk.scan(f, init, xs, unroll=4, method=METHOD)
    close(found, jax.lax.scan(f, init, xs), atol=1e-5)


@pytest.mark.parametrize(
    ("f", "options", "error", "message"),
    [
        (lambda c, x: (c, x), {"iterations": 3}, TypeError, "iterations"),
        (lambda c, x: c, {}, (TypeError, ValueError), "carry"),
        (lambda c, x: (c[:1], x), {}, ValueError, r"float32\[2\].*float32\[1\]"),
        (lambda c, x: (c, x), {"length": 4}, ValueError, "length is 4, but xs have 9"),
        (lambda c, x: (c, x), {"xs": 1.0}, ValueError, "Every leaf of xs needs"),
        (lambda c, x: (c, x), {"xs": "ab"}, TypeError, "xs must be arrays; got the te"),
        (lambda c, x: (c, x), {"xs": None}, ValueError, "Without xs, pass length=T"),
        (lambda c, x: (c, x), {"init": "a"}, TypeError, "init must be arrays"),
        (lambda c, x: (c @ x[:1], x), {}, (TypeError, ValueError), "f failed on one c"),
        (lambda c, x: (c @ x[:1], x), {}, (TypeError, ValueError), "scan.f, init, xs."),
        (lambda c, x: (c[:1], x), {}, ValueError, "Cast init or xs"),
        (H, {"init": jnp.tanh}, TypeError, r"callable.*order is scan\(f, init, xs\)"),
    ],
)
def test_mistakes_are_explained(f, options, error, message):
    with pytest.raises(error, match=message):
        elk.scan(f, **({"init": H, "xs": U} | options))


@pytest.mark.parametrize("scan", [elk.scan, elk.sequential_scan])
@pytest.mark.parametrize("reverse", [False, True])
def test_no_step_at_all_is_what_lax_scan_returns(scan, reverse, close):
    how = {"reverse": reverse}
    f, init, _, _ = CASES["counter"]
    found, expected = (one(f, init, U[:0], **how) for one in (scan, jax.lax.scan))
    close(found, expected, atol=0)
    assert found[1]["h"].shape == (0, 2)
    none = scan(lambda c, _: (c, c), H, None, 0, **how)
    close(none, (H, jnp.zeros((0, 2))), atol=0)
    with pytest.raises(ValueError, match="no negative number of steps; got T = -1"):
        scan(lambda c, _: (c, c), H, None, -1)
