"""Converged means a small error, also where a residual or a step would not tell.

The oracle is `lax.scan`. An error may be ten tolerances, of the size that the state has
had within the last 64 steps, times what the recurrence makes of one such error.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

METHODS = {
    "default": None,
    "newton": elk.auto(strategy="newton"),
    "short blocks": elk.auto(strategy="short_blocks"),
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "jacobi": elk.jacobi(),
    "picard": elk.picard(),
    "elk": elk.elk(1e2),
    "quasi_elk": elk.quasi_elk(1e2),
    "smoother": elk.elk(1e4, estimate="smoother"),
    "blocks": elk.quasi_deer(block_size=16),
    "gated blocks": elk.deer(block_size=8, gate=elk.Gate()),
}
every_method = pytest.mark.parametrize("name", METHODS)
some_methods = pytest.mark.parametrize(
    "name",
    ["default", "newton", "short blocks", "deer", "quasi_deer", "jacobi", "blocks"],
)
TOLERANCE = 1e-5


def local_size(states):
    """Largest magnitude within the last 64 steps, per dimension."""
    size = np.abs(states)
    for _ in range(64):
        size[1:] = np.maximum(size[1:], size[:-1])
    return size


def check(f, start, inputs, method, reference, *, tol=TOLERANCE, growth=1.0, **options):
    sol = elk.evaluate(f, start, inputs, method=method, tol=tol, **options)
    expected = np.asarray(reference(f, start, inputs, options.get("length")))
    assert elk.Status(int(sol.status)) == elk.Status.converged
    bound = 10 * tol * growth * local_size(expected.copy())
    assert np.all(np.abs(sol.states - expected) <= bound)
    return sol


def noise(length, seed=0):
    drawn = np.random.default_rng(seed).normal(size=length)
    return jnp.asarray(drawn, jnp.zeros(()).dtype)


@every_method
def test_a_small_dimension_beside_a_large_one(name, reference):
    def f(x, v):
        return jnp.stack([0.5 * x[0] + 1e6 * v, x[1] + 1e-4])

    length = 2400 if name == "default" else 300
    check(f, jnp.zeros(2), noise(length), METHODS[name], reference)


@pytest.mark.parametrize("name", ["default", "quasi_deer", "blocks"])
def test_leaves_in_other_units(name, reference):
    def f(state, v):
        age, pressure = state
        return age + 1e-3 * jnp.tanh(v), 0.8 * pressure + 1e5 * (1 + 0.1 * v)

    def flat(x, v):
        return jnp.stack(f((x[0], x[1]), v))

    start, inputs = (jnp.asarray(1.0), jnp.asarray(5e5)), noise(2400)[:300]
    if name == "default":
        inputs = noise(2400)
    sol = elk.evaluate(f, start, inputs, method=METHODS[name], tol=TOLERANCE)
    expected = np.asarray(reference(flat, jnp.stack(start), inputs))
    found = np.stack(sol.states, axis=1)
    assert np.all(np.abs(found - expected) <= 10 * TOLERANCE * local_size(expected))


@every_method
@pytest.mark.parametrize("place", [0, 150, -1, None])
def test_an_outlier_loosens_nothing_else(name, place, reference):
    length = 2400 if name == "default" else 300
    inputs, start = noise(length), jnp.zeros(1)
    if place is None:
        start = start + 1e6
    else:
        inputs = inputs.at[place].set(1e6)
    check(lambda x, v: 0.8 * x + v, start, inputs, METHODS[name], reference)


# ------------------------------------------------- small residuals that add up

INEXACT = {
    "floor": (lambda x, v: jnp.floor(x) + 1, 2e5),
    "stopped": (lambda x, v: jax.lax.stop_gradient(x) + 1e-3 * v, 1.0),
    "sign": (lambda x, v: x + 5e-6 * jnp.sign(x), 1.0),
    "rounded": (lambda x, v: jnp.round(x * 1e5) / 1e5 * (1 - 2**-18), 3.0),
    "drift": (lambda x, v: x + 3e-6, 1.0),
    "decay": (lambda x, v: (1 - 3e-6) * x, 1.0),
    "roll": (lambda x, v: (1 - 5e-6) * jnp.roll(x, 1), 1.0),
}


def inexact(which):
    """Any of them, chosen by a number, so that one program serves all."""
    which = jnp.asarray(which)
    branches = [f for f, _ in INEXACT.values()]
    return lambda x, v: jax.lax.switch(which, branches, x, v)


@pytest.mark.parametrize("problem", INEXACT)
@some_methods
def test_residuals_that_add_up(name, problem, reference):
    f, start = inexact(list(INEXACT).index(problem)), INEXACT[problem][1]
    length = 2400 if name == "default" else 600
    inputs = noise(length)[:, None]
    check(f, jnp.full(3, start), inputs, METHODS[name], reference)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_user_jacobians_that_are_wrong(factor, reference):
    factor = jnp.asarray(factor)
    stand_in = elk.UserJacobian(lambda x, u: factor * jnp.ones_like(x))
    method = elk.quasi_deer(linearization=stand_in)
    for gain in jnp.asarray([0.999, 1.0, 0.5]):
        check(
            lambda x, v, gain=gain: gain * x + 1e-3 * v,
            jnp.ones(2),
            noise(400)[:, None],
            method,
            reference,
        )


def test_drifts_below_a_tenth_of_a_loose_tolerance(reference):
    def f(x, v):
        return jnp.stack([0.5 * x[0] + v, x[1] + 1e-5])

    start = jnp.ones(2)
    check(f, start, noise(20_000), None, reference, tol=1e-2)


def test_large_states_that_do_not_contract(reference):
    # Above 64 dimensions the Newton strategy takes no Jacobian.
    sol = check(
        lambda x, v: (1 - 3e-7) * x,
        jnp.ones(65),
        None,
        METHODS["newton"],
        reference,
        length=20_000,
    )
    assert float(sol.states[-1, 0]) == pytest.approx((1 - 3e-7) ** 20_000, abs=1e-4)


@pytest.mark.parametrize("name", ["default", "newton", "quasi_deer"])
def test_growth_that_comes_late(name, reference):
    gain = np.repeat([0.5, 1.0, 2.0, 0.5], [1000, 1000, 110, 290])
    offset = np.where(gain == 1, 0.01, 0.1)
    inputs = tuple(jnp.asarray(x, jnp.zeros(()).dtype) for x in (gain, offset))
    # Within the growing part one error becomes larger with the state: no allowance.
    check(lambda x, u: u[0] * x + u[1], jnp.zeros(1), inputs, METHODS[name], reference)


def test_what_forgets_pays_no_pass_for_it(problem, reference):
    """Trying the nodes out refuses none of them where the recurrence contracts."""
    cell = problem("gru", 300)
    for method in (elk.deer(), elk.quasi_deer(), elk.jacobi()):
        sol = elk.evaluate(*cell, method=method, history=60)
        last = int(sol.num_iters) - 1
        steps = np.asarray(sol.history.step_norm)[:last]
        assert np.all(steps > TOLERANCE)


# ------------------------------------------------- signed zeros


@pytest.mark.parametrize("name", ["deer", "quasi_deer", "jacobi", "blocks", "newton"])
def test_zeros_keep_their_signs(name, reference):
    def f(x, v):
        return jnp.arctan2(x, -1.0)

    start = jnp.asarray([-0.0, 0.0])
    sol = elk.evaluate(f, start, length=40, method=METHODS[name])
    expected = reference(f, start, None, 40)
    assert expected[0].tolist() == pytest.approx([-np.pi, np.pi])
    np.testing.assert_allclose(sol.states, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["jacobi", "deer", "quasi_deer"])
def test_a_negative_zero_in_the_middle(name, reference):
    def f(x, v):
        return jnp.stack([v * jnp.abs(x[0]), jnp.copysign(1.0, x[0])])

    inputs = jnp.asarray([1.0, 0.0, -0.0, 1.0, -1.0, 1.0])
    start = jnp.zeros(2)
    sol = elk.evaluate(f, start, inputs, method=METHODS[name])
    expected = reference(f, start, inputs)
    assert np.array_equal(np.signbit(sol.states), np.signbit(expected))
    np.testing.assert_array_equal(sol.states, expected)


@pytest.mark.parametrize("name", ["deer", "quasi_deer", "gated blocks"])
def test_what_is_below_rounding_and_goes_one_way(name):
    # A step adds one unit in the last place, which no residual tells from rounding; the
    # sequential trajectory ends 16 tolerances away from its start.
    def f(x, _):
        seen = 0.5 * x + jax.lax.stop_gradient(0.5 * x)
        return seen + 4.873e-6

    start = jnp.full(1, 58.555277)
    sol = elk.evaluate(f, start, length=2_500, method=METHODS[name], max_iters=1_500)
    true = jax.lax.scan(lambda x, _: (f(x, None),) * 2, start, None, length=2_500)[0]
    assert sol.status == elk.Status.converged
    np.testing.assert_allclose(sol.states[-1], true, rtol=10 * TOLERANCE)


@pytest.mark.parametrize("block_size", [1, 16])
def test_rounding_that_cancels_costs_no_pass(block_size):
    # A walk to 200 and back through zero, where sizes are small, rounding is not.
    inputs = np.random.default_rng(0).normal(size=(20_000, 2))
    sol = elk.evaluate(
        lambda x, u: x + u,
        jnp.ones(2),
        jnp.asarray(inputs, jnp.float32),
        method=elk.deer(block_size=block_size),
    )
    assert sol.status == elk.Status.converged
    assert sol.num_iters <= 3
