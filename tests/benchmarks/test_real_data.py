"""The two real recordings at small size: mode, bands and figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from notebooks import small

import elk_ssm as elk
from benchmarks import real_cases, real_data, real_figures, truth

pytestmark = pytest.mark.usefixtures("x64")
# Near the learned ones at full size.
LEARNED = {
    "volatility": {"mean": -0.2, "logit_phi": 4.0, "log_q": -3.4},
    "spikes": {"log_q": -6.0},
}


@pytest.mark.parametrize(
    ("name", "package"), [("volatility", "arch"), ("spikes", "nitime")]
)
def test_mode_and_bands_at_known_parameters(name, package, tmp_path):
    pytest.importorskip(package)
    case = real_cases.CASES[name](120)
    params = jax.tree.map(jnp.asarray, LEARNED[name])
    model = case.build(params)
    found = elk.smooth(model, case.values)
    assert elk.Status(int(found.status)) is elk.Status.converged
    first, mean, phi, q = map(float, case.autoregression(params))
    mode = truth.newton_mode(first, mean, phi, q, case.curvature, 120)
    np.testing.assert_allclose(found.means[:, 0], mode, atol=1e-7)
    grid = truth.grid_posterior(model, case.values, mean - 5, mean + 5, 400)
    ours = real_data.Latent(mode, np.sqrt(np.asarray(found.covariances[:, 0, 0])))
    exact = real_data.Latent(grid.mean, grid.deviation)
    row = real_data.against(ours, exact, grid.mass_between(*ours.band()))
    # What Laplace's approximation gives at full size is .945 to .950.
    assert 0.93 < row["worst step's coverage"] <= row["coverage of 95 % band"] < 0.96
    assert row["rmse / posterior sd"] < 0.25
    assert abs(row["width ratio"] - 1) < 0.03
    assert abs(float(found.log_likelihood - grid.log_likelihood)) < 0.2
    theirs = real_data.extended(case, params)
    error = np.asarray(theirs.smoothed_means)[:, 0] - exact.mean
    assert np.sqrt(np.mean(error**2)) > 1.5 * row["rmse of mean"]
    paths = {"ours": ours, "NUTS": exact, "dynamax EKS": ours}
    assert real_figures.draw(case, paths, tmp_path).stat().st_size > 10_000


def test_the_recordings_are_whole():
    pytest.importorskip("arch")
    pytest.importorskip("nitime")
    returns = np.asarray(real_cases.volatility().values)[:, 0]
    assert len(returns) == 5030
    assert np.count_nonzero(returns == 0) == 3
    counts = np.asarray(real_cases.spikes().values)[:, 0]
    assert len(counts) == 1000
    assert counts.sum() == 929


@pytest.mark.parametrize(
    ("name", "package"), [("stochastic_volatility", "arch"), ("spike_rate", "nitime")]
)
def test_the_notebooks_run(name, package, monkeypatch):
    pytest.importorskip(package)
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf()))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the fixture has set it
    found = small.run(name)
    assert int(found["path"].status) == elk.Status.converged
    assert shown[0].axes[0].get_legend_handles_labels()[1]
    pyplot.close("all")
