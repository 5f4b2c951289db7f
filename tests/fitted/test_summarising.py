"""The table of a fit says what the fit says, and keeps to its columns."""

import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm
from rich.console import Console

import elk_ssm as elk


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
    np.testing.assert_allclose(noise.upper - noise.lower, 2 * 1.959964 * error, 1e-5)
    assert found.facts["observations"] == "95 of 100"
    assert found.facts["status"] in ("converged", "precision limit")
    text = str(found)
    for word in (*rows, "fixed", "AIC", "Ljung-Box, 10 lags", "heteroskedasticity"):
        assert word in text
    assert f"{float(fitted.log_likelihood):.4f}" in text


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
