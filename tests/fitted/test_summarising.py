"""The table of a fit says what the fit says, and keeps to its columns."""

import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm
from rich.console import Console

import elk_ssm as elk
from elk_ssm.models.bijections import between, fraction, positive, stationary
from elk_ssm.models.errors import interval


@pytest.fixture(scope="module")
def fitted():
    y = np.array(sm.datasets.nile.load_pandas().data["volume"], float)
    y[40:45] = np.nan
    model = elk.models.local_linear_trend()
    y = jnp.asarray(y, jnp.float32)
    return elk.fit(model.fix(**{"trend.slope_variance": 0.0}), y)


def test_the_table_says_what_the_fit_says(fitted):
    found = elk.summary(fitted)
    rows = {row.name: row for row in found.rows}
    assert rows["trend.slope_variance"].note == "fixed"
    noise = rows["noise.variance"]
    np.testing.assert_allclose(noise.estimate, fitted.parameters["noise.variance"])
    error = float(fitted.standard_errors["noise.variance"])
    np.testing.assert_allclose([noise.z], noise.estimate / error, rtol=1e-6)
    # Symmetric in the logarithm, whose standard error is that of the variance over it.
    reach = np.exp(1.959964 * error / noise.estimate)
    ends = noise.estimate / reach, noise.estimate * reach
    np.testing.assert_allclose((noise.lower, noise.upper), ends, rtol=1e-5)
    assert found.facts["observations"] == "95 of 100"
    assert found.facts["status"] in ("converged", "precision limit")
    text = str(found)
    for word in (*rows, "fixed", "AIC", "Ljung-Box, 10 lags", "heteroskedasticity"):
        assert word in text
    assert f"{float(fitted.log_likelihood):.4f}" in text


def test_intervals_are_of_allowed_values():
    """Of badly known parameters too; a vector's is what its standard error says."""
    for bijection, value in ((positive, 0.1), (fraction, 0.9), (between(1, 3), 1.2)):
        lower, upper = interval(bijection, jnp.asarray(value), jnp.asarray(5.0), 2.0)
        low, high = bijection.forward(jnp.array([-1e3, 1e3]))
        assert low <= lower < value < upper <= high
        near = interval(bijection, jnp.asarray(value), jnp.asarray(1e-3), 2.0)
        np.testing.assert_allclose(near, (value - 2e-3, value + 2e-3), rtol=1e-3)
    coefficients, errors = jnp.array([0.5, 0.2]), jnp.array([0.1, 0.2])
    ends = interval(stationary, coefficients, errors, 2.0)
    np.testing.assert_allclose(ends, [[0.3, -0.2], [0.7, 0.6]], rtol=1e-6)


@pytest.mark.parametrize("width", [80, 60])
def test_it_keeps_to_its_columns(fitted, width):
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(elk.summary(fitted))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= width
    assert "trend.level_variance" in text.replace("\n", "") or width < 80
    assert "…" not in text


def test_a_search_cut_off_says_so(fitted):
    cut = fitted._replace(status=jnp.asarray(int(elk.Status.max_iters_reached)))
    found = elk.summary(cut)
    assert found.facts["status"] == "max iters reached"
    assert "max_iters" in found.facts["advice"]
    with pytest.raises(TypeError, match="got Model"):
        elk.summary(fitted.model)
