"""Statuses, and the exception that a status becomes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.solution import int_status


def solution(status, *, failed_step=-1):
    status = jnp.asarray(status)
    zeros = jnp.zeros(status.shape)
    return elk.Solution(
        states=zeros,
        status=status,
        num_iters=jnp.full(status.shape, 12),
        residual_norm=zeros + 0.5,
        step_norm=zeros,
        failed_step=jnp.full(status.shape, failed_step),
    )


def test_statuses_are_integers_with_advice():
    assert [int(s) for s in elk.Status] == list(range(len(elk.Status)))
    assert elk.Status.converged == 0
    messages = {s.message for s in elk.Status}
    assert len(messages) == len(elk.Status)
    assert "max_iters" in elk.Status.max_iters_reached.message
    assert "float64" in elk.Status.precision_limit.message
    assert int_status(elk.Status.nonfinite).dtype == jnp.int32


@pytest.mark.parametrize("status", [0, [0, 0], [[0], [0]]])
def test_a_converged_solution_is_handed_back(status):
    given = solution(status)
    assert elk.raise_if_failed(given) is given


@pytest.mark.parametrize("status", [s for s in elk.Status if s])
def test_every_other_status_raises_its_advice(status):
    with pytest.raises(RuntimeError, match=status.name) as info:
        elk.raise_if_failed(solution(int(status)))
    text = str(info.value)
    assert status.message in text
    assert "iterations 12" in text
    assert "residual 0.5" in text
    assert "batch" not in text
    assert "failed_step" not in text.replace(status.message, "")


def test_the_failed_step_is_named():
    with pytest.raises(RuntimeError, match="failed_step 7"):
        elk.raise_if_failed(solution(2, failed_step=7))


def test_failing_elements_of_a_batch_are_named():
    with pytest.raises(RuntimeError) as info:
        elk.raise_if_failed(solution([0, 1, 2, 1]))
    text = str(info.value)
    assert "max_iters_reached in batch elements 1, 3:" in text
    assert "nonfinite in batch elements 2:" in text
    assert "converged in" not in text


def test_elements_of_a_batch_of_batches_are_pairs():
    with pytest.raises(RuntimeError, match=r"batch elements \(0, 1\), \(1, 0\):"):
        elk.raise_if_failed(solution([[0, 1], [1, 0]]))


def test_long_lists_are_cut():
    with pytest.raises(RuntimeError, match=r"0, 1, 2, 3, 4, 5, 6, 7 and 12 more"):
        elk.raise_if_failed(solution([1] * 20))


def test_the_detail_is_the_first_failing_element_s():
    found = solution([0, 1, 1])._replace(num_iters=jnp.asarray([3, 40, 50]))
    with pytest.raises(RuntimeError, match="iterations 40"):
        elk.raise_if_failed(found)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_traced_statuses_are_refused(transform):
    with pytest.raises(TypeError, match="outside jit"):
        transform(lambda s: elk.raise_if_failed(solution(s)).status)(jnp.zeros(2, int))


def test_a_real_failure_raises():
    found = elk.evaluate(
        lambda x, _: jnp.cos(3 * x),
        jnp.ones(1),
        length=20,
        method=elk.jacobi(),
        max_iters=2,
    )
    with pytest.raises(RuntimeError, match="max_iters_reached"):
        elk.raise_if_failed(found)
    np.testing.assert_array_equal(found.num_iters, 2)
