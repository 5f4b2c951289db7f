"""The pictures: data in the artists, axes labelled, styles that survive in grey."""

import subprocess
import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import elk_ssm as elk
from elk_ssm import plotting
from elk_ssm.fitted.decomposing import Band
from elk_ssm.fitted.errors_ahead import Innovations


@pytest.fixture
def ax():
    return Figure().subplots()


def history(*residuals):
    return SimpleNamespace(residual_norm=np.array(residuals))


def luminance(colour):
    return float(np.dot(to_rgb(colour), [0.2126, 0.7152, 0.0722]))


class TestResiduals:
    def test_curves_hold_the_residuals_up_to_the_last_iteration(self, ax):
        histories = {"a": history(1.0, 0.1, np.nan), "b": history(3.0, 2.0, 1.0)}
        assert plotting.residuals(histories, ax) is ax
        first, second = ax.lines
        np.testing.assert_array_equal(first.get_xydata(), [[1, 1.0], [2, 0.1]])
        np.testing.assert_array_equal(second.get_ydata(), [3, 2, 1])
        assert [x.get_text() for x in ax.get_legend().get_texts()] == ["a", "b"]

    def test_axes_are_logarithmic_and_labelled(self, ax):
        plotting.residuals({"a": history(1.0)}, ax)
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert ax.get_xlabel() == "iteration"
        assert "residual" in ax.get_ylabel()

    def test_curves_differ_without_colour(self, ax):
        plotting.residuals({str(i): history(1.0, 0.1) for i in range(7)}, ax)
        styles = {(line.get_linestyle(), line.get_marker()) for line in ax.lines}
        assert len(styles) == 7

    def test_the_last_iteration_is_marked(self, ax):
        plotting.residuals({"a": history(*np.geomspace(1, 1e-9, 200))}, ax)
        marked = ax.lines[0].get_markevery()
        assert marked[0] == 0
        assert marked[-1] == 199
        assert len(marked) <= 12

    def test_a_residual_of_zero_stays_visible(self, ax):
        plotting.residuals({"a": history(1.0, 0.0)}, ax)
        last = ax.lines[0].get_ydata()[-1]
        assert last == np.finfo(float).eps
        assert ax.get_ylim()[0] < last

    @pytest.mark.parametrize("curves", [{}, {"a": history(np.nan)}])
    def test_nothing_to_draw(self, ax, curves):
        assert plotting.residuals(curves, ax) is ax


class TestBands:
    time = np.arange(4)
    truth = np.array([0.0, 1.0, 0.0, -1.0])

    def test_one_iterate(self, ax):
        mean, std = self.truth + 0.5, np.full(4, 0.25)
        assert plotting.bands(self.time, self.truth, mean, std, ax) is ax
        drawn, reference = ax.lines
        np.testing.assert_array_equal(drawn.get_ydata(), mean)
        np.testing.assert_array_equal(reference.get_ydata(), self.truth)
        assert drawn.get_linestyle() != reference.get_linestyle()
        (band,) = ax.collections
        edge = band.get_paths()[0].vertices[:, 1]
        assert (edge.min(), edge.max()) == (-1.0, 2.0)
        assert ax.get_xlabel()
        assert ax.get_ylabel()

    def test_the_width_of_the_band(self, ax):
        zeros = np.zeros(4)
        plotting.bands(self.time, None, zeros, zeros + 1, ax, num_stds=3)
        edge = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert (edge.min(), edge.max()) == (-3.0, 3.0)
        assert len(ax.lines) == 1

    def test_several_iterates_darken(self, ax):
        means = np.stack([self.truth + i for i in range(3)])
        labels = ["first", "second", "third"]
        plotting.bands(self.time, None, means, 0 * means, ax, labels=labels)
        shades = [luminance(line.get_color()) for line in ax.lines]
        assert shades == sorted(shades, reverse=True)
        assert len(set(shades)) == 3
        assert [line.get_label() for line in ax.lines] == labels

    def test_no_band_without_deviations(self, ax):
        plotting.bands(self.time, self.truth, self.truth, ax=ax)
        assert not ax.collections

    @pytest.mark.parametrize(
        ("time", "means", "stds"),
        [
            (3, (4,), (4,)),
            (4, (4,), (5,)),
            (4, (2, 4), (4,)),
            (4, (2, 3, 4), (2, 3, 4)),
        ],
    )
    def test_shapes_that_do_not_agree(self, ax, time, means, stds):
        with pytest.raises(ValueError, match=r"expected time \(T,\)"):
            plotting.bands(np.zeros(time), None, np.zeros(means), np.zeros(stds), ax)


