"""The gate and the provably exact prefix, as units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.parallel.time_axis import LOCAL
from elk_ssm.solve.gate import (
    Gate,
    beyond_prefix,
    instead_of_rejected,
    rejected,
    settle_prefix,
)
from elk_ssm.solve.nodes import cut
from elk_ssm.solve.problem import Problem

NODES = jnp.asarray([[1.0], [2.0], [3.0], [4.0]])


def extend_prefix(exact, nodes, values):
    """The exact prefix ends with the first node that is not, which becomes so."""
    (first,) = LOCAL.first_true(beyond_prefix(exact, nodes, values).any(axis=1))
    return min(int(first) + 1, len(nodes))


@pytest.mark.parametrize(
    ("exact", "wrong", "expected"),
    [
        (0, [0, 1, 2, 3], 1),
        (1, [1, 2, 3], 2),
        (0, [1, 2, 3], 2),
        (0, [2], 3),
        (0, [3], 4),
        (0, [], 4),
        (2, [0, 1, 3], 4),
        (4, [0, 1, 2, 3], 4),
    ],
)
def test_extend_prefix(exact, wrong, expected):
    values = NODES
    for index in wrong:
        values = values.at[index].add(0.5)
    found = extend_prefix(jnp.asarray(exact), NODES, values)
    assert int(found) == expected


def test_nan_does_not_extend_the_prefix():
    values = NODES.at[1].set(jnp.nan)
    assert int(extend_prefix(jnp.asarray(0), NODES, values)) == 2
    assert int(extend_prefix(jnp.asarray(0), values, values)) == 2


def test_one_dimension_off_ends_the_prefix():
    nodes = jnp.ones((5, 3))
    values = nodes.at[2, 1].add(jnp.finfo(jnp.float32).eps)
    assert int(extend_prefix(jnp.asarray(0), nodes, values)) == 3


def test_settle_prefix_keeps_exact_nodes_and_takes_one_rollout_value():
    candidate, values = NODES + 10, NODES + 100
    found = settle_prefix(candidate, NODES, values, jnp.asarray(2))
    np.testing.assert_array_equal(found[:, 0], [1.0, 102.0, 13.0, 14.0])


def blocks_of(initial, count, size):
    problem = Problem(lambda _, x, u: x, [], initial, None, count * size)
    return cut(problem, size)


def gate(candidate, *, factor=3.0, small=None, exact=1, to_rollout=True, values=None):
    values = NODES + 100 if values is None else values
    small = jnp.zeros(4, bool) if small is None else small
    chosen = None if factor is None else Gate(factor)
    blocks = blocks_of(jnp.asarray([0.5]), 4, 2 if to_rollout else 1)
    refused = rejected(chosen, blocks, candidate, small, jnp.asarray(exact))
    edge = candidate[exact - 1] if exact else blocks.initial
    fallback = instead_of_rejected(blocks, values, edge)
    found = jnp.where(refused[:, None], fallback, candidate)
    changed = jnp.any(found != candidate, axis=1)
    return found[:, 0].tolist(), changed.tolist()


def test_a_state_outside_the_range_is_rejected_for_its_rollout():
    candidate = NODES.at[2].set(-3.5).at[3].set(2.9)
    found, refused = gate(candidate)
    assert found == [1.0, 2.0, 103.0, pytest.approx(2.9)]
    assert refused == [False, False, True, False]


def test_the_last_exact_state_where_one_step_is_worth_little():
    candidate = NODES.at[3].set(99.0)
    assert gate(candidate, exact=2, to_rollout=False)[0] == [1.0, 2.0, 3.0, 2.0]
    assert gate(candidate, exact=0, to_rollout=False)[0] == [1.0, 0.5, 0.5, 0.5]


def test_a_small_residual_passes_the_gate():
    candidate = NODES.at[3].set(99.0)
    small = jnp.asarray([False, False, False, True])
    assert gate(candidate, small=small)[1] == [False] * 4


def test_the_exact_prefix_is_never_rejected():
    candidate = NODES.at[0].set(jnp.inf)
    assert gate(candidate, exact=1)[0][0] == jnp.inf
    assert gate(candidate, exact=0)[0][0] == 101.0


def test_without_a_gate_only_nonfinite_states_are_rejected():
    candidate = NODES.at[1].set(jnp.nan).at[2].set(1e30).at[3].set(jnp.inf)
    found, refused = gate(candidate, factor=None)
    assert refused == [False, True, False, True]
    assert found == [1.0, 102.0, pytest.approx(1e30), 104.0]


def test_a_nonfinite_rollout_is_no_way_back():
    candidate = NODES.at[2].set(jnp.nan)
    values = NODES.at[2].set(jnp.inf)
    assert gate(candidate, values=values)[0] == [1.0, 2.0, 1.0, 4.0]


def test_the_range_is_per_dimension():
    candidate = jnp.asarray([[1.0, 100.0], [2.0, 50.0], [50.0, 2.0]])
    blocks = blocks_of(jnp.zeros(2), 3, 2)
    refused = rejected(Gate(3.0), blocks, candidate, jnp.zeros(3, bool), jnp.asarray(1))
    fallback = instead_of_rejected(blocks, candidate + 1, candidate[0])
    found = jnp.where(refused[:, None], fallback, candidate)
    np.testing.assert_array_equal(found[:2], candidate[:2])
    np.testing.assert_array_equal(found[2], candidate[2] + 1)


def test_the_factor_is_data_and_changes_the_iterates(compilations):
    def f(x, u):
        return u - 2.5 * x * (1 - x)

    inputs, x0 = jnp.full((12, 1), 0.4), jnp.full(1, 0.3)

    def run(factor):
        return elk.iterates(
            f, x0, inputs, num_iters=6, method=elk.deer(gate=Gate(factor))
        )

    wide = run(1e6)
    with compilations() as count:
        narrow = run(1.0)
    assert count == [0]
    assert not np.array_equal(wide, narrow)


def test_gated_solves_converge_to_the_same_states(reference):
    def f(x, u):
        return 3.0 * jnp.sin(2 * x) + u

    x0, inputs = jnp.full(1, 0.3), jnp.zeros((30, 1))
    with jax.enable_x64(True):
        x0, inputs = x0.astype(jnp.float64), inputs.astype(jnp.float64)
        exact = reference(f, x0, inputs)
        for method in (
            elk.deer(gate=Gate()),
            elk.deer(gate=Gate(), block_size=3),
        ):
            solution = elk.evaluate(f, x0, inputs, method=method)
            assert solution.status == elk.Status.converged
            np.testing.assert_allclose(solution.states, exact, atol=1e-3)


def pushed(x, u):
    """A particle between two valleys, with the noise that sends it over."""
    return x + 0.3 * (x - x**3) + 0.35 * u


def test_rollouts_between_gated_passes_save_passes(x64, reference):
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(1500, 1)))
    expected = reference(pushed, jnp.zeros(1), noise)
    counts = []
    for rollouts in (0, 2):
        gate = Gate(rollouts=rollouts)
        method = elk.deer(block_size=8, gate=gate)
        sol = elk.evaluate(pushed, jnp.zeros(1), noise, method=method, history=200)
        np.testing.assert_allclose(elk.raise_if_failed(sol).states, expected, atol=1e-9)
        counts.append(int(sol.num_iters))
        # No more is said to be rejected than the gate rejects.
        assert jnp.nanmax(sol.history.set_back) < 188
    assert counts[1] < 0.7 * counts[0]


def test_rollouts_with_damping_and_a_broken_recurrence(x64):
    method = elk.elk(10.0, block_size=4, gate=Gate(rollouts=1))
    inputs = jnp.zeros(40).at[30].set(jnp.nan)
    sol = elk.evaluate(lambda x, u: jnp.sin(2 * x) + u, 0.3, inputs, method=method)
    assert int(sol.status) == elk.Status.nonfinite
    assert jnp.isfinite(sol.states[:30]).all()


@pytest.mark.parametrize("number", [-1, 1.5, True])
def test_a_number_of_rollouts_is_an_integer(number):
    with pytest.raises(ValueError, match="rollouts must be an integer"):
        Gate(rollouts=number)
