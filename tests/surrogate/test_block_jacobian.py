"""Blocks of the Jacobian: what they are, and what a method makes of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm._recurrence import canonicalize
from elk_ssm.interop import cells

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(3, 3))
T = 60


def swing(state, u):
    """Pendulums with a common push: (q_i, p_i) of each act on each other alone."""
    p = state["p"] - 0.3 * jnp.sin(state["q"]) + u
    return {"q": state["q"] + 0.3 * p, "p": 0.95 * p}


def mixing(state, u):
    """A sampler's state: a position, a number, and a slope."""
    x, level, slope = state
    x = 0.5 * x + 0.1 * jnp.tanh(jnp.asarray(WEIGHTS) @ slope) * jnp.tanh(level) + u
    return x, jnp.sum(x**2), -2 * x


def units(x, u):
    """Two units of two entries side by side, and nothing between them."""
    pairs = x.reshape(2, 2)
    a, b = pairs[:, 0], pairs[:, 1]
    return jnp.stack([jnp.tanh(a - b + u), 0.5 * a * b], 1).reshape(4)


PENDULUMS = {"q": np.ones(3), "p": np.zeros(3)}
SAMPLER = (np.ones(3), np.ones(()), np.ones(3))
CASES = {
    "pairs": (swing, PENDULUMS, None, True),
    "pairs by number": (swing, PENDULUMS, 3, True),
    "all in one": (mixing, SAMPLER, (range(7),), True),
    "groups of two sizes": (mixing, SAMPLER, None, False),
    "by index": (swing, PENDULUMS, ((3, 0), (1, 2, 4, 5)), True),
    "side by side": (units, np.ones(4), 2, True),
    "each alone": (units, np.ones(4), 4, False),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_those_of_the_jacobian(name):
    f, start, groups, exact = CASES[name]
    recurrence = canonicalize(f, start, jnp.ones(T))
    bound = elk.BlockDiagonalJacobian(groups).bind(recurrence)
    assert bound.exact == exact
    D = len(recurrence.initial)
    x = jnp.asarray(RNG.normal(size=D))
    entry = jax.tree.map(lambda u: u[0], recurrence.inputs)
    identity = bound.start(D, x.dtype)
    np.testing.assert_array_equal(identity.to_dense(), jnp.eye(D))
    value, once = bound.push(recurrence.step, x, entry, identity, None)
    twice = bound.push(recurrence.step, x, entry, once, None)[1]
    jacobian = np.asarray(jax.jacfwd(lambda x: recurrence.step(x, entry))(x))
    kept = np.zeros_like(jacobian)
    for group in bound.members:
        there = [i for i in group if i >= 0]
        kept[np.ix_(there, there)] = jacobian[np.ix_(there, there)]
    assert exact == np.array_equal(kept, jacobian)
    np.testing.assert_allclose(value, recurrence.step(x, entry))
    np.testing.assert_allclose(once.to_dense(), kept, atol=1e-14)
    np.testing.assert_allclose(twice.to_dense(), kept @ kept, atol=1e-14)


DRIVE = RNG.normal(size=T) / 10
METHODS = {
    "deer": lambda how: elk.deer(linearization=how),
    "filter": lambda how: elk.elk(30.0, linearization=how),
    "smoother": lambda how: elk.elk(30.0, estimate="smoother", linearization=how),
    "blocks": lambda how: elk.elk(
        1e3, block_size=7, gate=elk.Gate(), linearization=how
    ),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("groups", [None, ((3, 0), (1, 2, 4, 5))])
def test_where_f_keeps_to_the_blocks_it_is_newtons_method(name, groups, reference):
    """The same iterates as with dense Jacobians, damped, smoothed, over blocks."""
    options = {"max_iters": 2, "tol": 1e-30}
    found, dense = (
        elk.evaluate(swing, PENDULUMS, DRIVE, method=METHODS[name](how), **options)
        for how in (elk.BlockDiagonalJacobian(groups), elk.DenseJacobian())
    )
    for a, b in zip(*map(jax.tree.leaves, (found.states, dense.states)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    assert not np.allclose(dense.states["q"], reference(swing, PENDULUMS, DRIVE)["q"])


def test_groups_of_two_sizes_converge_and_have_exact_gradients(reference, close):
    method = elk.quasi_elk(1e3, linearization=elk.BlockDiagonalJacobian())

    def end(solve):
        return lambda start: sum(jnp.sum(x[-1] ** 2) for x in solve(start))

    ours = lambda s: elk.evaluate(mixing, s, DRIVE, method=method).states  # noqa: E731
    close(ours(SAMPLER), reference(mixing, SAMPLER, DRIVE), atol=1e-10)
    found = jax.grad(end(ours))(SAMPLER)
    close(
        found, jax.grad(end(lambda s: reference(mixing, s, DRIVE)))(SAMPLER), atol=1e-10
    )


def test_the_surrogate_of_blocks_is_that_of_their_dense_matrices():
    states = elk.sequential(mixing, SAMPLER, DRIVE).states
    shaken = jax.tree.map(lambda x: x + 0.1, states)
    method = elk.quasi_elk(9.0, linearization=elk.BlockDiagonalJacobian())
    blocks = elk.linearize(mixing, shaken, DRIVE, initial_state=SAMPLER, method=method)
    dense = blocks.replace(operator=elk.Dense(blocks.operator.to_dense()))
    for verb in ("filter", "smooth"):
        found, expected = (getattr(one, verb)() for one in (blocks, dense))
        np.testing.assert_allclose(found.means, expected.means, atol=1e-11)
        np.testing.assert_allclose(
            found.covariances.variances(), expected.covariances.variances(), atol=1e-11
        )


def test_an_lstm_takes_fewer_iterations_than_with_the_diagonal(close):
    cell = nn.LSTMCell(8)
    inputs = jnp.asarray(RNG.normal(size=(200, 2)))
    carry = cell.initialize_carry(jax.random.key(0), (2,))
    variables = cell.init(jax.random.key(1), carry, inputs[0])
    wide = lambda tree: jax.tree.map(lambda x: x.astype(float), tree)  # noqa: E731
    f, start = cells.from_linen(cell, wide(variables), wide(carry))
    by_blocks = elk.quasi_deer(linearization=elk.BlockDiagonalJacobian())
    blocks, diagonal = (
        elk.evaluate(f, start, inputs, method=method)
        for method in (by_blocks, elk.quasi_deer())
    )
    close(blocks.states, diagonal.states, atol=1e-10)
    assert int(blocks.num_iters) < 0.8 * int(diagonal.num_iters)


def test_one_tangent_where_the_jacobian_is_diagonal():
    def f(x, u):
        return jnp.tanh(0.5 * x + u)

    def count(method):
        jaxpr = jax.make_jaxpr(
            lambda u: elk.evaluate(f, jnp.zeros(37), u, method=method).states
        )(jnp.ones((T, 37)))
        return str(jaxpr).count("37,37]")

    assert count(elk.quasi_deer()) == 0
    assert count(elk.deer()) > 0


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (4, "cut every leaf"),
        (0, "cut every leaf"),
        (((0, 1), (1, 2)), "indices 0 to 5"),
        (((0, 1, 2, 3, 4),), "indices 0 to 5"),
    ],
)
def test_groups_that_do_not_fit_are_named(groups, says):
    method = elk.quasi_deer(linearization=elk.BlockDiagonalJacobian(groups))
    with pytest.raises(ValueError, match=says):
        elk.evaluate(swing, PENDULUMS, DRIVE, method=method)


@pytest.mark.parametrize("groups", [2.5, "pairs", True, (0, 1), (("a",),)])
def test_what_is_no_groups_at_all_is_named(groups):
    with pytest.raises(TypeError, match="groups must be None, a number of groups"):
        elk.BlockDiagonalJacobian(groups)


@pytest.mark.parametrize("made", [elk.BlockDiagonalJacobian, elk.DiagonalJacobian])
def test_a_chunk_is_a_number_of_steps(made):
    assert made(chunk=3).time_chunk(2) == 3
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        made(chunk=0)
    for wrong in (2.5, "3", True):
        with pytest.raises(TypeError, match="chunk must be an integer; got"):
            made(chunk=wrong)


def test_probes_are_counted():
    with pytest.raises(ValueError, match="probes must be at least 1; got 0"):
        elk.StochasticDiagonal(jax.random.key(0), probes=0)
