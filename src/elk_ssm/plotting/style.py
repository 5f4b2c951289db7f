"""What all pictures share: axes, and styles that survive in grey."""

from typing import TYPE_CHECKING, Any

import numpy as np

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
BLUE, GREY, WHITE = "#0a5c9e", "#9e9e9e", "#ffffff"


def axes_or_new(ax: "Axes | None") -> "Axes":
    """Return the given axes, or those of a new figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: What was given is no axes.
    """
    if ax is not None:
        if not hasattr(ax, "plot"):
            raise TypeError(f"ax must be Matplotlib's axes; got {ax!r}.")
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "elk_ssm.plotting needs matplotlib: install the extra elk-ssm[plots]."
        ) from error
    return pyplot.subplots(layout="constrained")[1]


def panels(
    axes: Any, count: int, *, grid: tuple[int, int] | None = None, sharex: bool = False
) -> np.ndarray:
    """Return the given axes in one row, or those of a new figure.

    Args:
        axes: Axes in any arrangement, or None.
        count: How many there must be.
        grid: Rows and columns of a new figure; one below the other by default.
        sharex: Whether those of a new figure share the horizontal axis.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There are others than so many.
    """
    if axes is None:
        rows, columns = grid or (count, 1)
        figure: Any = axes_or_new(None).figure
        figure.clear()
        figure.set_size_inches(4.0 * columns + 2.4, 1.6 * rows + (2.4 if grid else 0.8))
        axes = figure.subplots(rows, columns, sharex=sharex)
    axes = np.ravel(axes)
    if len(axes) != count:
        raise ValueError(f"this picture needs {count} axes; got {len(axes)}.")
    return axes


def dated(ax: "Axes", times: np.ndarray) -> None:
    """Write dates shortly, as many as fit; leave an axis of numbers as it is."""
    if not np.issubdtype(times.dtype, np.datetime64):
        return
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def lonely(values: np.ndarray) -> list[int]:
    """Return which values stand between two gaps, where a line shows nothing.

    Example:
        >>> from elk_ssm.plotting.style import lonely
        >>> import numpy as np
        >>> lonely(np.array([1.0, np.nan, 2.0, np.nan, 3.0, 4.0]))
        [0, 2]
    """
    gap = np.isnan(np.concatenate([[np.nan], values, [np.nan]]))
    return np.flatnonzero(~gap[1:-1] & gap[:-2] & gap[2:]).tolist()


def blend(colour: str, towards: str, share: float) -> Any:
    """Mix two colours, `(3,)` in [0, 1]."""
    from matplotlib.colors import to_rgb

    return tuple(
        (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(towards))
    )
