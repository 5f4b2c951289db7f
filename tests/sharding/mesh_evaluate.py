"""`evaluate` and `scan` with time sharded over eight devices; see `test_on_a_mesh`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import elk_ssm as elk

D, P_ = 3, 8
# Forty steps divide by the eight devices; of forty-two the last device has none.
EVEN, UNEVEN = 40, 42
# Rounding of two different programs, amplified by a recurrence that contracts.
CLOSE = 1e-11

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def mesh():
    devices = np.array(jax.devices())
    assert len(devices) == P_
    return Mesh(devices, ("time",))


def draw(length):
    rng = np.random.default_rng(0)
    W = jnp.asarray(1.2 * rng.normal(size=(D, D)) / D**0.5)
    return W, jnp.asarray(rng.normal(size=D)), jnp.asarray(rng.normal(size=(length, D)))


def recurrence(W):
    return lambda x, u: jnp.tanh(W @ x + u)


def scanned(step, x0, inputs, length=None):
    def body(x, u):
        x = step(x, u)
        return x, x

    return jax.lax.scan(body, x0, inputs, length=length)[1]


CASES = {
    "deer": (elk.deer(), EVEN),
    "quasi_deer": (elk.quasi_deer(), UNEVEN),
    "elk filter": (elk.elk(10.0), UNEVEN),
    "elk smoother": (elk.elk(10.0, estimate="smoother"), EVEN),
    "quasi_elk smoother": (elk.quasi_elk(10.0, estimate="smoother"), UNEVEN),
    "picard": (elk.picard(), UNEVEN),
    "anderson": (elk.picard(anderson=2), UNEVEN),
    "jacobi": (elk.jacobi(), EVEN),
    "blocks": (elk.deer(block_size=4, gate=elk.Gate()), UNEVEN),
    "auto": (elk.auto(block_size=3), EVEN),
    "gain ratio": (elk.quasi_elk(elk.GainRatio()), UNEVEN),
    "residual": (elk.quasi_elk(elk.ResidualProportional()), UNEVEN),
    "per step": (elk.quasi_elk(elk.PerStep(jnp.arange(1.0, UNEVEN + 1))), UNEVEN),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sharded_solve_is_the_trajectory(mesh, name):
    method, length = CASES[name]
    W, x0, inputs = draw(length)
    sol = elk.evaluate(recurrence(W), x0, inputs, method=method, mesh=mesh)
    assert int(sol.status) == elk.Status.converged
    expected = scanned(recurrence(W), x0, inputs)
    np.testing.assert_allclose(sol.states, expected, atol=CLOSE)
    if length == EVEN:
        assert sol.states.sharding.spec[0] == "time"


def test_padding_changes_neither_the_iterations_nor_what_they_see(mesh):
    W, x0, inputs = draw(UNEVEN)
    method = elk.quasi_elk(elk.PerStep(jnp.arange(1.0, UNEVEN + 1)))
    options = {"method": method, "history": UNEVEN, "tol": 1e-6}
    sharded = elk.evaluate(recurrence(W), x0, inputs, mesh=mesh, **options)
    local = elk.evaluate(recurrence(W), x0, inputs, **options)
    assert int(sharded.num_iters) == int(local.num_iters) < UNEVEN
    np.testing.assert_allclose(sharded.states, local.states, atol=CLOSE)
    for found, expected in zip(sharded.history, local.history):
        # Residuals fall to zero, where only their rounding is left to compare.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-13)


def test_gradients_equal_those_of_the_scan(mesh):
    for method, length in (
        (elk.deer(), UNEVEN),
        (elk.quasi_deer(), EVEN),
    ):
        problem = draw(length)

        def loss(W, x0, inputs, run):
            return jnp.sum(run(recurrence(W), x0, inputs) ** 3)

        def sharded(*args, method=method):
            return elk.evaluate(*args, method=method, mesh=mesh).states

        find = jax.grad(loss, argnums=(0, 1, 2))
        for found, expected in zip(find(*problem, sharded), find(*problem, scanned)):
            np.testing.assert_allclose(found, expected, atol=CLOSE)


def test_boundaries_alone_and_the_last_state_with_their_gradients(mesh):
    W, x0, inputs = draw(EVEN)
    method = elk.deer(block_size=5)

    def last(W, run):
        return jnp.sum(run(recurrence(W), x0, inputs) ** 3)

    def kept(*args):
        return elk.evaluate(*args, method=method, keep="last", mesh=mesh).states

    found = jax.value_and_grad(last)(W, kept)
    expected = jax.value_and_grad(last)(W, lambda *args: scanned(*args)[-1])
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=CLOSE)
    with pytest.raises(ValueError, match="multiple of 8 devices times blocks of 4"):
        elk.evaluate(
            recurrence(W),
            x0,
            inputs,
            method=elk.deer(block_size=4),
            keep="boundaries",
            mesh=mesh,
        )


def test_steps_past_the_end_touch_nothing(mesh):
    # x_t^2 = x_0^2 - t: the next step after the last is outside the domain of f.
    length = 10
    x0 = jnp.asarray([length + 0.5]) ** 0.5

    def step(x, _):
        return jnp.sqrt(x**2 - 1)

    def last(x0, run):
        return run(x0)[-1, 0]

    def sharded(x0):
        options = {"length": length, "method": elk.deer(), "mesh": mesh}
        sol = elk.evaluate(step, x0, **options)
        return elk.raise_if_failed(sol).states if _concrete(x0) else sol.states

    np.testing.assert_allclose(last(x0, sharded), 0.5**0.5, rtol=1e-12)
    slope = jax.grad(last)(x0, sharded)
    np.testing.assert_allclose(slope, x0 / 0.5**0.5, rtol=1e-12)


def _concrete(x):
    return not isinstance(x, jax.core.Tracer)


def test_a_break_is_found_where_it_is(mesh):
    W, x0, inputs = draw(EVEN)
    inputs = inputs.at[17, 1].set(jnp.nan)
    sol = elk.evaluate(recurrence(W), x0, inputs, method=elk.deer(), mesh=mesh)
    assert int(sol.status) == elk.Status.nonfinite
    assert int(sol.failed_step) == 17
    expected = scanned(recurrence(W), x0, inputs)[:17]
    np.testing.assert_allclose(sol.states[:17], expected, atol=CLOSE)
    alone = elk.evaluate(recurrence(W), x0, inputs, method=elk.deer())
    np.testing.assert_allclose(sol.states, alone.states, atol=CLOSE)


def test_a_batch_is_sharded_over_its_own_axis():
    devices = np.array(jax.devices()).reshape(2, 4)
    mesh = Mesh(devices, ("batch", "time"))
    W, _, inputs = draw(EVEN)
    x0s = jnp.asarray([[0.1, 0.2, 0.3], [0.3, -0.1, 0.0]])
    batch = jnp.stack([inputs, 1 - inputs])
    sharded = jax.device_put(batch, NamedSharding(mesh, P("batch", "time")))

    def one(x0, u):
        return elk.evaluate(recurrence(W), x0, u, method=elk.quasi_deer(), mesh=mesh)

    sol = jax.jit(jax.vmap(one))(x0s, sharded)
    assert sol.status.tolist() == [0, 0]
    assert sol.states.sharding.spec[:2] == ("batch", "time")
    expected = jax.vmap(lambda x0, u: scanned(recurrence(W), x0, u))(x0s, batch)
    np.testing.assert_allclose(sol.states, expected, atol=CLOSE)


def test_explicit_axes_are_used_as_auto_ones_or_refused(mesh):
    explicit = jax.make_mesh((P_,), ("time",), axis_types=(AxisType.Explicit,))
    W, x0, inputs = draw(EVEN)
    placed = jax.device_put(inputs, NamedSharding(explicit, P("time")))

    def run(W, inputs):
        options = {"method": elk.quasi_deer(), "mesh": explicit}
        return elk.evaluate(recurrence(W), x0, inputs, **options).states

    expected = scanned(recurrence(W), x0, inputs)
    np.testing.assert_allclose(run(W, placed), expected, atol=CLOSE)
    with pytest.raises(ValueError, match="closes over an array on a mesh with Expl"):
        run(jax.device_put(W, NamedSharding(explicit, P())), inputs)
    with pytest.raises(ValueError, match="traced array lives on a mesh with Explicit"):
        jax.jit(run)(W, placed)
    with jax.set_mesh(explicit), pytest.raises(ValueError, match="inside jax"):
        run(W, inputs)


def test_scan_is_the_scan_also_when_the_iteration_is_cut_off(mesh):
    W, x0, inputs = draw(UNEVEN)

    def step(x, u):
        after = recurrence(W)(x, u)
        return after, x + after

    carry, ys = jax.lax.scan(step, x0, inputs, reverse=True)
    found = elk.scan(
        step, x0, inputs, reverse=True, method=elk.jacobi(), max_iters=2, mesh=mesh
    )
    np.testing.assert_allclose(found[0], carry, atol=CLOSE)
    np.testing.assert_allclose(found[1], ys, atol=CLOSE)


class Own:
    """A noise policy that is not the library's."""

    can_reject = False

    def init(self, shape, dtype):
        return jnp.ones((), dtype)

    def noise(self, state):
        return state

    def update(self, state, seen):
        return state, jnp.asarray(True)


