"""Anderson acceleration: the same trajectory, in fewer passes, by causal mixing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.parallel.time_axis import LOCAL
from elk_ssm.solve.anderson import Anderson, mix, remember_nothing

T = 300
MIXED = elk.picard(anderson=4)


def pendulum(x, force):
    """A midpoint step of a pendulum, far from a contraction."""

    def slope(x):
        return jnp.stack([x[1], -jnp.sin(x[0]) + force])

    return x + 0.02 * slope(x + 0.01 * slope(x))


@pytest.fixture
def driven(x64):
    rng = np.random.default_rng(0)
    return jnp.asarray([1.0, 0.5]), jnp.asarray(0.1 * rng.normal(size=T))


def test_fewer_passes_to_the_same_trajectory(driven):
    expected = elk.sequential(pendulum, *driven).states
    passes = []
    for method in (elk.picard(), MIXED):
        sol = elk.evaluate(pendulum, *driven, method=method)
        assert sol.status == elk.Status.converged
        np.testing.assert_allclose(sol.states, expected, atol=1e-11)
        passes.append(int(sol.num_iters))
    assert passes[1] <= 0.75 * passes[0]


def mixed_run(steps_of, nodes, passes, anderson):
    """Iterate `nodes + mixed step` of a plain function, outside of the loop."""
    memory, found = remember_nothing(anderson, nodes), [nodes]
    for _ in range(passes):
        step, memory = mix(anderson, memory, found[-1], steps_of(found[-1]), LOCAL)
        found.append(found[-1] + step)
    return found


def dense_oracle(steps_of, nodes, passes, memory):
    """The same by dense least squares for every node, in NumPy."""
    xs, gs = [np.asarray(nodes)], []
    for _ in range(passes):
        gs.append(np.asarray(steps_of(xs[-1])))
        new = xs[-1] + gs[-1]
        changes = range(max(1, len(gs) - memory), len(gs))
        if len(changes):
            dx = np.stack([xs[i] - xs[i - 1] for i in changes])
            dg = np.stack([gs[i] - gs[i - 1] for i in changes])
            for k in range(len(nodes)):
                past = dg[:, : k + 1].reshape(len(changes), -1).T
                aim = gs[-1][: k + 1].reshape(-1)
                share = np.linalg.lstsq(past, aim, rcond=None)[0]
                new[k] -= share @ (dx + dg)[:, k]
        xs.append(new)
    return xs


def test_the_shares_are_those_of_least_squares_up_to_each_node(x64):
    rng = np.random.default_rng(1)
    lower = np.tril(rng.normal(size=(5, 5))) / 2
    start = jnp.asarray(rng.normal(size=(5, 3)))

    def steps_of(x):
        return jnp.tanh(lower @ x) - x

    anderson = Anderson(2, ridge=1e-14)
    found = mixed_run(steps_of, start, 4, anderson)
    for ours, theirs in zip(found, dense_oracle(steps_of, start, 4, 2)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_future_does_not_change_the_past(driven):
    start, force = driven
    later = force.at[200:].add(5.0)
    one, other = (
        elk.iterates(pendulum, start, u, num_iters=6, method=MIXED)
        for u in (force, later)
    )
    np.testing.assert_array_equal(one[:, :200], other[:, :200])
    assert abs(one[-1] - other[-1]).max() > 0.1


def test_what_is_exact_stays_exact(driven):
    start, force = driven
    force = force[:8]
    expected = elk.sequential(pendulum, start, force).states
    found = elk.iterates(pendulum, start, force, num_iters=8, method=MIXED)
    for k in range(1, 9):
        np.testing.assert_allclose(found[k, :k], expected[:k], rtol=1e-14)
        np.testing.assert_array_equal(
            found[k:, : k - 1], found[k, : k - 1][None].repeat(9 - k, 0)
        )


def test_a_runaway_iterate_is_caught():
    # Over this horizon Picard's iterates overflow before they come back.
    def f(x, _):
        slope = jnp.stack([x[1], 4 * (1 - x[0] ** 2) * x[1] - x[0]])
        return x + 0.02 * slope

    start = jnp.asarray([2.0, 0.0])
    sol = elk.evaluate(f, start, length=T, method=MIXED)
    assert sol.status == elk.Status.converged
    expected = elk.sequential(f, start, length=T).states
    np.testing.assert_allclose(sol.states, expected, atol=1e-3)


@pytest.mark.parametrize(
    "method",
    [
        elk.picard(anderson=3, block_size=10),
        elk.picard(anderson=3, gate=elk.Gate()),
        elk.quasi_deer(anderson=Anderson(3)),
    ],
    ids=["blocks", "gate", "quasi_deer"],
)
def test_other_parts_go_with_it(method, driven):
    sol = elk.evaluate(pendulum, *driven, method=method)
    assert sol.status == elk.Status.converged
    expected = elk.sequential(pendulum, *driven).states
    np.testing.assert_allclose(sol.states, expected, atol=1e-11)


def test_batches_and_gradients(driven, close):
    start, force = driven
    starts = jnp.stack([start, -start])

    def loss(solve):
        def run(start, force):
            return jnp.sum(jnp.sin(solve(start, force)))

        return jax.jit(jax.vmap(jax.value_and_grad(run, 1), (0, None)))(starts, force)

    def mixed(start, force):
        return elk.evaluate(pendulum, start, force, method=MIXED).states

    def scanned(start, force):
        return elk.sequential(pendulum, start, force).states

    close(loss(mixed), loss(scanned), atol=1e-9)


def test_the_ridge_is_data(driven):
    def passes(ridge):
        method = elk.picard(anderson=Anderson(4, ridge=ridge))
        return elk.evaluate(pendulum, *driven, method=method).num_iters

    found = jax.jit(jax.vmap(passes))(jnp.asarray([1e-8, 1e6]))
    # An endless ridge mixes nothing.
    assert found[1] == elk.evaluate(pendulum, *driven, method=elk.picard()).num_iters
    assert found[0] < found[1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: elk.picard(anderson=0), ValueError, "positive number of passes"),
        (lambda: elk.picard(anderson=2.5), ValueError, "positive number of passes"),
        (lambda: elk.quasi_deer(anderson=3), TypeError, "elk.Anderson"),
        (lambda: elk.picard(anderson=3, noise=elk.Constant(1.0)), ValueError, "damps"),
    ],
)
def test_mistakes_are_explained(make, error, message):
    with pytest.raises(error, match=message):
        make()