def posterior(offset, std, length=5, size=2):
    means = np.arange(length * size, dtype=float).reshape(length, size) + offset
    return SimpleNamespace(means=means, standard_deviations=np.full_like(means, std))


class TestIterates:
    def test_one_dimension_of_every_posterior(self, ax):
        found = {"pass 1": posterior(0.0, 2.0), "pass 2": posterior(0.5, 0.25)}
        truth = posterior(1.0, 0.0).means
        assert plotting.iterates(found, ax, reference=truth, dimension=1) is ax
        first, second, reference = ax.lines
        np.testing.assert_array_equal(first.get_xdata(), [1, 2, 3, 4, 5])
        np.testing.assert_array_equal(first.get_ydata(), found["pass 1"].means[:, 1])
        np.testing.assert_array_equal(second.get_ydata(), found["pass 2"].means[:, 1])
        np.testing.assert_array_equal(reference.get_ydata(), truth[:, 1])
        widths = [np.ptp(c.get_paths()[0].vertices[:, 1]) for c in ax.collections]
        assert widths == [8 + 8.0, 8 + 1.0]

    def test_lines_differ_without_colour(self, ax):
        plotting.iterates({str(i): posterior(i, 1.0) for i in range(3)}, ax)
        assert len({line.get_linestyle() for line in ax.lines}) == 3
        assert ax.lines[-1].get_linestyle() == "-"
        assert [x.get_text() for x in ax.get_legend().get_texts()] == ["0", "1", "2"]

    def test_bad_posteriors(self, ax):
        with pytest.raises(ValueError, match="at least one"):
            plotting.iterates({}, ax)
        different = {"a": posterior(0, 1), "b": posterior(0, 1, length=4)}
        with pytest.raises(ValueError, match=r"\[5, 4\]"):
            plotting.iterates(different, ax)


class TestNoiseSweep:
    def sweep(self, noises, num_iters, status):
        arrays = (jnp.array(x) for x in (noises, num_iters, num_iters, status))
        return elk.NoiseSweep(*arrays)

    def test_runs_that_failed_are_crosses(self, ax):
        sweep = self.sweep([1.0, 1e2, 1e4], [99, 20, 30], [1, 0, 0])
        assert plotting.noise_sweep(sweep, ax) is ax
        by_marker = {line.get_marker(): line for line in ax.lines if line.get_marker()}
        np.testing.assert_array_equal(by_marker["x"].get_xydata(), [[1, 99]])
        curve = ax.lines[0]
        np.testing.assert_array_equal(curve.get_xydata(), [[1e2, 20], [1e4, 30]])
        best = [x for x in ax.lines if x.get_label() == "fewest iterations"]
        np.testing.assert_array_equal(best[0].get_xydata(), [[1e2, 20]])

    def test_no_damping_has_a_place_of_its_own(self, ax):
        plotting.noise_sweep(self.sweep([1.0, np.inf], [9, 4], [0, 0]), ax)
        places = np.concatenate([x.get_xdata() for x in ax.lines if x.get_marker()])
        assert np.isfinite(places).all()
        names = [x.get_text() for x in ax.get_xticklabels()]
        assert names[-1].startswith("∞")
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 9]])

    def test_nothing_converged(self, ax):
        plotting.noise_sweep(self.sweep([np.inf], [9], [2]), ax)
        labels = [x.get_text() for x in ax.get_legend().get_texts()]
        assert labels == ["did not converge"]
        assert "s²" in ax.get_xlabel()


class TestGate:
    def test_prefix_and_states_set_back(self, ax):
        n = np.nan
        seen = elk.History(*[None] * 3, np.array([1, 2, 4, n]), np.array([0, 7, 1, n]))
        assert plotting.gate(seen, ax) is ax
        np.testing.assert_array_equal(
            ax.lines[0].get_xydata(), [[1, 1], [2, 2], [3, 4]]
        )
        (bars,) = ax.collections
        tops = [path.vertices[-1].tolist() for path in bars.get_paths()]
        assert tops == [[1, 0], [2, 7], [3, 1]]
        assert "unknowns" in ax.get_ylabel()


