"""The stopping rules: every one of them fails on a NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.solve.stopping import default_tolerance, judge, largest, scale_of

# Shapes at which a jitted maximum drops NaNs on some CPU backends, and one where not.
SHAPES = pytest.mark.parametrize("shape", [(999, 5), (1000, 4), (7, 2)])
run_judge = jax.jit(judge)
run_largest = jax.jit(largest)


def verdict(residual, step, *, scale=1.0, tol=1e-5, last=jnp.inf):
    scales = jnp.full(residual.shape, scale)
    return run_judge(residual, step, scales, jnp.asarray(tol), jnp.asarray(last))


@SHAPES
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_bad_entry_is_never_converged(shape, bad):
    fine = jnp.zeros(shape)
    middle = shape[0] // 2
    spoiled = fine.at[middle, 1].set(bad)
    assert bool(verdict(fine, fine).converged)
    for residual, step in ((spoiled, fine), (fine, spoiled), (spoiled, spoiled)):
        assert not verdict(residual, step).converged
        assert not verdict(residual, step, last=1.0).converged
    assert not verdict(spoiled, fine, last=0.0).stalled


@SHAPES
def test_all_nan_is_never_converged(shape):
    nans = jnp.full(shape, jnp.nan)
    found = verdict(nans, nans)
    assert not found.converged
    assert not found.stalled
    assert found.nonfinite


@SHAPES
def test_the_reported_maximum_is_infinite_with_a_nan(shape):
    ones = jnp.ones(shape)
    assert run_largest(ones) == 1
    assert run_largest(-2 * ones) == 2
    for index in (0, shape[0] // 2, shape[0] - 1):
        assert run_largest(ones.at[index, 0].set(jnp.nan)) == jnp.inf
    assert run_largest(ones * jnp.nan) == jnp.inf
    assert largest(jnp.zeros((0, 3))) == 0


def test_both_residual_and_step_must_be_small():
    small, large = jnp.full((4, 2), 0.9e-5), jnp.full((4, 2), 1.1e-5)
    assert verdict(small, small).converged
    assert not verdict(small, large).converged
    assert not verdict(large, small).converged
    assert verdict(large, large, scale=2.0).converged
    assert verdict(large, large, tol=1e-4).converged


def test_slow_methods_must_get_further_down():
    residual, step = jnp.zeros((4, 2)), jnp.full((4, 2), 0.9e-5)
    assert verdict(residual, step, last=1.0).converged
    assert not verdict(residual, step, last=1e-5).converged
    assert verdict(residual, step / 100, last=1e-7).converged


def test_nonfinite_needs_a_converged_past():
    zeros = jnp.zeros((6, 2))
    broken = zeros.at[3, 1].set(jnp.nan)
    assert verdict(broken, broken).nonfinite
    # What comes after the break does not matter; what comes before does.
    assert verdict(broken.at[4].set(5.0), broken.at[5].set(jnp.nan)).nonfinite
    assert not verdict(broken.at[2].set(1.0), broken).nonfinite
    assert not verdict(broken, broken.at[1].set(1.0)).nonfinite
    assert not verdict(zeros, zeros).nonfinite


def test_stalled_at_the_rounding_floor():
    eps = jnp.finfo(jnp.float32).eps
    floor, step = jnp.full((5, 2), 8 * eps), jnp.full((5, 2), 1e-2)
    assert verdict(floor, step, last=0.9e-2).stalled
    assert not verdict(floor, step, last=1.0).stalled
    assert not verdict(100 * floor, step, last=0.9e-2).stalled
    assert not verdict(0 * floor, 0 * floor, last=0.0).stalled


@pytest.mark.parametrize("backend", ["sequential", "associative"])
def test_scale_is_a_running_maximum_of_what_is_finite(backend):
    values = jnp.asarray([[1.0, -4.0, 0.0], [jnp.nan, jnp.inf, 0.01], [5.0, 0.0, 0.0]])
    scale = scale_of(values, jnp.asarray([2.0, 0.0, 0.0]), backend)
    # Small dimensions are held to a tenth of the largest one.
    expected = [[2.0, 4.0, 0.4], [2.0, 4.0, 0.4], [5.0, 4.0, 0.5]]
    np.testing.assert_allclose(scale, expected, rtol=1e-6)


def test_default_tolerance_follows_the_dtype():
    assert default_tolerance(jnp.dtype("float32")) == 1e-5
    assert default_tolerance(jnp.dtype("float64")) == 1e-12
