"""Lyapunov exponents of recurrences whose exponents are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from benchmarks import lyapunov, predictions
from elk_ssm.lyapunov import orthonormalize


def test_of_a_linear_recurrence_they_are_the_logarithms_of_the_eigenvalues(x64):
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(4, 4))
    values = np.array([1.1, 0.8, -0.4, 0.05])
    matrix = jnp.asarray(basis @ np.diag(values) @ np.linalg.inv(basis))
    found = elk.lyapunov_spectrum(
        lambda x, _: matrix @ x, jnp.ones(4), length=400, burn_in=100
    )
    expected = np.log(np.abs(values))
    np.testing.assert_allclose(found.exponents, expected, atol=1e-6)
    assert found.errors.max() < 1e-6
    two = elk.lyapunov_spectrum(
        lambda x, _: matrix @ x, jnp.ones(4), length=400, burn_in=100, num_exponents=2
    )
    np.testing.assert_allclose(two.exponents, expected[:2], atol=1e-6)


def test_lorenz_has_its_published_spectrum_and_dimension(x64):
    # Sprott (2003), Chaos and Time-Series Analysis: 0.9056, 0, -14.5723; 2.0621.
    row = lyapunov.measure_one("Lorenz", periods=60, burn_in=5)
    assert row["largest"] == pytest.approx(0.9056, abs=0.12)
    assert row["spectrum"][1] == pytest.approx(0, abs=0.05)
    # The divergence of the flow is constant: -(10 + 1 + 2.667).
    assert sum(row["spectrum"]) == pytest.approx(-13.667, abs=1e-3)
    assert row["dimension"] == pytest.approx(2.062, abs=0.01)


def test_the_collection_has_enough_flows_and_two_opinions():
    assert len(lyapunov.chosen()) >= 30
    row = lyapunov.published()["Lorenz"]
    assert row["maximum_lyapunov_estimated"] == pytest.approx(0.8917, abs=1e-3)


def test_many_directions_are_orthonormal_as_few_are():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(12, 12)), jnp.float32)
    for count in (5, 12):
        basis, logs = orthonormalize(rows[:count])
        np.testing.assert_allclose(basis @ basis.T, np.eye(count), atol=2e-6)
        expected = np.abs(np.diag(np.linalg.qr(np.asarray(rows[:count]).T)[1]))
        np.testing.assert_allclose(jnp.exp(logs), expected, rtol=2e-5)


def test_what_a_singular_jacobian_destroys_is_gone():
    matrix = jnp.diag(jnp.array([2.0, 0.0]))
    found = elk.lyapunov_spectrum(
        lambda x, _: matrix @ x, jnp.ones(2), length=30, burn_in=9
    )
    assert float(found.exponents[0]) == pytest.approx(np.log(2), abs=0.05)
    assert float(found.exponents[1]) < -10


def test_summaries():
    found = elk.LyapunovSpectrum(jnp.array([1.0, 0.5, -3.0]), jnp.ones(3))
    assert float(found.kaplan_yorke_dimension) == pytest.approx(2.5)
    assert float(found.entropy) == 1.5
    assert float(found.per_time(0.1).exponents[0]) == pytest.approx(10)
    stable = elk.LyapunovSpectrum(jnp.array([-1.0, -2.0]), jnp.zeros(2))
    assert float(stable.kaplan_yorke_dimension) == 0
    growing = elk.LyapunovSpectrum(jnp.array([2.0, -1.0]), jnp.zeros(2))
    assert float(growing.kaplan_yorke_dimension) == 2


def test_mistakes_are_named():
    f = lambda x, _: 0.5 * x  # noqa: E731
    with pytest.raises(ValueError, match="from 1 to the 2 dimensions"):
        elk.lyapunov_spectrum(f, jnp.ones(2), length=9, num_exponents=3)
    with pytest.raises(ValueError, match="burn_in must be from 0 to T - 1 = 8"):
        elk.lyapunov_spectrum(f, jnp.ones(2), length=9, burn_in=9)
    for name in ("burn_in", "num_exponents"):
        with pytest.raises(TypeError, match=f"{name} must be an integer; got 1.0"):
            elk.lyapunov_spectrum(f, jnp.ones(2), length=9, **{name: 1.0})
    found = elk.LyapunovSpectrum(jnp.ones(1), jnp.ones(1))
    for dt in (0.0, -0.1, float("nan"), "a", None, jnp.ones(2)):
        with pytest.raises(ValueError, match="dt must be a positive number; got"):
            found.per_time(dt)


def test_the_benchmark_says_by_which_factor_it_is_wrong():
    row = {"predicted": {"deer": 10}, "measured": {"deer": 25}}
    assert predictions.factor(row, "deer") == 2.5
    assert jax.config.jax_enable_x64 is False


@pytest.mark.parametrize("extreme", [1e20, 1e-22])
@pytest.mark.parametrize("size", [2, 12])
def test_no_square_overflows(extreme, size):
    """In float32; with two exponents, and with so many that they go by a loop."""
    rates = jnp.full(size, 2.0).at[0].set(extreme)
    problem = lambda x, _: rates * x, jnp.zeros(size)
    found = elk.lyapunov_spectrum(*problem, length=200).exponents
    expected = np.sort(np.log(np.asarray(rates, float)))[::-1]
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=2e-2)
    # What shrinks by more than the dtype resolves is rounding, and finite.
    resolved = max(expected[-1], np.log(np.finfo(np.float32).eps))
    assert np.isfinite(found[-1])
    assert found[-1] < resolved + 0.1
    largest = elk.diagnose(*problem, length=200).lyapunov_exponent
    np.testing.assert_allclose(largest, expected[0], rtol=1e-4)
