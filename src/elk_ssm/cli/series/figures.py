"""Pictures of forecasts, signals and components: a panel each, over one axis of time.

The series is dots, so that gaps are seen; a forecast is preceded by the last stretch
of the series alone, a few times as long, or it would be too small to be seen.
"""

import io
from typing import Any

import numpy as np

from elk_ssm.cli.series.tables import Panel, Result
from elk_ssm.plotting.style import BLUE

_BEFORE = 5  # So many times as long as a forecast is what is shown before it.
_LEAST_BEFORE = 100


def as_picture(result: Result, suffix: str) -> bytes:
    """Return the picture as a file of this kind."""
    file = io.BytesIO()
    draw(result).savefig(file, format=suffix.removeprefix("."), dpi=150)
    return file.getvalue()


def draw(result: Result) -> Any:
    """Return the figure."""
    from matplotlib.figure import Figure

    count = len(result.panels)
    size = 9, 1.2 + (3.2 if count == 1 else 1.9 * count)
    figure: Any = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for ax, panel in zip(axes, result.panels, strict=True):
        _draw_panel(ax, panel, result)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    _name_times(axes[-1], result)
    return figure


def _draw_panel(ax: Any, panel: Panel, result: Result) -> None:
    band, times = panel.band, result.series.grid.times
    if panel.observed is not None:
        shown = slice(-_stretch(band, times), None)
        observed = panel.observed[shown]
        few = observed.size < 300
        size = 3.5 if few else 1.8
        ax.plot(times[shown], observed, "o", ms=size, c="k", alpha=0.6, label="series")
    if band.mean.size:
        percent = f"{100 * result.level:g}% band"
        ax.fill_between(
            band.times, band.lower, band.upper, color=BLUE, alpha=0.25, lw=0
        )
        ax.fill_between([], [], [], color=BLUE, alpha=0.25, lw=0, label=percent)
        lonely = "o" if band.mean.size == 1 else None
        ax.plot(band.times, band.mean, color=BLUE, lw=1.1, marker=lonely, label="mean")
    ax.set_title(band.name, loc="left", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)


def _stretch(band: Any, times: np.ndarray) -> int:
    """Return how many of the last steps of the series to show."""
    if not band.times.size or band.times[0] <= times[-1]:
        return len(times)
    return max(_BEFORE * len(band.times), _LEAST_BEFORE)


def _name_times(ax: Any, result: Result) -> None:
    grid = result.series.grid
    if grid.times.dtype.kind == "M":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        return
    ax.set_xlabel(grid.name)
