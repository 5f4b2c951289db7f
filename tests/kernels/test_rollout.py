"""The kernel, evaluated in JAX, against `lax.scan` on cells as users write them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.speed import fused, split

from elk_ssm._closures import HoistedFunction
from elk_ssm._recurrence import canonicalize
from elk_ssm.kernels import Launch, Walk, roll_out_lanes, why_not
from elk_ssm.kernels.rollout import plan_of

ATOL = {jnp.float32: 1e-5, jnp.float64: 1e-13}  # some hundred roundings of order one


def draw(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def by_scan(step, consts, starts, entries, reverse=False, length=None):
    def body(states, entry):
        states = jax.vmap(lambda x, e: step(consts, x, e))(states, entry)
        return states, states

    return jax.lax.scan(body, starts, entries, reverse=reverse, length=length)[1]


def agree(step, consts, starts, entries, walk=Walk(), atol=None):  # noqa: B008
    @jax.jit
    def both(consts, starts, entries):
        found = roll_out_lanes(step, consts, starts, entries, walk, interpret=True)
        return found, by_scan(step, consts, starts, entries, walk.reverse, walk.steps)

    found, expected = both(consts, starts, entries)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    atol = atol or ATOL[starts.dtype.type]
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def fused_gru(weights, h, u):
    return fused(weights)(h, u)


def split_gru(weights, h, u):
    return split(weights)(h, u)


def vanilla(weights, h, u):
    return jnp.tanh(weights[0] @ h + weights[1].T @ u)


def lstm(weights, state, u):
    size = state.shape[0] // 2
    c, h = state[:size], state[size:]
    i, f, g, o = jnp.split(h @ weights[0] + u @ weights[1], 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jnp.concatenate([c, jax.nn.sigmoid(o) * jnp.tanh(c)])


def lorenz(rates, x, _):
    slope = [
        rates[0] * (x[1] - x[0]),
        x[0] * (rates[1] - x[2]) - x[1],
        x[0] * x[1] - rates[2] * x[-1],
    ]
    return x + 0.01 * jnp.stack(slope)


def lorenz_96(_, x, u):
    return x + 0.01 * ((jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + u)


def adjoint(weights, w, entry):
    x, u, v = entry
    return jax.vjp(lambda x: fused_gru(weights, x, u), x)[1](w)[0] + v


def weights_of(size, count=6, wide=1, dtype=jnp.float32):
    return draw(size, count, size, wide * size, dtype=dtype) / size**0.5


@pytest.mark.parametrize(
    ("size", "lanes", "dtype"),
    [
        (1, 1, jnp.float32),
        (3, 7, jnp.float64),
        (4, 100, jnp.float32),
        (8, 1, jnp.float32),
        (32, 7, jnp.float32),
        (33, 1, jnp.float64),
    ],
)
def test_a_fused_gru(size, lanes, dtype, x64):
    weights = weights_of(size, dtype=dtype)
    starts, entries = (draw(1, *s, lanes, size, dtype=dtype) for s in ((), (5,)))
    agree(fused_gru, weights, starts, entries)


@pytest.mark.parametrize("size", [8, 32])
def test_many_lanes_share_the_matrices_of_a_program(size):
    starts, entries = draw(1, 1030, size), draw(2, 3, 1030, size)
    plan = plan_of(fused_gru, weights_of(size), starts, entries)
    assert plan.launch.lanes == 16
    agree(fused_gru, weights_of(size), starts, entries)


@pytest.mark.parametrize("step", [split_gru, vanilla])
def test_other_writings(step):
    agree(step, weights_of(5), draw(1, 7, 5), draw(2, 6, 7, 5))


@pytest.mark.parametrize("lanes", [1, 7])
def test_a_state_of_two_parts(lanes):
    weights = weights_of(6, count=2, wide=4)
    agree(lstm, weights, draw(1, lanes, 12), draw(2, 5, lanes, 6))


@pytest.mark.parametrize(("lanes", "dtype"), [(1, jnp.float64), (100, jnp.float32)])
def test_scalars_without_inputs(lanes, dtype, x64):
    rates = jnp.asarray([10.0, 28.0, 8 / 3], dtype)
    agree(lorenz, rates, draw(1, lanes, 3, dtype=dtype), None, Walk(steps=20))


def test_a_roll_cuts_the_state_into_numbers():
    agree(lorenz_96, (), draw(1, 3, 7), draw(2, 4, 3))


@pytest.mark.parametrize(("size", "lanes"), [(4, 7), (8, 1), (32, 1)])
def test_the_sweep_of_an_adjoint(size, lanes):
    entries = tuple(draw(i, 5, lanes, size) for i in range(3))
    starts = draw(4, lanes, size)
    agree(adjoint, weights_of(size), starts, entries, Walk(reverse=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lanes", [1, 5])
def test_layouts_and_the_last_state(lanes, reverse):
    weights, starts = weights_of(3), draw(1, lanes, 3)
    entries = draw(2, 6, lanes, 3)
    expected = by_scan(fused_gru, weights, starts, entries, reverse)

    def run(entries, walk):
        return roll_out_lanes(fused_gru, weights, starts, entries, walk, interpret=True)

    across = jnp.swapaxes(entries, 0, 1)
    found = run(across, Walk(reverse=reverse, time_axis=1))
    np.testing.assert_allclose(jnp.swapaxes(found, 0, 1), expected, atol=1e-6)
    last = run(entries, Walk(keep="last", reverse=reverse))
    np.testing.assert_allclose(last, expected[0 if reverse else -1], atol=1e-6)


def test_several_leaves_and_integers():
    table = draw(0, 4, 3)

    def step(table, x, entry):
        u, (symbol, is_on) = entry
        return jnp.where(is_on, jnp.sin(x + u[0] * u[1]) + table[symbol], x) * symbol

    rng = np.random.default_rng(3)
    symbols = jnp.asarray(rng.integers(0, 4, (6, 5)))
    on = jnp.asarray(rng.integers(0, 2, (6, 5)).astype(bool))
    entries = draw(1, 6, 5, 2), (symbols, on)
    # The look-up has no rule in registers, but does not wait for the state.
    assert why_not(step, table, draw(2, 5, 3), entries) is None
    agree(step, table, draw(2, 5, 3), entries, atol=1e-3)


def test_random_numbers_of_the_inputs_run_ahead():
    keys = jax.random.split(jax.random.key(0), (4, 2))

    def step(_, x, key):
        return 0.5 * x + jax.random.normal(key, x.shape)

    agree(step, (), draw(1, 2, 3), keys)


def moves(matrix, x, u):
    m = x.reshape(2, 3)
    y = (m + u[:, None]).T.reshape(3, 2) * matrix
    z = jnp.concatenate([y[:, 0], y[::-1, 1]])
    z = jnp.pad(z[::2], (1, 2)) + jnp.flip(z) + jax.lax.dynamic_slice(z, (0,), (6,))
    return z / (1 + jnp.abs(z).sum()) + jnp.stack([x[2], x[0]]).repeat(3)


def reductions(_, x, u):
    y = jax.nn.softmax(x) + (x - x.mean()) / jnp.sqrt(x.var() + 1e-3)
    y = jnp.where((x > u).any() & ~(x > 2).all(), y, -y)
    return jnp.clip(y + x.min() - x.max(), -1, 2) + (x @ x) * x / (1 + x @ x) ** 2


def bilinear(tensor, x, u):
    outer = x[:, None] * x[None, :]
    weights = jnp.einsum("ijk,k->ij", tensor, u)
    return jnp.tanh(
        weights @ x + outer @ u + jnp.einsum("hij,hj->hi", tensor, outer)[0]
    )


def indexed(_, x, u):
    y = x.at[0].set(x[1]).at[-1].add(2.0).at[1:3].multiply(u)
    return jnp.tanh(y.at[2].set(0.0) + jnp.zeros(4).at[3].set(x[0]))


def test_known_indices():
    agree(indexed, (), draw(1, 3, 4), draw(2, 5, 3))

    def pulled(_, w, entry):
        return jax.vjp(lambda x: indexed(_, x, entry[1]), entry[0])[1](w)[0]

    agree(pulled, (), draw(1, 3, 4), (draw(3, 5, 3, 4), draw(2, 5, 3)))


def test_moves():
    agree(moves, draw(0, 3, 2), draw(1, 3, 6), draw(2, 5, 3, 2))


def test_reductions():
    agree(reductions, (), draw(1, 3, 5), draw(2, 5, 3))


def test_products_of_what_differs_between_lanes():
    agree(bilinear, draw(0, 3, 3, 3), draw(1, 2, 3), draw(2, 5, 2, 3))


def test_custom_rules_are_called_through():
    @jax.custom_jvp
    def own_jvp(x):
        return jnp.sin(x)

    own_jvp.defjvp(lambda p, t: (own_jvp(*p), t[0]))

    @jax.custom_vjp
    def own_vjp(x):
        return jax.jit(jnp.cos)(x)

    own_vjp.defvjp(lambda x: (own_vjp(x), None), lambda _, t: (t,))

    def step(_, x, u):
        return jax.checkpoint(own_jvp)(x) + own_vjp(u)

    agree(step, (), draw(1, 2, 3), draw(2, 4, 2, 3))


def substeps(_, x, u):
    def slope(x):
        return jnp.stack([x[1], (1 - x[0] ** 2) * x[1] - x[0] + u[0]])

    def runge_kutta(i, x):
        k = slope(x)
        k = slope(x + 0.05 * k) * u[i % 2]
        return jax.lax.cond(x[0] > 0, lambda: x + 0.1 * k, lambda: x + 0.1 * jnp.sin(k))

    return jax.lax.fori_loop(0, 3, runge_kutta, x)


def test_short_loops_and_branches_are_written_out():
    agree(substeps, (), draw(1, 3, 2), draw(2, 6, 3, 2))

    def powers(_, x, u):
        y, ys = jax.lax.scan(lambda y, v: (y * v + u, y), x, x[:2], reverse=True)
        return jnp.tanh(y + ys[0] - ys[1])

    agree(powers, (), draw(1, 3, 2), draw(2, 6, 3, 2))


def test_a_recurrence_of_the_library():
    def step(state, u):
        h, (count, c) = state
        h = fused(weights)(h, u) * c / (1 + count % 2)
        return h, (count + 1, jnp.tanh(c + h.mean()))

    weights, inputs = weights_of(3), draw(2, 9, 3)
    problem = canonicalize(step, (jnp.ones(3), (0, jnp.float32(0.5))), inputs)
    entries = jax.tree.map(lambda x: x[:, None], problem.inputs)
    assert isinstance(problem.function, HoistedFunction)
    agree(problem.function, problem.consts, problem.initial[None], entries)


@pytest.mark.parametrize("step", [lambda _, x, u: u, lambda c, x, u: c])
def test_a_step_that_ignores_the_state(step):
    agree(step, draw(0, 3), draw(1, 2, 3), draw(2, 4, 2, 3))


def test_a_step_that_is_a_number():
    agree(lambda *_: jnp.zeros(3), (), draw(1, 2, 3), draw(2, 4, 2, 3))


def test_what_is_not_a_number_is_seen():
    def step(_, x, u):
        return jnp.maximum(x, 0.0) + jax.nn.relu(jnp.max(x)) + jnp.minimum(x, 1.0) + u

    starts = jnp.asarray([[1.0, 2.0], [1.0, jnp.nan]])
    found = roll_out_lanes(step, (), starts, jnp.zeros((3, 2)), interpret=True)
    assert np.isfinite(found[:, 0]).all()
    assert np.isnan(found[:, 1]).all()


def test_entries_beyond_the_state_do_not_leak_into_sums():
    def step(weights, x, u):  # log of what fills up a tile is not finite
        return jnp.log(x).sum() * 0.1 + weights @ jnp.log(x) * 0.1 + u + 3.0

    starts = jnp.ones((2, 5))
    agree(step, jnp.eye(5), starts, jnp.ones((4, 2, 5)), atol=1e-5)


def test_under_vmap_and_jit():
    weights = jnp.stack([weights_of(3), 0.5 * weights_of(3)])
    starts, entries = draw(1, 2, 7, 3), draw(2, 2, 4, 7, 3)

    def run(weights, starts, entries):
        return roll_out_lanes(fused_gru, weights, starts, entries, interpret=True)

    found = jax.jit(jax.vmap(run))(weights, starts, entries)
    for i in range(2):
        expected = by_scan(fused_gru, weights[i], starts[i], entries[i])
        np.testing.assert_allclose(found[i], expected, atol=1e-6)
    shared = jax.vmap(run, (None, 0, None))(weights[0], starts, entries[0])
    expected = by_scan(fused_gru, weights[0], starts[1], entries[0])
    np.testing.assert_allclose(shared[1], expected, atol=1e-6)


def test_a_platform_without_the_compiler_takes_the_other_branch():
    weights, starts, entries = weights_of(3), draw(1, 2, 3), draw(2, 4, 2, 3)

    @jax.jit
    def run(*operands):
        def kernel(*operands):
            return roll_out_lanes(fused_gru, *operands)

        def loop(*operands):
            return by_scan(fused_gru, *operands)

        return jax.lax.platform_dependent(*operands, cuda=kernel, default=loop)

    expected = by_scan(fused_gru, weights, starts, entries)
    np.testing.assert_allclose(run(weights, starts, entries), expected, atol=1e-6)
    many = [jnp.stack([x, x]) for x in (weights, starts, entries)]
    np.testing.assert_allclose(jax.vmap(run)(*many)[1], expected, atol=1e-6)


def test_it_is_not_differentiated():
    weights, starts, entries = weights_of(2), draw(1, 2, 2), draw(2, 3, 2, 2)

    def total(starts, scale=1.0):
        found = roll_out_lanes(fused_gru, weights, starts, entries, interpret=True)
        return scale * found.sum()

    with pytest.raises(ValueError, match="no derivative"):
        jax.grad(total)(starts)
    # Other derivatives pass it by.
    beside = jax.grad(lambda s: total(jax.lax.stop_gradient(starts), s))(2.0)
    np.testing.assert_allclose(beside, total(starts), rtol=1e-6)


def test_a_launch_by_hand_changes_nothing():
    walk = Walk(launch=Launch(4, 2))
    agree(fused_gru, weights_of(3), draw(1, 6, 3), draw(2, 4, 6, 3), walk)


def test_the_number_of_steps_is_one_number():
    starts = draw(1, 2, 3)
    with pytest.raises(ValueError, match="number of steps"):
        roll_out_lanes(lorenz, jnp.ones(3), starts, None, interpret=True)
    walk = Walk(keep="first", steps=3)
    with pytest.raises(ValueError, match="keep is"):
        roll_out_lanes(lorenz, jnp.ones(3), starts, None, walk, interpret=True)


REFUSED = {
    "sort": lambda c, x, u: jnp.sort(x),
    "gather": lambda c, x, u: x[u.astype(int)],
    "dynamic_slice begins": lambda c, x, u: x[u.astype(int)[0]] * x,
    "while": lambda c, x, u: jax.lax.while_loop(lambda y: y[0] < 1, lambda y: y + 1, x),
    "lu": lambda c, x, u: jnp.linalg.solve(c + x[0], x),
    "cumsum": lambda c, x, u: jnp.cumsum(x),
    "callback": lambda c, x, u: jax.pure_callback(np.sin, x, x),
    "debug": lambda c, x, u: (jax.debug.print("{}", u), x)[1],
    "scan": lambda c, x, u: jax.lax.fori_loop(0, 99, lambda i, y: y * y, x),
    "bfloat16": lambda c, x, u: x.astype(jnp.bfloat16).astype(x.dtype),
    "turns": lambda c, x, u: x[:2],
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_has_no_rule_is_named(word):
    arguments = jnp.eye(3), draw(1, 2, 3), draw(2, 4, 2, 3)
    assert word in why_not(REFUSED[word], *arguments)
    with pytest.raises(ValueError, match=word):
        roll_out_lanes(REFUSED[word], *arguments)


@pytest.mark.parametrize(
    ("step", "size", "word"),
    [
        (lambda c, x, u: jnp.tanh(x @ c), 512, "registers"),
        (lorenz_96, 200, "tiles"),
        (lorenz_96, 2000, "parts"),
    ],
)
def test_sizes_that_do_not_fit_are_named(step, size, word):
    consts = jax.ShapeDtypeStruct((size, size), jnp.float32)
    starts = jax.ShapeDtypeStruct((2, size), jnp.float32)
    entries = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    assert word in why_not(step, consts, starts, entries)
