"""Pictures of standardised innovations: what white noise would look like, and they."""

from typing import Any

import numpy as np
from jax.scipy.special import ndtri

from elk_ssm.fitted.errors_ahead import Innovations, innovations
from elk_ssm.fitted.series import model_of
from elk_ssm.plotting.style import BLUE, GREY, WHITE, blend, dated, lonely, panels


def diagnostics(
    fitted_or_innovations: Any,
    axes: Any = None,
    *,
    times: Any = None,
    dimension: int = 0,
    lags: int | None = None,
    xlabel: str = "time step",
) -> np.ndarray:
    """Draw standardised innovations: in time, as a histogram, their ACF, and Q-Q.

    Args:
        fitted_or_innovations: A fit or an `elk_ssm.Observed`; or an
            `elk_ssm.fitted.errors_ahead.Innovations`.
        axes: Four axes; those of a new figure by default.
        times: `(T,)`: numbers, or NumPy's `datetime64`, which give an axis of dates.
        dimension: Which of several emissions.
        lags: Longest lag of the autocorrelations; see `elk_ssm.diagnostics`.
        xlabel: What the horizontal axis of the first is, with its unit.

    Returns:
        The axes, `(4,)`: innovations over time with lines at +-1.96, their histogram
        with the standard normal density, their autocorrelations with the band
        +-1.96 / sqrt(n) of white noise, and their quantiles against normal ones.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There are not four axes, or the lags do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import elk_ssm as elk
        >>> y = jnp.sin(jnp.arange(60.0) ** 2)
        >>> seen = elk.Observed(elk.models.local_level(), y)
        >>> axes = elk.plotting.diagnostics(seen, Figure().subplots(2, 2))
        >>> axes.shape, axes[2].get_xlabel()
        ((4,), 'lag')
    """
    found = fitted_or_innovations
    if not isinstance(found, Innovations):
        model_of(found, "plotting.diagnostics")
        found = innovations(found)
    tests = found.tests(lags)
    white, correlations = (
        np.asarray(x) if np.ndim(x) == 1 else np.asarray(x)[:, dimension]
        for x in (found.standardised, tests.autocorrelations)
    )
    known = white[np.isfinite(white)]
    over_time, histogram, acf, quantiles = axes = panels(axes, 4, grid=(2, 2))
    _draw_over_time(over_time, white, times, xlabel)
    _draw_histogram(histogram, known)
    _draw_acf(acf, correlations, len(known))
    _draw_quantiles(quantiles, known)
    return axes


def _draw_over_time(ax: Any, white: np.ndarray, times: Any, xlabel: str) -> None:
    t = np.arange(len(white)) if times is None else np.asarray(times)
    ax.plot(t, white, "k-", linewidth=0.8, marker=".", markevery=lonely(white))
    for level in (-1.96, 1.96):
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1.0)
    ax.set(xlabel=xlabel, ylabel="standardised innovation")
    dated(ax, t)


def _draw_histogram(ax: Any, known: np.ndarray) -> None:
    fill = {"color": blend(BLUE, WHITE, 0.6), "edgecolor": BLUE}
    if len(known):
        ax.hist(known, bins="auto", density=True, label="innovations", **fill)
    reach = max(4.0, np.max(np.abs(known), initial=0))
    x = np.linspace(-reach, reach, 200)
    density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    ax.plot(x, density, "k--", linewidth=1.5, label="N(0, 1)")
    ax.set(xlabel="standardised innovation", ylabel="density")
    ax.legend(frameon=False, fontsize="small")


def _draw_acf(ax: Any, correlations: np.ndarray, count: int) -> None:
    lags = np.arange(1, len(correlations) + 1)
    bound = 1.96 / np.sqrt(max(count, 1))
    ax.axhspan(-bound, bound, color=blend(BLUE, WHITE, 0.8), linewidth=0)
    ax.axhline(0, color="k", linewidth=0.8)
    ax.vlines(lags, 0, correlations, color="k")
    ax.plot(lags, correlations, "ko", markersize=4)
    largest = max(np.nanmax(np.abs(correlations), initial=0), bound)
    ax.set(xlabel="lag", ylabel="autocorrelation", ylim=(-1.3 * largest, 1.3 * largest))


def _draw_quantiles(ax: Any, known: np.ndarray) -> None:
    places = (np.arange(len(known)) + 0.5) / len(known)
    expected = np.asarray(ndtri(places))
    ax.plot(expected, np.sort(known), "o", color=BLUE, markersize=3)
    ends = np.array([-3.0, 3.0])
    ax.plot(ends, ends, "k--", linewidth=1.0)
    ax.set(xlabel="quantile of N(0, 1)", ylabel="quantile of the innovations")
