"""The stopping rules: every one of them fails on a NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.solve.stopping import (
    Facts,
    Scale,
    default_tolerance,
    differs_in_sign_of_zero,
    judge,
    largest,
    make_tolerance,
    may_end,
    scale_of,
    sizes_of,
)

# Shapes at which a jitted maximum drops NaNs on some CPU backends, and one where not.
SHAPES = pytest.mark.parametrize("shape", [(999, 5), (1000, 4), (7, 2)])
run_judge = jax.jit(judge)
run_largest = jax.jit(largest)


def verdict(residual, step, *, scale=1.0, tol=1e-5, last=jnp.inf):
    scales = jnp.full(residual.shape, scale)
    sizes = Scale(scales, scales[0])
    tolerance = make_tolerance(tol, None, residual.dtype)
    alike = jnp.ones(residual.shape, bool)
    facts = Facts(residual, step, alike, jnp.ones(residual.shape, bool))
    return run_judge(facts, sizes, tolerance, jnp.asarray(last))


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
    assert found.suspect


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


def test_suspicion_needs_a_converged_past():
    zeros = jnp.zeros((6, 2))
    broken = zeros.at[3, 1].set(jnp.nan)
    assert verdict(broken, broken).suspect
    # What comes after the break does not matter; what comes before does.
    assert verdict(broken.at[4].set(5.0), broken.at[5].set(jnp.nan)).suspect
    assert not verdict(broken.at[2].set(1.0), broken).suspect
    assert not verdict(broken, broken.at[1].set(1.0)).suspect
    assert not verdict(zeros, zeros).suspect


def test_stalled_at_the_rounding_floor():
    eps = jnp.finfo(jnp.float32).eps
    floor, step = jnp.full((5, 2), 8 * eps), jnp.full((5, 2), 1e-2)
    assert verdict(floor, step, last=0.9e-2).stalled
    assert not verdict(floor, step, last=1.0).stalled
    assert not verdict(100 * floor, step, last=0.9e-2).stalled
    assert not verdict(0 * floor, 0 * floor, last=0.0).stalled


@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("count", [1, 20, 64, 90, 200])
def test_scale_is_what_is_about(count, block_size):
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(count, 3)) * np.asarray([1e6, 1.0, 1e-8]))
    found = scale_of(jnp.asarray(x, jnp.float32), block_size)
    # 57 to 64 steps to either side, where there are such, and 9 to 16 unknowns.
    most = max(64 // block_size // 8 * 8, 16)
    least, end = most - 7, max(32 // block_size, 2)
    for t in range(count):
        near = [x[max(t - least + 1, 0) : t + 1].max(0), x[t : t + least].max(0)]
        far = [x[max(t - most + 1, 0) : t + 1].max(0), x[t : t + most].max(0)]
        if t + most >= count:
            far[1] = np.maximum(far[1], x[max(count - end, 0) :].max(0))
        assert np.all(found[t] <= np.minimum(*far) * 1.0001)
        if least <= t < count - least:
            assert np.all(found[t] >= np.minimum(*near) * 0.9999)
        assert np.all(found[t] >= x[t] * 0.9999)


def test_scale_of_a_small_state_does_not_see_wild_ones():
    x = jnp.ones((200, 2)).at[:, 1].set(1e-6).at[150, 0].set(1e9)
    scale = scale_of(x.at[3].set(jnp.nan).at[4].set(jnp.inf), 1)
    assert float(scale[150, 0]) == pytest.approx(1e9, rel=1e-5)
    assert float(jnp.delete(scale[:, 0], 150).max()) <= 1.0001
    assert float(scale[:, 1].max()) <= 1.0001e-6
    assert float(scale[5:].min()) > 0.9e-6


def test_what_is_zero_is_judged_by_the_absolute_tolerance():
    tolerance = make_tolerance(1e-3, 1e-9, jnp.float32)
    found = tolerance.bound(jnp.asarray([0.0, 1e-8, 1.0]))
    np.testing.assert_allclose(found, [1e-9, 1e-9, 1e-3], rtol=1e-6)
    assert float(make_tolerance(None, None, jnp.float32).absolute) > 0
    assert float(make_tolerance(None, 0.0, jnp.float32).absolute) == 0


def test_zeros_differ_by_their_sign_and_nothing_else_does():
    x, y = jnp.asarray([0.0, -0.0, 0.0, 1.0, -1.0]), jnp.asarray([-0.0, -0.0, 1, 1, 1])
    found = differs_in_sign_of_zero(x, y)
    assert found.tolist() == [True, False, False, False, False]


def test_default_tolerance_follows_the_dtype():
    assert default_tolerance(jnp.dtype("float32")) == 1e-5
    assert default_tolerance(jnp.dtype("float64")) == 1e-12


@pytest.mark.parametrize("break_at", [None, 0, 30, 59])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_no_verdict_where_none_is_possible(break_at, size):
    rng = np.random.default_rng(3)
    tolerance = make_tolerance(1e-3, None, jnp.float32)
    ended = []
    for level in 10.0 ** np.arange(-9, 2):
        values = jnp.asarray(size * rng.normal(size=(60, 2)), jnp.float32)
        residual = jnp.asarray(size * level * rng.normal(size=(60, 2)), jnp.float32)
        if break_at is not None:
            residual = residual.at[break_at, 1].set(jnp.nan)
        scale = sizes_of(values, 1)
        alike, step = jnp.ones((60, 2), bool), residual
        facts = Facts(residual, step, alike, jnp.ones(residual.shape, bool))
        found = judge(facts, scale, tolerance, jnp.float32(0))
        ends = bool(found.converged | found.suspect | found.stalled)
        possible = bool(may_end(residual, values, tolerance))
        assert possible or not ends
        ended.append((ends, possible))
    # Some end, and where nothing is near the end nothing is judged.
    assert any(ends for ends, _ in ended)
    assert break_at == 0 or not ended[-1][1]
