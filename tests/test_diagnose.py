"""What `diagnose` says of recurrences whose answers are known."""

import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk


def linear(matrix, length=300):
    matrix = jnp.asarray(matrix)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(length, len(matrix))))
    return elk.diagnose(
        lambda x, u: matrix @ x + u, jnp.ones(len(matrix)), inputs.astype(matrix.dtype)
    )


def test_a_contraction():
    found = linear(np.diag([0.5, 0.25]))
    assert float(found.lyapunov_exponent) == pytest.approx(np.log(0.5), rel=1e-4)
    assert float(found.growth) == 0.0
    # 0.5^20 is the first power below 1e-6.
    assert int(found.forgetting_length) == 20 - 1
    assert float(found.off_diagonal_share) == 0.0
    assert found.recommendation.startswith("auto()")


def test_an_expansion(x64):
    found = linear(np.diag([1.1, 0.5]))
    assert float(found.lyapunov_exponent) == pytest.approx(np.log(1.1), rel=1e-6)
    assert float(found.growth) == pytest.approx(300 * np.log(1.1), rel=1e-6)
    assert found.growth_interval.tolist() == [0, 299]
    assert int(found.forgetting_length) == -1
    assert "sequential" in found.recommendation


def test_growth_within_an_interval_is_found_where_the_mean_hides_it():
    rates = np.full(320, 0.7, np.float32)
    rates[160:180] = 1.5
    found = elk.diagnose(lambda x, u: u * x, jnp.ones(1), jnp.asarray(rates)[:, None])
    assert float(found.lyapunov_exponent) < 0
    assert float(found.growth) == pytest.approx(20 * np.log(1.5), rel=1e-3)
    assert found.growth_interval.tolist() == [160, 179]


def test_the_share_off_the_diagonal():
    found = linear(np.array([[0.3, 0.4], [0.0, 0.0]]))
    assert float(found.off_diagonal_share) == pytest.approx(0.8, rel=1e-5)


def test_reads_as_a_report():
    text = repr(linear(np.diag([0.5, 0.25])))
    for part in ("Lyapunov", "growth", "forgetting length   19", "recommended"):
        assert part in text


ORBITS = {
    "a cycle of two": (lambda x, _: 3.2 * x * (1 - x), 0.3),
    "a cycle of four": (lambda x, _: 3.5 * x * (1 - x), 0.3),
    "two states of rest in turn": (lambda x, _: jnp.tanh(-3 * x), 0.5),
}


@pytest.mark.parametrize("name", ORBITS)
def test_another_phase_of_a_cycle_is_not_forgotten(name, x64):
    """Products of Jacobians die out, and no method is done before the last steps."""
    f, start = ORBITS[name]
    found = elk.diagnose(f, jnp.array([start]), length=600)
    assert int(found.forgetting_length) >= 0
    assert not found.forgets_its_start
    assert "does not come to this trajectory" in found.recommendation
    assert found.predicted_passes == 1
    for method in (elk.deer(), elk.quasi_deer(), elk.jacobi(), elk.picard()):
        sol = elk.evaluate(f, jnp.array([start]), length=600, method=method)
        predicted = found.predictions[sol.plan.describe().split(":")[0]]
        assert 2 / 3 < predicted / int(sol.num_iters) < 1.5


def test_a_trajectory_that_breaks_is_looked_at_until_it_does():
    def henon(x, _):
        return jnp.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])

    found = elk.diagnose(henon, jnp.array([5.0, 5.0]), length=100)
    sol = elk.evaluate(henon, jnp.array([5.0, 5.0]), length=100)
    assert int(found.failed_step) == int(sol.failed_step)
    assert np.isfinite([found.lyapunov_exponent, found.growth]).all()
    assert found.recommendation.startswith("none: the state is not finite from step")
    assert f"first {int(sol.failed_step)} steps" in repr(found)
    with pytest.raises(ValueError, match="not finite at step 0"):
        elk.diagnose(lambda x, _: jnp.inf * x, jnp.ones(1), length=9)


def test_passes_on_a_cpu_are_those_of_the_default():
    for length in (300, 8000):
        f = lambda x, u: 0.5 * x + u  # noqa: E731
        problem = f, jnp.ones(2), jnp.ones((length, 2))
        sol = elk.evaluate(*problem)
        assert elk.diagnose(*problem).predicted_passes == int(sol.num_iters)


def test_looks_at_the_beginning_only():
    found = elk.diagnose(lambda x, _: 0.5 * x, jnp.ones(1), length=5000, max_length=100)
    assert (found.length, found.log_growth.shape[1]) == (5000, 100)


def test_bad_arguments():
    with pytest.raises(ValueError, match="max_length"):
        elk.diagnose(lambda x, _: x, jnp.ones(1), length=5, max_length=1)
