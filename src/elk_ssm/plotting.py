"""Pictures of an evaluation: residuals over iterations, iterates with their bands.

Every function takes `ax`, draws on it and returns it; without one it makes a figure.
Curves differ by line style and marker and not only by colour, so that a print in grey
stays legible. matplotlib is imported when a function is called: `import elk_ssm` works
without it.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Their luminance differs as well: 0, .19, .31, .40, .51, .57, .62.
COLOURS = (
    "#000000",
    "#6a1b6a",
    "#0a5c9e",
    "#c4501b",
    "#2f9e6e",
    "#d08a1d",
    "#9e9e9e",
)
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "x", "P")


class History(Protocol):
    """What `residuals` reads: one residual per iteration, NaN past the last."""

    residual_norm: Any


def residuals(histories: Mapping[str, History], ax: "Axes | None" = None) -> "Axes":
    """Draw the largest residual against the iteration, one curve a method.

    Args:
        histories: by label, the `history` of a solution; `residual_norm` has shape
            `(n,)` and is NaN past the last iteration. A residual of zero has no place
            on a logarithmic axis and is drawn at the rounding unit.
        ax: the axes to draw on; new ones by default.

    Returns:
        The axes, both scales logarithmic, the iterations counted from 1.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    ax = _axes(ax)
    styles = zip(cycle(COLOURS), cycle(LINE_STYLES), cycle(MARKERS))
    for (label, history), (colour, line, marker) in zip(histories.items(), styles):
        iteration, residual = _finite_curve(history)
        style: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker}
        # Evenly spaced on the logarithmic axis, the last one always.
        marked = np.unique(np.geomspace(1, max(iteration.size, 1), 12).astype(int) - 1)
        ax.plot(iteration, residual, label=label, markevery=marked.tolist(), **style)
    ax.set(xscale="log", yscale="log", xlabel="iteration")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylabel("largest residual  |x[t] − f(x[t−1], u[t])|")
    if histories:
        ax.legend(frameon=False)
    return ax


def bands(
    time: ArrayLike,
    reference: ArrayLike | None,
    means: ArrayLike,
    stds: ArrayLike | None = None,
    ax: "Axes | None" = None,
    *,
    labels: Sequence[str] | None = None,
    num_stds: float = 2.0,
) -> "Axes":
    """Draw iterates of one state dimension with their posterior bands.

    Args:
        time: shape `(T,)`.
        reference: the true trajectory, shape `(T,)`, drawn as a thin dashed line; or
            None.
        means: one iterate `(T,)` or several `(n, T)`, drawn from light to dark.
        stds: posterior standard deviations in the shape of `means`; without them there
            is no band.
        ax: the axes to draw on; new ones by default.
        labels: one name per iterate, for the legend.
        num_stds: half the width of a band, in standard deviations.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the shapes do not agree.
    """
    time, means, stds = _check_bands(time, means, stds)
    ax = _axes(ax)
    shades = np.linspace(0.65, 0.0, len(means)) if len(means) > 1 else [0.0]
    for index, (mean, std, shade) in enumerate(zip(means, stds, shades)):
        colour = _blend("#0a5c9e", "#ffffff", shade)
        label = labels[index] if labels else None
        if np.isfinite(std).any():
            low, high = mean - num_stds * std, mean + num_stds * std
            ax.fill_between(time, low, high, color=colour, alpha=0.3, linewidth=0)
        ax.plot(time, mean, color=colour, linewidth=2.0, label=label)
    if reference is not None:
        ax.plot(time, np.asarray(reference), "k--", linewidth=1.2, label="reference")
    ax.set(xlabel="time step", ylabel="state")
    return ax


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "elk_ssm.plotting needs matplotlib: install the extra elk-ssm[plots]."
        ) from error
    return pyplot.subplots(layout="constrained")[1]


def _finite_curve(history: History) -> tuple[np.ndarray, np.ndarray]:
    residual = np.asarray(history.residual_norm)
    finite = np.isfinite(residual)
    shown = np.where(residual == 0, np.finfo(residual.dtype).eps, residual)
    return np.arange(1, residual.size + 1)[finite], shown[finite]


def _check_bands(
    time: ArrayLike, means: ArrayLike, stds: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    means = np.atleast_2d(np.asarray(means))
    # A missing band is a NaN band: nothing is drawn.
    stds = np.full_like(means, np.nan) if stds is None else np.atleast_2d(stds)
    time = np.asarray(time)
    if means.shape != stds.shape or time.shape != means.shape[1:]:
        raise ValueError(
            "bands: expected time (T,), means and stds (T,) or (n, T); got "
            f"{time.shape}, {means.shape} and {stds.shape}."
        )
    return time, means, stds


def _blend(colour: str, towards: str, share: float) -> Any:
    from matplotlib.colors import to_rgb

    return tuple(
        (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(towards))
    )
