"""Forecasts, signals and components as columns, and as bands to draw.

Everything is of observed columns: of one, the names of columns stay short; of several,
each begins with the name of its column.
"""

from typing import Any, NamedTuple

import numpy as np

import elk_ssm as elk
from elk_ssm.cli.series.data import Series
from elk_ssm.cli.series.results import Columns
from elk_ssm.linalg.structure import variances_of


class Band(NamedTuple):
    """A line with a band, over times."""

    name: str
    times: np.ndarray
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Panel(NamedTuple):
    """A band to draw, and the series that it is of, `(T,)`, if it is of one."""

    band: Band
    observed: np.ndarray | None = None


class Result(NamedTuple):
    """What a command has found.

    Attributes:
        columns: for a file.
        series: what it was found from.
        panels: what to draw, from top to bottom.
        level: of the bands.
    """

    columns: Columns
    series: Series
    panels: list[Panel]
    level: float


def forecast(
    series: Series, fitted: Any, steps: int, future: Any, level: float
) -> Result:
    """Return the steps after the last; the figure has the series before them."""
    times, width = series.grid.after(steps), len(series.names)
    options: dict[str, Any] = {}
    if series.grid.elapsed is not None:
        options["times"] = series.grid.elapsed[-1] + 1.0 + np.arange(steps)
    found = elk.forecast(fitted, steps, future, level=level, **options)
    mean, variance, lower, upper = (np.reshape(x, (steps, width)) for x in found[:4])
    columns: dict[str, np.ndarray] = {}
    panels = []
    for i, name in enumerate(series.names):
        band = Band(name, times, mean[:, i], lower[:, i], upper[:, i])
        columns |= _columns(_prefix(series, name), band)
        columns[f"{_prefix(series, name)}std"] = np.sqrt(variance[:, i])
        panels.append(Panel(band, series.values[:, i]))
    return Result(Columns(series.grid.name, times, columns), series, panels, level)


def smoothed(series: Series, fitted: Any, level: float) -> Result:
    """Return the series without its noise, and every state, given all of it."""
    signal = elk.decompose(fitted, level=level).signal
    matrices = fitted.model.lgssm(series.inputs, series.grid.elapsed)
    found = elk.lgssm_smoother(matrices, fitted.emissions)
    columns, panels = _signals(series, signal)
    variances = np.asarray(variances_of(found.smoothed_covariances))
    for i, state in enumerate(fitted.model.state_names):
        columns[state] = np.asarray(found.smoothed_means)[:, i]
        columns[f"{state} std"] = np.sqrt(np.maximum(variances[:, i], 0))
    grid = series.grid
    return Result(Columns(grid.name, grid.times, columns), series, panels, level)


def decomposed(series: Series, fitted: Any, level: float) -> Result:
    """Return the signal, and every component with its band, given all of the series."""
    found = elk.decompose(fitted, level=level)
    columns, panels = _signals(series, found.signal)
    shape = len(found.names), len(series.values), len(series.names)
    mean, lower, upper = (
        np.reshape(x, shape) for x in (found.mean, found.lower, found.upper)
    )
    grid = series.grid
    for c, component in enumerate(found.names):
        for i, name in enumerate(series.names):
            label = _prefix(series, name) + component
            parts = (x[c, :, i] for x in (mean, lower, upper))
            band = Band(label, grid.times, *parts)
            columns |= _columns(f"{label} ", band)
            panels.append(Panel(band))
    residual = np.reshape(found.residual, shape[1:])
    for i, name in enumerate(series.names):
        columns[f"{_prefix(series, name)}residual"] = residual[:, i]
    return Result(Columns(grid.name, grid.times, columns), series, panels, level)


def _signals(series: Series, signal: Any) -> tuple[dict[str, np.ndarray], list[Panel]]:
    """Return the series and its signal as columns and as panels."""
    columns: dict[str, np.ndarray] = {}
    panels, shape = [], series.values.shape
    mean, lower, upper = (
        np.reshape(x, shape) for x in (signal.mean, signal.lower, signal.upper)
    )
    for i, name in enumerate(series.names):
        parts = (x[:, i] for x in (mean, lower, upper))
        band = Band(name, series.grid.times, *parts)
        columns[f"{_prefix(series, name)}observed"] = series.values[:, i]
        columns |= _columns(f"{_prefix(series, name)}signal ", band)
        panels.append(Panel(band, series.values[:, i]))
    return columns, panels


def _columns(prefix: str, band: Band) -> dict[str, np.ndarray]:
    parts = {"mean": band.mean, "lower": band.lower, "upper": band.upper}
    return {prefix + name: values for name, values in parts.items()}


def _prefix(series: Series, name: str) -> str:
    """Return what a column begins with: nothing where there is one series."""
    return "" if len(series.names) == 1 else f"{name} "
