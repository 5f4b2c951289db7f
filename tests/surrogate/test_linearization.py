"""What stands for the Jacobian of f."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.linalg.structure import Dense, Diagonal
from elk_ssm.surrogate.linearization import Linearization, Where

D = 3
MATRIX = jnp.asarray(np.random.default_rng(0).normal(size=(D, D)), jnp.float32)
X = jnp.asarray([0.3, -0.2, 0.9])
AT = Where(jnp.asarray(0), jnp.asarray(0))


def step(x, u):
    return jnp.tanh(MATRIX @ x + u)


def push(linearization, before=None):
    before = linearization.start(D, jnp.float32) if before is None else before
    return linearization.push(step, X, jnp.ones(D), before, AT)


JACOBIAN = jax.jacrev(step)(X, jnp.ones(D))
KEY = jax.random.key(0)
ALL = {
    "dense": (elk.DenseJacobian(), JACOBIAN),
    "diagonal": (elk.DiagonalJacobian(), jnp.diag(jnp.diag(JACOBIAN))),
    "identity": (elk.IdentityJacobian(), jnp.eye(D)),
    "zero": (elk.ZeroJacobian(), jnp.zeros((D, D))),
}


@pytest.mark.parametrize(("linearization", "expected"), ALL.values(), ids=ALL.keys())
def test_push_multiplies_by_the_operator(linearization, expected):
    assert isinstance(linearization, Linearization)
    value, found = push(linearization)
    np.testing.assert_allclose(value, step(X, jnp.ones(D)), rtol=1e-6)
    if isinstance(found, Dense):
        np.testing.assert_allclose(found.matrix, expected, atol=1e-6)
        twice = push(linearization, found)[1].matrix
    else:
        np.testing.assert_allclose(jnp.diag(found.diagonal), expected, atol=1e-6)
        twice = jnp.diag(push(linearization, found)[1].diagonal)
    np.testing.assert_allclose(twice, expected @ expected, atol=1e-5)


def test_hutchinson_is_unbiased():
    few = elk.StochasticDiagonal(KEY, probes=4000)
    found = push(few)[1].diagonal
    exact = jnp.diag(JACOBIAN)
    # The variance of one probe is the sum of squares off the diagonal of a row.
    spread = jnp.sqrt(jnp.sum(JACOBIAN**2, 1) - exact**2)
    assert (spread > 0.05).all()
    assert (abs(found - exact) < 5 * spread / np.sqrt(4000)).all()
    assert (abs(push(elk.StochasticDiagonal(KEY))[1].diagonal - exact) > 0).any()


def test_hutchinson_is_exact_for_a_diagonal_jacobian():
    probe = elk.StochasticDiagonal(KEY)
    start = probe.start(D, jnp.float32)
    _, found = probe.push(lambda x, u: jnp.sin(x) * u, X, jnp.ones(D), start, AT)
    np.testing.assert_allclose(found.diagonal, jnp.cos(X), rtol=1e-6)


def test_hutchinson_draws_anew_for_every_step_iteration_and_key():
    def draw(key, time, iteration):
        probe = elk.StochasticDiagonal(jax.random.key(key))
        at = Where(jnp.asarray(time), jnp.asarray(iteration))
        start = probe.start(30, jnp.float32)
        mix = jnp.asarray(np.random.default_rng(1).normal(size=(30, 30)), jnp.float32)
        found = probe.push(lambda x, _: mix @ x, jnp.zeros(30), None, start, at)
        return tuple(found[1].diagonal.tolist())

    draws = {draw(*at) for at in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(draws) == 4
    assert draw(0, 1, 0) in draws


def test_hutchinson_solves(reference):
    inputs = jnp.asarray(np.random.default_rng(2).normal(size=(20, D)), jnp.float32)

    def f(x, u):
        return jnp.tanh(0.2 * MATRIX @ x + u)

    method = elk.quasi_deer(linearization=elk.StochasticDiagonal(KEY, probes=2))
    solution = elk.evaluate(f, X, inputs, method=method)
    assert solution.status == elk.Status.converged
    np.testing.assert_allclose(solution.states, reference(f, X, inputs), atol=1e-4)


# ------------------------------------------------------------ memory


@pytest.mark.parametrize(
    "method",
    [
        elk.quasi_deer(),
        elk.quasi_elk(1.0),
        elk.quasi_elk(1.0, estimate="smoother"),
        elk.quasi_deer(linearization=elk.DiagonalJacobian(chunk=16)),
        elk.quasi_deer(linearization=elk.StochasticDiagonal(KEY)),
        elk.picard(),
        elk.jacobi(),
        elk.quasi_deer(block_size=2),
    ],
)
def test_no_array_of_all_jacobians(method, largest_array):
    # Past the 2 MB that are linearised side by side.
    size, length = 32, 2_000
    weight = jnp.full((size, size), 0.01)

    def solve(method):
        return elk.evaluate(
            lambda x, u: jnp.tanh(weight @ x + u),
            jnp.zeros(size),
            jnp.ones((length, size)),
            method=method,
            backend="sequential",
        ).states

    nodes = length // method.block_size
    assert largest_array(solve, method) < nodes * size * size
    # The search does find the array where there is one.
    dense = elk.deer(block_size=method.block_size)
    assert largest_array(solve, dense) >= nodes * size * size


@pytest.mark.parametrize("chunk", [1, 16])
def test_the_chunk_bounds_the_intermediate(chunk, largest_array):
    size, length = 32, 64
    weight = jnp.full((size, size), 0.01)

    def solve(inputs):
        method = elk.quasi_deer(linearization=elk.DiagonalJacobian(chunk))
        return elk.evaluate(
            lambda x, u: jnp.tanh(weight @ x + u),
            jnp.zeros(size),
            inputs,
            method=method,
            backend="sequential",
        ).states

    found = largest_array(solve, jnp.ones((length, size)))
    assert found <= max(chunk * size, 2 * length) * size


def test_chunks_that_do_not_divide_the_length(reference):
    inputs = jnp.asarray(np.random.default_rng(2).normal(size=(11, D)), jnp.float32)
    method = elk.quasi_deer(linearization=elk.DiagonalJacobian(chunk=4))
    solution = elk.evaluate(step, X, inputs, method=method)
    np.testing.assert_allclose(solution.states, reference(step, X, inputs), atol=1e-4)
    plain = elk.evaluate(step, X, inputs, method=elk.quasi_deer())
    assert solution.num_iters == plain.num_iters


# ------------------------------------------------------------ user-supplied


def cell(weight):
    return lambda s, u: {"h": jnp.tanh(weight * s["h"] + u), "z": jnp.sin(s["z"] + u)}


def diagonal(weight):
    def function(s, u):
        return {
            "h": weight * (1 - jnp.tanh(weight * s["h"] + u) ** 2),
            "z": jnp.cos(s["z"] + u),
        }

    return function


STATE = {"h": jnp.zeros(2), "z": jnp.zeros(2)}
INPUTS = jnp.asarray(np.random.default_rng(3).normal(size=(15, 2)), jnp.float32)


def test_a_user_diagonal_equals_quasi_deer():
    f, weight = cell(0.7), jnp.asarray(0.7)
    given = elk.quasi_deer(linearization=elk.UserJacobian(diagonal(weight)))
    one, two = (
        elk.evaluate(f, STATE, INPUTS, method=m, history=4)
        for m in (given, elk.quasi_deer())
    )
    np.testing.assert_allclose(one.history[1], two.history[1], rtol=1e-3, atol=1e-6)
    assert one.num_iters == two.num_iters
    np.testing.assert_allclose(one.states["h"], two.states["h"], atol=1e-6)


def test_a_user_matrix_equals_deer():
    linearization = elk.UserJacobian(
        lambda x, u: (1 - step(x, u) ** 2)[:, None] * MATRIX, kind="dense"
    )
    inputs = jnp.asarray(np.random.default_rng(2).normal(size=(12, D)), jnp.float32)
    one, two = (
        elk.iterates(step, X, inputs, num_iters=2, method=m)
        for m in (elk.deer(linearization=linearization), elk.deer())
    )
    np.testing.assert_allclose(one, two, atol=1e-4)
    blocks = elk.deer(linearization=linearization, block_size=3)
    found = elk.evaluate(step, X, inputs, method=blocks)
    assert found.status == elk.Status.converged


def test_a_wrong_user_jacobian_changes_the_iterates_and_not_the_answer(reference):
    wrong = elk.UserJacobian(lambda x, u: jnp.full(D, 0.3))
    found = elk.evaluate(
        step, X, INPUTS[:, :1] * jnp.ones(D), method=elk.deer(linearization=wrong)
    )
    exact = reference(step, X, INPUTS[:, :1] * jnp.ones(D))
    assert found.status == elk.Status.converged
    np.testing.assert_allclose(found.states, exact, atol=1e-4)


def test_what_a_user_jacobian_closes_over_is_data(compilations):
    def solve(weight):
        method = elk.quasi_deer(linearization=elk.UserJacobian(diagonal(weight)))
        return elk.evaluate(cell(weight), STATE, INPUTS, method=method)

    weights = jnp.asarray(0.7), jnp.asarray(0.5)
    first = solve(weights[0])
    with compilations() as count:
        second = solve(weights[1])
    assert count == [0]
    assert abs(first.states["h"] - second.states["h"]).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "function", "message"),
    [
        (
            "diagonal",
            lambda x, u: jnp.ones(D + 1),
            r"pytree like.*\(3,\).*float32\[4\]",
        ),
        ("diagonal", lambda x, u: jnp.ones((D, D)), r"pytree like.*float32\[3, 3\]"),
        ("dense", lambda x, u: jnp.ones(D), r"\(3, 3\).*float32\[3\]"),
    ],
)
def test_user_jacobians_of_a_wrong_shape(kind, function, message):
    method = elk.deer(linearization=elk.UserJacobian(function, kind=kind))
    with pytest.raises(ValueError, match=message):
        elk.evaluate(step, X, jnp.ones((5, D)), method=method)


def test_the_kind_of_operator_is_declared():
    assert isinstance(elk.DiagonalJacobian().start(2, jnp.float32), Diagonal)
    given = elk.UserJacobian(lambda x, u: x, kind="dense")
    assert isinstance(given.start(2, jnp.float32), Dense)
