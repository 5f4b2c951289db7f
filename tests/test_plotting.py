"""The pictures: data in the artists, axes labelled, styles that survive in grey."""

import subprocess
import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from elk_ssm import plotting


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
