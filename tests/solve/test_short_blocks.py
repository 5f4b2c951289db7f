"""What accelerators try first: blocks that fit, or Newton's method from where they are.

`strategy="short_blocks"` is the same plan on a CPU. The oracle is `lax.scan`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.solve.leaky import drive as leaky_drive
from tests.solve.leaky import leaky

import elk_ssm as elk
from elk_ssm.parallel.time_axis import LOCAL
from elk_ssm.solve.certify import is_accepted, is_plainly_accepted
from elk_ssm.solve.shooting import Twins, shot_of

LENGTH = 600
SHORT = elk.auto(strategy="short_blocks", block_size=8)
FITS, NEWTON = elk.PlanKind.forgetful_blocks, elk.PlanKind.newton_blocks


def drive(rate, length=LENGTH):
    return leaky_drive(rate, length)


@jax.jit
def solve(inputs, start):
    return elk.evaluate(leaky, start, inputs, method=SHORT)


def close(found, expected, tolerance=1e-5):
    size = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * size)


def solved(rate, reference):
    """Solve from ones, and hold what was found against the reference."""
    inputs, start = drive(rate), jnp.ones(2)
    sol = solve(inputs, start)
    assert int(sol.status) == elk.Status.converged
    close(sol.states, reference(leaky, start, inputs))
    return sol


@pytest.mark.parametrize(
    ("rate", "kind"),
    [(0.0, FITS), (0.5, FITS), (0.9, FITS), (1.0, NEWTON), (1.005, NEWTON)],
)
def test_blocks_fit_where_the_recurrence_forgets(rate, kind, reference):
    assert int(solved(rate, reference).plan.kind) == kind


def test_a_pass_carries_memory_by_one_block():
    # What is forgotten to rounding in L steps takes L / C passes, and one to see it.
    steps = np.log(16 * np.finfo(np.float32).eps) / np.log(0.5)
    passes = int(solve(drive(0.5), jnp.ones(2)).num_iters)
    assert steps / 8 <= passes <= steps / 8 + 3


def test_a_stretch_that_remembers_is_left_to_newton(reference):
    rate = np.full(LENGTH, 0.5)
    rate[200:420] = 1.0
    solved(rate, reference)


def test_steps_too_small_to_misfit_are_not_taken_for_a_fit(reference):
    # No block differs from its neighbour by more than rounding; all of them do.
    def drifting(x, u):
        return x + 1e-7 * u

    inputs, start = jnp.ones((4000, 1)), jnp.ones(1)
    sol = elk.evaluate(drifting, start, inputs, method=SHORT)
    assert int(sol.plan.kind) == NEWTON
    close(sol.states, reference(drifting, start, inputs))


def test_two_basins_are_told_apart(reference):
    # Every block forgets within its basin, so blocks would agree on the wrong one.
    def bistable(x, u):
        return jnp.tanh(3 * x + u)

    inputs = jnp.zeros((LENGTH, 1)).at[300:305].set(-6.0)
    start = jnp.array([0.5])
    sol = elk.evaluate(bistable, start, inputs, method=SHORT)
    assert int(sol.status) == elk.Status.converged
    close(sol.states, reference(bistable, start, inputs))


def test_a_batch_is_planned_as_a_batch(reference):
    wide = elk.auto(strategy="short_blocks")

    def one(inputs, start):
        return elk.evaluate(leaky, start, inputs, method=wide)

    rates = jnp.asarray([0.1, 0.5, 0.8])
    inputs = jnp.stack([drive(rate) for rate in rates])
    starts = jnp.ones((3, 2))
    sol = jax.jit(jax.vmap(one))(inputs, starts)
    for k in range(3):
        close(sol.states[k], reference(leaky, starts[k], inputs[k]))
    sizes = [wide.short_block_size(10_000, batch * 32) for batch in (1, 8, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_one_of_a_batch_that_remembers_does_not_spoil_the_others(reference):
    inputs = jnp.stack([drive(0.5), drive(1.0)])
    starts = jnp.ones((2, 2))
    sol = jax.jit(jax.vmap(solve))(inputs, starts)
    assert sol.plan.kind.tolist() == [FITS, NEWTON]
    assert sol.status.tolist() == [0, 0]
    for k in range(2):
        close(sol.states[k], reference(leaky, starts[k], inputs[k]))


@pytest.mark.parametrize("keep", ["boundaries", "last"])
def test_what_is_kept_agrees_with_all(keep):
    inputs, start = drive(0.5), jnp.ones(2)
    whole = solve(inputs, start).states
    sol = elk.evaluate(leaky, start, inputs, method=SHORT, keep=keep)
    expected = whole[-1] if keep == "last" else whole[7::8]
    np.testing.assert_allclose(sol.states, expected, rtol=0, atol=1e-5)


def test_limits_on_passes_are_kept():
    few = elk.evaluate(leaky, jnp.ones(2), drive(1.0), method=SHORT, max_iters=3)
    assert int(few.num_iters) <= 3
    assert int(few.status) == elk.Status.max_iters_reached
    allowed = elk.auto(strategy="short_blocks", block_size=8, max_passes=2)
    sol = elk.evaluate(leaky, jnp.ones(2), drive(0.5), method=allowed)
    assert int(sol.plan.kind) == NEWTON
    assert int(sol.status) == elk.Status.converged


def test_a_guess_that_is_right_takes_one_pass():
    inputs, start = drive(0.5), jnp.ones(2)
    states = solve(inputs, start).states
    sol = elk.evaluate(leaky, start, inputs, method=SHORT, guess=states)
    assert int(sol.num_iters) <= 2


def test_loops_are_written_out_for_an_accelerator_only(every_platform):
    program = jax.jit(lambda x, u: elk.evaluate(leaky, x, u, method=SHORT).states)
    traced = program.trace(jnp.ones(2), drive(0.5))
    loops = {
        platform: traced.lower(lowering_platforms=(platform,))
        .as_text()
        .count("stablehlo.while")
        for platform in ("cpu", "cuda")
    }
    assert loops["cuda"] < loops["cpu"]


def test_what_the_worst_block_allows_is_allowed_block_by_block(x64):
    rng = np.random.default_rng(0)
    allowed = 0
    for _ in range(300):
        ends = jnp.asarray(rng.normal(size=(40, 3)))
        sizes = 10 ** rng.uniform(-3, 0.5, size=2)
        beside, nodes = (ends + s * rng.uniform(-1, 1, ends.shape) for s in sizes)
        unit, floor = jnp.ones_like(ends), jnp.full_like(ends, 1e-9)
        twins = Twins(ends, beside, nodes, unit, floor)
        one_by_one = is_accepted(shot_of(twins), "sequential", LOCAL)
        if is_plainly_accepted(twins, ends[None]):
            allowed += 1
            assert bool(one_by_one)
        broken = jnp.stack([ends, ends.at[7, 1].set(jnp.nan)])
        assert not is_plainly_accepted(twins, broken)
        lost = twins._replace(beside=beside.at[3, 2].set(jnp.inf))
        assert not is_plainly_accepted(lost, ends[None])
    assert 30 < allowed < 270


def test_a_stretch_that_expands_is_looked_at_block_by_block(reference):
    # The worst block triples an error, and those after it forget that again.
    rate = np.full(LENGTH, 0.5)
    rate[300:308] = 1.15
    assert int(solved(rate, reference).plan.kind) == FITS
    start = jnp.ones(2)
    batch = jnp.stack([drive(rates) for rates in (rate, 0.5, 1.0)])
    found = jax.vmap(solve, (0, None))(batch, start)
    assert found.plan.kind.tolist() == [FITS, FITS, NEWTON]
    for states, inputs in zip(found.states, batch, strict=True):
        close(states, reference(leaky, start, inputs))