class TestErrorMap:
    found = np.stack([np.full((4, 2), e) for e in (1.0, 1e-3, 0.0)])
    truth = np.zeros((4, 2))

    def test_errors_in_decades(self, ax):
        assert plotting.error_map(self.found, self.truth, ax) is ax
        shown = ax.images[0].get_array()
        np.testing.assert_allclose(shown[:, 0], [0, -3, -3], atol=1e-12)
        assert ax.images[0].get_cmap().name == "Greys"
        assert ax.figure.axes[1].get_ylabel().startswith("log")

    def test_what_is_not_finite_is_left_out(self, ax):
        found = self.found.copy()
        found[0, 2] = np.inf
        found[0, 3] = np.nan
        plotting.error_map(found, self.truth, ax)
        assert ax.images[0].get_array().mask[0].tolist() == [False, False, True, True]

    def test_the_exact_prefix(self, ax):
        seen = elk.History(*[None] * 3, np.array([1.0, 2.0, np.nan]), None)
        plotting.error_map(self.found, self.truth, ax, history=seen, block_size=2)
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[2.5, 1], [4.5, 2]])
        assert ax.get_ylim() == (2.5, -0.5)

    def test_shapes_that_do_not_agree(self, ax):
        with pytest.raises(ValueError, match=r"\(n \+ 1, T, D\)"):
            plotting.error_map(self.found, self.truth[:3], ax)


class TestDiagnosis:
    def found(self, growth, interval):
        return elk.Diagnosis(
            lyapunov_exponent=-0.5,
            growth=np.nanmax(growth),
            growth_interval=np.array(interval),
            forgetting_length=-1,
            off_diagonal_share=0.1,
            log_growth=growth,
            length=growth.shape[1],
            size=1,
            spectrum=np.zeros(1),
            stretch_passes={},
        )

    def test_the_interval_of_largest_growth_stands_out(self, ax):
        n = np.nan
        growth = np.array([[0.5, 1.0, 0.0, -1.0], [n, n, 2.0, 1.0]])
        assert plotting.diagnosis(self.found(growth, [2, 2]), ax) is ax
        one, two, largest, mean = ax.lines
        np.testing.assert_array_equal(one.get_ydata(), growth[0])
        np.testing.assert_array_equal(two.get_ydata(), growth[1])
        np.testing.assert_array_equal(largest.get_xydata(), [[3, 2.0]])
        np.testing.assert_array_equal(mean.get_ydata(), [-0.5, -1, -1.5, -2])
        assert largest.get_linewidth() > one.get_linewidth()
        assert ax.get_xlabel() == "time step"

    def test_where_a_start_is_forgotten(self, ax):
        growth = np.linspace(0, -60, 30)[None]
        plotting.diagnosis(self.found(growth, [0, 0]), ax)
        level = ax.lines[-1].get_ydata()[0]
        assert level == pytest.approx(np.log(1e-6))
        low, high = ax.get_ylim()
        assert low < level < 0 < high
        assert low > -60


def expected(steps):
    mean, variance = np.full(steps, 2.0), 1.0 + np.arange(steps)
    reach = 1.96 * np.sqrt(variance)
    return elk.Forecast(mean, variance, mean - reach, mean + reach)


class TestForecast:
    y = np.array([1.0, np.nan, 3.0, np.nan, 2.0, 2.5])

    def test_the_series_the_mean_and_the_band_are_where_they_are(self, ax):
        ahead = expected(3)
        assert plotting.forecast(ahead, ax, y=self.y[:, None], ylabel="m") is ax
        seen, mean = ax.lines
        np.testing.assert_array_equal(seen.get_xydata().T, [range(6), self.y])
        np.testing.assert_array_equal(mean.get_xydata().T, [[6, 7, 8], ahead.mean])
        (band,) = ax.collections
        reach = band.get_paths()[0].get_extents()
        ends = [6, ahead.lower.min(), 8, ahead.upper.max()]
        np.testing.assert_allclose(reach.extents, ends)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("time step", "m")
        names = [x.get_text() for x in ax.get_legend().get_texts()]
        assert sorted(names) == ["band", "forecast", "observed"]

    def test_what_stands_alone_has_a_mark(self, ax):
        plotting.forecast(expected(1), ax, y=self.y)
        seen, mean = ax.lines
        assert seen.get_markevery() == [0, 2]
        assert (seen.get_marker(), mean.get_marker()) == (".", "o")
        assert ax.collections[0].get_linewidth()[0] > 0

    def test_the_last_of_a_series_and_dates(self, ax):
        days = np.datetime64("2020-01-30") + np.arange(9)
        plotting.forecast(expected(3), ax, y=self.y, last=2, times=days)
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), self.y[-2:])
        np.testing.assert_array_equal(ax.lines[1].get_xdata(), days[6:])
        with pytest.raises(ValueError, match=r"times must be \(9,\)"):
            plotting.forecast(expected(3), ax, y=self.y, times=days[:6])


