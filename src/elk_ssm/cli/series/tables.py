"""Forecasts, signals and components as columns, and as bands to draw.

Everything is of observed columns: of one, the names of columns stay short; of several,
each begins with the name of its column.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

import elk_ssm as elk
from elk_ssm.cli.series.data import Series
from elk_ssm.cli.series.results import Columns


class Band(NamedTuple):
    """A line with a band, over times."""

    name: str
    times: np.ndarray
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Result(NamedTuple):
    """What a command has found.

    Attributes:
        columns: for a file.
        series: what it was found from.
        panels: bands to draw, those of the series first, and whether it is drawn too.
    """

    columns: Columns
    series: Series
    panels: list[tuple[Band, bool]]
    level: float


def forecast(
    series: Series, fitted: Any, steps: int, future: Any, level: float
) -> Result:
    """Return the steps after the last; the figure has the series before them."""
    grid, columns, panels = series.grid, {}, []
    times = grid.after(steps)
    if steps:
        options: dict[str, Any] = {}
        if grid.elapsed is not None:
            options["times"] = grid.elapsed[-1] + 1.0 + np.arange(steps)
        found = elk.forecast(fitted, steps, future, level=level, **options)
    for index, name in enumerate(series.names):
        if steps:
            parts = found.mean, found.lower, found.upper, found.variance
            mean, lower, upper, variance = (_column(x, index) for x in parts)
        else:
            mean = lower = upper = variance = np.zeros(0)
        panels.append((Band(name, times, mean, lower, upper), True))
        columns |= _named(series, name, "", mean, lower, upper)
        columns |= {_joined(series, name, "std"): np.sqrt(variance)}
    return Result(Columns(grid.name, times, columns), series, panels, level)
