"""`elk.sequential_scan`: the values of `jax.lax.scan`, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.test_scan import CASES, H, U, counter, random_walk

import elk_ssm as elk

ADJOINTS = ["sequential", "blocks", "short_blocks", "parallel"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_lax_scan_to_rounding(case, close):
    f, init, xs, length = case
    found = elk.sequential_scan(f, init, xs, length)
    close(found, jax.lax.scan(f, init, xs, length), atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_reversed_and_unrolled(reverse, close):
    how = {"reverse": reverse, "unroll": 4}
    found = elk.sequential_scan(counter, (H, 3), U, **how)
    close(found, jax.lax.scan(counter, (H, 3), U, **how), atol=1e-6)


def lorenz(w, state, push):
    """A step of a chaotic system, that no method gains on forwards."""
    x, y, z = state
    dx = jnp.stack([w[0] * (y - x), x * (w[1] - z) - y, x * y - w[2] * z])
    return state + 0.01 * (dx + push)


W = np.asarray([10.0, 28.0, 8 / 3])
T = 150


def loss_of(scan):
    """A loss that the final carry and every output matter to, of (w, init, xs)."""

    def loss(w, init, xs):
        def step(c, x):
            new = lorenz(w, c["x"], x)
            return {"x": new, "n": c["n"] + 1}, (jnp.sin(c["x"]) * w[0], c["n"])

        carry, (ys, _) = scan(step, {"x": init, "n": 0}, xs)
        return jnp.sum(ys) / T + jnp.sum(carry["x"])

    return loss


@pytest.fixture
def arguments(x64):
    rng = np.random.default_rng(0)
    start = jnp.asarray([1.0, 2.0, 20.0])
    return jnp.asarray(W), start, jnp.asarray(rng.normal(size=(T, 3)))


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_of_a_chaotic_system_equal_those_of_lax_scan(
    adjoint, arguments, close
):
    def ours(f, init, xs):
        return elk.sequential_scan(f, init, xs, adjoint=adjoint)

    every = (0, 1, 2)
    found = jax.jit(jax.grad(loss_of(ours), every))(*arguments)
    expected = jax.jit(jax.grad(loss_of(jax.lax.scan), every))(*arguments)
    close(found, expected, rtol=1e-9, atol=1e-9)


def test_forward_mode_and_second_derivatives(arguments, close):
    def ours(f, init, xs):
        return elk.sequential_scan(f, init, xs, adjoint="parallel")

    def both(scan):
        loss = loss_of(scan)
        w, *rest = arguments
        of_w = lambda w: loss(w, *rest)  # noqa: E731
        pushed = jax.jvp(of_w, (w,), (w,))[1]
        return pushed, jax.jvp(jax.grad(of_w), (w,), (w,))[1]

    close(both(ours), both(jax.lax.scan), rtol=1e-8, atol=1e-8)


def test_batches(arguments, close):
    w, start, xs = arguments
    starts = jnp.stack([start, start + 1])

    def gradients(scan):
        return jax.vmap(jax.grad(loss_of(scan), 1), (None, 0, None))(w, starts, xs)

    def ours(f, init, xs):
        return elk.sequential_scan(f, init, xs, adjoint="blocks")

    close(gradients(ours), gradients(jax.lax.scan), rtol=1e-9, atol=1e-9)


def test_a_leaf_that_does_not_move_may_depend_on_one_that_does(close):
    # A flag that remembers whether the state was ever large, and switches the step.
    def f(carry, x):
        h, seen = carry
        h = jnp.where(seen, 0.5 * h, 1.2 * h) + x
        return (h, seen | (h.sum() > 2)), (h**2, seen)

    def loss(scan):
        def run(init):
            (h, _), (ys, _) = scan(f, (init, jnp.asarray(False)), U)
            return ys.sum() + h.sum()

        return jax.value_and_grad(run)(H)

    close(loss(elk.sequential_scan), loss(jax.lax.scan), atol=1e-5)
    with pytest.raises(TypeError, match="not floating point"):
        elk.scan(f, (H, jnp.asarray(False)), U)


def test_keys_and_purely_discrete_carries(close):
    init = H, jax.random.key(4)
    (h, _), ys = elk.sequential_scan(random_walk, init, None, 6)
    (expected, _), expected_ys = jax.lax.scan(random_walk, init, None, 6)
    close((h, ys), (expected, expected_ys), atol=1e-6)
    count = lambda c, x: (c + 1, c * x)  # noqa: E731
    close(elk.sequential_scan(count, 0, U), jax.lax.scan(count, 0, U), atol=0)


def test_rules_of_a_custom_vjp_are_applied_as_in_lax_scan(close):
    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))

    def loss(scan):
        def run(w):
            step = lambda c, x: (clipped(jnp.tanh(w * c + x)), c**2)  # noqa: E731
            carry, ys = scan(step, H, U)
            return carry.sum() + ys.sum()

        return jax.value_and_grad(run)(0.7)

    close(loss(elk.sequential_scan), loss(jax.lax.scan), atol=1e-5)


def test_a_new_lambda_is_the_same_program():
    def run(w):
        return elk.sequential_scan(lambda c, x: (jnp.tanh(w * c + x), c), H, U)

    cached = elk.sequential_scanning._run._cache_size
    run(jnp.asarray(0.5))
    before = cached()
    run(jnp.asarray(0.6))
    assert cached() == before


def reserved(scan, *, gradient, length=20_000, size=16):
    """Bytes that a loss of the outputs reserves beyond arguments and results."""

    def loss(w, xs):
        def step(c, x):
            wide = jnp.tanh(w @ c)  # (4 D,), an intermediate wider than the carry
            return jnp.tanh(wide.reshape(4, -1).sum(0) + x), c[0]

        return jnp.sum(scan(step, jnp.zeros(size), xs)[1])

    function = jax.grad(loss) if gradient else loss
    shapes = [
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4 * size, size), (length, size))
    ]
    compiled = jax.jit(function).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (length * size * 4)


def test_the_backward_pass_keeps_the_carry_and_not_the_intermediates():
    by_blocks = lambda *args: elk.sequential_scan(*args, adjoint="blocks")  # noqa: E731
    assert reserved(by_blocks, gradient=True) <= 8
    assert reserved(jax.lax.scan, gradient=True) > 8
    assert reserved(elk.sequential_scan, gradient=False) <= 1.5


@pytest.mark.parametrize(
    ("f", "init", "options", "error", "message"),
    [
        (lambda c, x: c, H, {}, TypeError, "pair"),
        (3, H, {}, TypeError, "callable"),
        (lambda c, x: (c[:1], x), H, {}, ValueError, r"float32\[2\].*float32\[1\]"),
        (lambda c, x: (c, x), H, {"length": 4}, ValueError, "length is 4, but xs have"),
        (lambda c, x: (c[:1], x), H, {}, ValueError, "Cast init or xs"),
        (lambda c, x: ((c, c), x), H, {}, ValueError, "return a carry of the same str"),
        (lambda c, x: (c, x), "ab", {}, TypeError, "init must be arrays"),
        (lambda c, x: (c, x), H, {"adjoint": "fast"}, ValueError, "adjoint must be"),
        (lambda c, x: (c, x), (H, 1j * H), {}, TypeError, "real and imaginary"),
    ],
)
def test_mistakes_are_explained(f, init, options, error, message):
    with pytest.raises(error, match=message):
        elk.sequential_scan(f, init, U, **options)