@jax.tree_util.register_static
class Shared(Own):
    """The same, and it says that devices may share it."""

    shardable = True

    def update(self, state, seen):
        return state * (1 + seen.mean_square), jnp.asarray(True)


def test_a_policy_of_the_users_own_may_be_sharded(mesh):
    W, x0, inputs = draw(EVEN)
    method = elk.quasi_elk(Shared())
    found = elk.evaluate(recurrence(W), x0, inputs, method=method, mesh=mesh)
    alone = elk.evaluate(recurrence(W), x0, inputs, method=method)
    assert int(found.num_iters) == int(alone.num_iters)
    np.testing.assert_allclose(found.states, alone.states, atol=CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis_name": "space"}, "axis of the mesh, one of 'time'"),
        ({"adjoint": "sequential"}, "one device after the other"),
        ({"method": elk.auto(strategy="forgetful")}, "newton"),
        ({"method": elk.elk(Own())}, "noise policy must look at"),
    ],
)
def test_options_that_make_no_sense_are_refused(mesh, options, message):
    W, x0, inputs = draw(EVEN)
    with pytest.raises(ValueError, match=message):
        elk.evaluate(recurrence(W), x0, inputs, **{"mesh": mesh, **options})


def test_what_is_no_mesh_and_a_counter_in_the_state_are_refused(mesh):
    W, x0, inputs = draw(EVEN)
    with pytest.raises(TypeError, match=r"jax\.sharding\.Mesh or None; got list"):
        elk.evaluate(recurrence(W), x0, inputs, mesh=jax.devices())
    with pytest.raises(ValueError, match="must be floating point"):
        elk.evaluate(
            lambda s, u: (0.5 * s[0] + u, s[1] + 1), (x0, 0), inputs, mesh=mesh
        )


def test_forced_by_data_that_are_sharded_already(mesh):
    W, x0, data = draw(EVEN)
    g = elk.forced(lambda x, _: jnp.tanh(W @ x), 0.5)
    spread = jax.device_put(data, NamedSharding(mesh, P("time")))
    pairs = g.inputs(x0, spread)
    assert pairs[0].sharding.is_equivalent_to(spread.sharding, 2)
    found = elk.evaluate(g, x0, pairs, method=elk.quasi_deer(), mesh=mesh).states
    expected = elk.sequential(g, x0, g.inputs(x0, data)).states
    np.testing.assert_allclose(found, expected, atol=CLOSE)