class TestComponents:
    def parts(self):
        mean = np.arange(12.0).reshape(2, 3, 2)
        bands = mean, np.ones_like(mean), mean - 1, mean + 1
        total = Band(*(x.sum(axis=0) for x in bands))
        gap = np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, 0.5]])
        return elk.Decomposition(*bands, total, gap, ("level", "cycle"))

    def test_a_panel_for_the_sum_and_for_each(self):
        parts = self.parts()
        axes = plotting.components(parts, Figure().subplots(3), dimension=1)
        titles = [ax.get_title(loc="left") for ax in axes]
        assert titles == ["observed and signal", "level", "cycle"]
        seen, total = (line.get_ydata() for line in axes[0].lines)
        np.testing.assert_array_equal(total, parts.mean[..., 1].sum(axis=0))
        np.testing.assert_array_equal(seen, total + 0.5)
        for ax, mean in zip(axes[1:], parts.mean[..., 1]):
            np.testing.assert_array_equal(ax.lines[0].get_ydata(), mean)
            reach = ax.collections[0].get_paths()[0].get_extents()
            np.testing.assert_allclose(reach.intervaly, [mean[0] - 1, mean[-1] + 1])
        assert axes[-1].get_xlabel() == "time step"

    def test_a_gap_is_none_of_the_dots(self):
        seen = plotting.components(self.parts(), Figure().subplots(3))[0].lines[0]
        np.testing.assert_array_equal(np.isnan(seen.get_ydata()), [False, True, False])

    def test_too_few_axes_are_said(self):
        with pytest.raises(ValueError, match="needs 3 axes; got 2"):
            plotting.components(self.parts(), Figure().subplots(2))


class TestDiagnostics:
    def drawn(self, white, **options):
        found = Innovations(*[jnp.asarray(white)] * 3)
        return found, plotting.diagnostics(found, Figure().subplots(2, 2), **options)

    def test_four_views_of_the_same_innovations(self):
        white = np.random.default_rng(0).normal(size=50)
        white[[0, 7]] = np.nan
        found, (over_time, histogram, acf, quantiles) = self.drawn(white, lags=6)
        known = np.float32(np.sort(white[np.isfinite(white)]))
        np.testing.assert_array_equal(over_time.lines[0].get_ydata(), np.float32(white))
        area = sum(x.get_width() * x.get_height() for x in histogram.patches)
        np.testing.assert_allclose(area, 1, rtol=1e-5)
        x, y = acf.lines[-1].get_xydata().T
        np.testing.assert_array_equal(x, np.arange(1, 7))
        np.testing.assert_allclose(y, found.tests(6).autocorrelations, rtol=1e-6)
        x, y = quantiles.lines[0].get_xydata().T
        np.testing.assert_array_equal(y, known)
        places = (np.arange(48) + 0.5) / 48
        np.testing.assert_allclose(x, scipy.stats.norm.ppf(places), atol=1e-4)

    def test_without_any_there_is_nothing_to_draw(self):
        _, (over_time, histogram, *_) = self.drawn(np.full(9, np.nan))
        assert np.isnan(over_time.lines[0].get_ydata()).all()
        assert not histogram.patches


def test_pictures_of_a_real_solve(ax):
    def f(x, u):
        return jnp.tanh(x + u)

    inputs = jnp.ones((9, 2))
    sol = elk.evaluate(
        f, jnp.zeros(2), inputs, method=elk.deer(gate=elk.Gate()), history=12
    )
    plotting.gate(sol.history, ax)
    done = int(sol.num_iters)
    assert ax.lines[0].get_xdata().tolist() == list(range(1, done + 1))
    assert plotting is elk.plotting


def test_without_axes_a_figure_is_made():
    made = plotting.residuals({"a": history(1.0)})
    assert made.figure.axes == [made]
    pyplot.close(made.figure)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"elk-ssm\[plots\]"):
        plotting.residuals({})


def test_importing_the_package_brings_neither_matplotlib_nor_rich():
    code = (
        "import sys, elk_ssm, elk_ssm.cli, elk_ssm.plotting\n"
        "print([m for m in ('matplotlib', 'rich') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_steps_in_the_place_of_axes_are_named():
    seen = elk.Observed(elk.models.local_level(), jnp.array([1.0, 2.0, 4.0]))
    with pytest.raises(TypeError, match="must be Matplotlib's axes; got 10"):
        elk.plotting.forecast(seen, 10)
