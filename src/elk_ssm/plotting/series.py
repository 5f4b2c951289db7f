"""Pictures of a series: its forecast with bands, and the components it is made of."""

from typing import TYPE_CHECKING, Any

import numpy as np

from elk_ssm.fitted.decomposing import Decomposition, decompose
from elk_ssm.fitted.forecasting import Forecast
from elk_ssm.fitted.forecasting import forecast as forecast_of
from elk_ssm.plotting.style import (
    BLUE,
    GREY,
    WHITE,
    axes_or_new,
    blend,
    dated,
    lonely,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def forecast(
    fitted_or_forecast: Any,
    ax: "Axes | None" = None,
    *,
    steps: int = 12,
    y: Any = None,
    times: Any = None,
    dimension: int = 0,
    last: int | None = None,
    xlabel: str = "time step",
    ylabel: str = "observation",
    **options: Any,
) -> "Axes":
    """Draw a series and what is expected of it, with a band.

    Args:
        fitted_or_forecast: A fit or an `elk_ssm.Observed`, which is forecast; or an
            `elk_ssm.Forecast`.
        ax: The axes to draw on; new ones by default.
        steps: How many steps a fit is forecast.
        y: The series, `(T,)` or `(T, E)`; by default that of the fit.
        times: `(T + steps,)`, of the series and the steps ahead, or `(steps,)` if no
            series is drawn: numbers, or NumPy's `datetime64`, which give an axis of
            dates.
        dimension: Which of several emissions.
        last: How many steps of the series to draw; all by default.
        xlabel: What the horizontal axis is, with its unit.
        ylabel: What was observed, with its unit.
        **options: Of `elk_ssm.forecast`: `inputs`, `level`; its `times` as `at`.

    Returns:
        The axes, with a legend.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Times are too few or too many.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import elk_ssm as elk
        >>> seen = elk.Observed(elk.models.local_level(), jnp.array([1.0, 2.0, 4.0]))
        >>> ax = elk.plotting.forecast(seen, Figure().subplots(), steps=5)
        >>> [len(line.get_xdata()) for line in ax.lines]
        [3, 5]
    """
    ahead = fitted_or_forecast
    if not isinstance(ahead, Forecast):
        options["times"] = options.pop("at", None)
        ahead = forecast_of(fitted_or_forecast, steps, **options)
        y = fitted_or_forecast.emissions if y is None else y
    mean, low, high = (
        _one(x, dimension) for x in (ahead.mean, ahead.lower, ahead.upper)
    )
    seen = np.zeros(0) if y is None else _one(y, dimension)
    t = _axis(times, len(seen) + len(mean))
    begin = 0 if last is None else max(len(seen) - last, 0)
    ax = axes_or_new(ax)
    # A band of one step has no width, and its line no length.
    single = len(mean) == 1
    width, marker = (2.0, "o") if single else (0, None)
    band = {"color": blend(BLUE, WHITE, 0.7), "linewidth": width, "label": "band"}
    ax.fill_between(t[len(seen) :], low, high, **band)
    if len(seen):
        past = slice(begin, len(seen))
        alone: dict[str, Any] = {"marker": ".", "markevery": lonely(seen[past])}
        ax.plot(t[past], seen[past], "k-", linewidth=1.0, label="observed", **alone)
    drawn: dict[str, Any] = {"color": BLUE, "linewidth": 2.0, "marker": marker}
    ax.plot(t[len(seen) :], mean, "--", label="forecast", **drawn)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False)
    dated(ax, t)
    return ax


def components(
    fitted_or_parts: Any,
    axes: Any = None,
    *,
    times: Any = None,
    dimension: int = 0,
    xlabel: str = "time step",
    ylabel: str = "",
    **options: Any,
) -> np.ndarray:
    """Draw a series and every component of it, one below the other, with bands.

    Args:
        fitted_or_parts: A fit or an `elk_ssm.Observed`, which is decomposed; or an
            `elk_ssm.Decomposition`.
        axes: n + 1 axes for n components; those of a new figure by default.
        times: `(T,)`: numbers, or NumPy's `datetime64`, which give an axis of dates.
        dimension: Which of several emissions.
        xlabel: What the horizontal axis is, with its unit.
        ylabel: The unit of the observation.
        **options: Of `elk_ssm.decompose`: `level`.

    Returns:
        The axes, `(n + 1,)`: observation and signal, then the components by name.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Times or axes are too few or too many.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import elk_ssm as elk
        >>> model = elk.models.local_level() + elk.models.seasonal(2)
        >>> seen = elk.Observed(model, jnp.array([1.0, 3.0, 1.1, 3.2]))
        >>> axes = elk.plotting.components(seen, Figure().subplots(3))
        >>> [ax.get_title(loc="left") for ax in axes]
        ['observed and signal', 'level', 'seasonal']
    """
    parts = fitted_or_parts
    if not isinstance(parts, Decomposition):
        parts = decompose(parts, **options)
    length = parts.mean.shape[1]
    t = _axis(times, length)
    axes = panels(axes, len(parts.names) + 1, sharex=True)
    total = _one(parts.signal.mean, dimension)
    seen = total + _one(parts.residual, dimension)
    axes[0].plot(t, seen, ".", color=GREY, markersize=3, label="observed")
    axes[0].plot(t, total, "k-", linewidth=1.0, label="signal")
    axes[0].set_title("observed and signal", loc="left", fontsize="medium")
    for ax, name in zip(axes[1:], parts.names):
        mean, _, low, high = (_one(x, dimension) for x in parts[name])
        ax.fill_between(t, low, high, color=blend(BLUE, WHITE, 0.7), linewidth=0)
        ax.plot(t, mean, "-", color=BLUE, linewidth=1.2)
        ax.set_title(name, loc="left", fontsize="medium")
    for ax in axes:
        ax.set_ylabel(ylabel)
        dated(ax, t)
    axes[-1].set_xlabel(xlabel)
    return axes


def _one(values: Any, dimension: int) -> np.ndarray:
    """Return one emission of `(T,)` or `(T, E)`."""
    values = np.asarray(values)
    return values if values.ndim == 1 else values[:, dimension]


def _axis(times: Any, length: int) -> np.ndarray:
    if times is None:
        return np.arange(length)
    times = np.asarray(times)
    if times.shape != (length,):
        raise ValueError(
            f"times must be ({length},), one for every step drawn; got shape "
            f"{times.shape}."
        )
    return times
