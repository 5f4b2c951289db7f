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
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "elk_ssm.plotting needs matplotlib: install the extra elk-ssm[plots]."
        ) from error
    return pyplot.subplots(layout="constrained")[1]


def blend(colour: str, towards: str, share: float) -> Any:
    """Mix two colours, `(3,)` in [0, 1]."""
    from matplotlib.colors import to_rgb

    return tuple(
        (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(towards))
    )
