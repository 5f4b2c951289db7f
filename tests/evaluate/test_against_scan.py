"""`evaluate` and `sequential` against `jax.lax.scan`."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.evaluate.cases import CELLS, METHODS, methods, small_integers

import elk_ssm as elk


@pytest.fixture(scope="module")
def all_cells(switched, reference):
    """Trajectories of the four cells by `lax.scan`, computed once for every length."""

    @cache
    def run(length):
        @jax.jit
        def one(which):
            return reference(*switched(which, length))

        return [one(which) for which in range(len(CELLS))]

    return run


def check_all_cells(solve, length, all_cells, close):
    """Compare `solve(which)` with the scan for each of the four cells."""
    for which, cell in enumerate(CELLS):
        solution = solve(which)
        assert solution.status == elk.Status.converged, cell
        assert solution.failed_step == -1
        assert solution.num_iters <= length
        expected = all_cells(length)[which]
        # The tolerance is 1e-5 of the largest state.
        size = max(1.0, *(float(abs(x).max()) for x in expected))
        close(solution.states, expected, atol=1e-4 * size)


@methods
def test_equals_scan(method, switched, all_cells, close):
    @jax.jit
    def solve(which):
        return elk.evaluate(*switched(which, 1000), method=method)

    check_all_cells(solve, 1000, all_cells, close)


# Compile time is what these tests cost, so they go without LLVM's optimisations.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize("length", [1, 2])
@methods
def test_equals_scan_over_one_and_two_steps(method, length, switched, all_cells, close):
    @partial(jax.jit, compiler_options=QUICK)
    def solve(which):
        return elk.evaluate(*switched(which, length), method=method)

    check_all_cells(solve, length, all_cells, close)


@pytest.mark.parametrize("cell", CELLS)
def test_the_switched_cells_are_the_cells(cell, switched, problem, reference):
    size = 2 if cell == "lstm" else 4
    pair = reference(*switched(CELLS.index(cell), 6))
    plain = reference(*problem(cell, 6, size=size))
    if cell != "lstm":
        pair = jnp.concatenate(pair, axis=-1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), pair, plain)
    assert max(float(abs(x).max()) for x in jax.tree.leaves(pair)) > 0.3


def test_every_cell_as_it_is(problem, reference, close):
    for cell in ("gru", "lstm"):
        f, x0, inputs = problem(cell, 40)
        solution = elk.evaluate(f, x0, inputs, method=elk.deer())
        assert solution.status == elk.Status.converged
        assert solution.history is None
        close(solution.states, reference(f, x0, inputs), atol=1e-4)


@pytest.mark.parametrize("name", ["deer", "quasi_elk_smoother"])
def test_equals_scan_in_double_precision(name, x64, problem, reference, close):
    f, x0, inputs = problem("gru", 40)
    assert inputs.dtype == jnp.float64
    solution = elk.evaluate(f, x0, inputs, method=METHODS[name])
    assert solution.status == elk.Status.converged
    assert solution.residual_norm.dtype == jnp.float64
    close(solution.states, reference(f, x0, inputs), atol=1e-11)


@pytest.mark.parametrize(
    ("factory", "block_size", "length"),
    [
        (elk.deer, 3, 17),
        (elk.deer, 8, 3),
        (elk.quasi_deer, 3, 17),
        (elk.quasi_deer, 8, 17),
        (elk.quasi_deer, 8, 3),
        (elk.jacobi, 8, 17),
    ],
)
def test_blocks_equal_scan(factory, block_size, length, problem, reference, close):
    f, x0, inputs = problem("rnn", length)
    method = factory(block_size=block_size)
    solution = elk.evaluate(f, x0, inputs, method=method)
    assert solution.status == elk.Status.converged
    assert solution.num_iters <= max(length // block_size, 1)
    close(solution.states, reference(f, x0, inputs), atol=1e-5)


def test_damped_blocks_equal_scan(problem, reference, close):
    f, x0, inputs = problem("gru", 17)
    method = elk.elk(jnp.ones((5, 1)), block_size=3)
    solution = elk.evaluate(f, x0, inputs, method=method)
    assert solution.status == elk.Status.converged
    close(solution.states, reference(f, x0, inputs), atol=1e-5)


def test_dense_and_diagonal_blocks_differ():
    f, x0, inputs = small_integers(12)
    dense, diagonal = (
        elk.iterates(f, x0, inputs, num_iters=1, method=m(block_size=3))
        for m in (elk.deer, elk.quasi_deer)
    )
    assert not np.array_equal(dense[1], diagonal[1])


def test_default_method_equals_scan(problem, reference, close):
    f, x0, inputs = problem("gru", 30)
    solution = elk.raise_if_failed(elk.evaluate(f, x0, inputs))
    close(solution.states, reference(f, x0, inputs), atol=1e-5)


@pytest.mark.parametrize(
    "method", [elk.elk(3.0), elk.quasi_elk(3.0, estimate="smoother")]
)
def test_backends_agree(method, problem, close):
    f, x0, inputs = problem("rnn", 5, size=2)
    one, two = (
        elk.iterates(f, x0, inputs, num_iters=2, method=method, backend=backend)
        for backend in ("sequential", "associative")
    )
    close(one, two, atol=1e-5)
