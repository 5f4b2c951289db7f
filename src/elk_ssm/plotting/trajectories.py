"""Pictures over time: iterates with the bands of their posterior, and their errors."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import ArrayLike

from elk_ssm.plotting.style import BLUE, LINE_STYLES, WHITE, axes_or_new, blend
from elk_ssm.solution import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Marginals(Protocol):
    """What `iterates` reads: means and standard deviations, `(T, D)` each."""

    @property
    def means(self) -> Any:
        """Means, `(T, D)`."""
        ...

    @property
    def standard_deviations(self) -> Any:
        """Standard deviations, `(T, D)`."""
        ...


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
        time: Shape `(T,)`.
        reference: The true trajectory, shape `(T,)`, drawn as a thin dashed line; or
            None.
        means: One iterate `(T,)` or several `(n, T)`, drawn from light to dark, each in
            a line style of its own.
        stds: Posterior standard deviations in the shape of `means`; without them there
            is no band.
        ax: The axes to draw on; new ones by default.
        labels: One name per iterate, for the legend.
        num_stds: Half the width of a band, in standard deviations.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The shapes do not agree.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from elk_ssm import plotting
        >>> time = np.arange(4)
        >>> ax = plotting.bands(
        ...     time, None, 0.5 * time, np.ones(4), Figure().subplots()
        ... )
        >>> len(ax.lines), len(ax.collections)
        (1, 1)
    """
    time, means, stds = _check_bands(time, means, stds)
    ax = axes_or_new(ax)
    shades = np.linspace(0.65, 0.0, len(means)) if len(means) > 1 else [0.0]
    # The last iterate is solid whatever came before it.
    lines = [*[x for x, _ in zip(cycle(LINE_STYLES[::-1]), means)][1:], "-"]
    for index, (mean, std, shade) in enumerate(zip(means, stds, shades)):
        colour = blend(BLUE, WHITE, shade)
        label = labels[index] if labels else None
        if np.isfinite(std).any():
            low, high = mean - num_stds * std, mean + num_stds * std
            ax.fill_between(time, low, high, color=colour, alpha=0.3, linewidth=0)
        ax.plot(time, mean, lines[index], color=colour, linewidth=2.0, label=label)
    if reference is not None:
        ax.plot(time, np.asarray(reference), "k--", linewidth=1.2, label="reference")
    ax.set(xlabel="time step", ylabel="state")
    return ax


def iterates(
    posteriors: Mapping[str, Marginals],
    ax: "Axes | None" = None,
    *,
    reference: ArrayLike | None = None,
    dimension: int = 0,
    num_stds: float = 2.0,
) -> "Axes":
    """Draw what the surrogate believed at several passes.

    Args:
        posteriors: By label, posteriors of the surrogate: `means` and
            `standard_deviations` of shape `(T, D)`, as `Surrogate.smooth` and
            `Surrogate.filter` return them. Drawn in order, from light to dark.
        ax: The axes to draw on; new ones by default.
        reference: The true trajectory, shape `(T, D)`, or None.
        dimension: Which of the D flattened state dimensions to show.
        num_stds: Half the width of a band, in standard deviations.

    Returns:
        The axes, with a legend.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no posterior, or the shapes do not agree.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import elk_ssm as elk
        >>> y = jnp.zeros((9, 2))
        >>> model = elk.linearize(
        ...     lambda x, u: jnp.tanh(x + u), y, y + 1, initial_state=y[0], noise=1.0
        ... )
        >>> ax = elk.plotting.iterates({"pass 1": model.smooth()}, Figure().subplots())
        >>> ax.get_ylabel()
        'state[0]'
    """
    if not posteriors:
        raise ValueError("iterates needs at least one posterior.")
    means = [np.asarray(p.means)[:, dimension] for p in posteriors.values()]
    spreads = [np.asarray(p.standard_deviations) for p in posteriors.values()]
    stds = [spread[:, dimension] for spread in spreads]
    if len({len(mean) for mean in means}) > 1:
        raise ValueError(f"The posteriors differ in length: {[len(m) for m in means]}.")
    truth = None if reference is None else np.asarray(reference)[:, dimension]
    ax = bands(
        np.arange(1, len(means[0]) + 1),
        truth,
        np.stack(means),
        np.stack(stds),
        ax,
        labels=list(posteriors),
        num_stds=num_stds,
    )
    ax.set_ylabel(f"state[{dimension}]")
    ax.legend(frameon=False)
    return ax


def error_map(
    iterates: ArrayLike,
    reference: ArrayLike,
    ax: "Axes | None" = None,
    *,
    history: History | None = None,
    block_size: int = 1,
) -> "Axes":
    """Draw the error of every iterate over time, and how far it is provably exact.

    Args:
        iterates: The guess and n iterates, `(n + 1, T, D)`, from `elk_ssm.iterates`.
        reference: The true trajectory, `(T, D)`.
        ax: The axes to draw on; new ones by default.
        history: Of a solution by the same method; its exact prefix becomes a line.
        block_size: Of that method.

    Returns:
        The axes: time steps against iterations, darker where the error is larger. The
        scale is logarithmic over the decades that occur, and its bar is drawn too.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The shapes do not agree.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from elk_ssm import plotting
        >>> found = np.array([1.0, 0.1, 0.001])[:, None, None] * np.ones((3, 9, 2))
        >>> ax = plotting.error_map(found, np.zeros((9, 2)), Figure().subplots())
        >>> ax.images[0].get_array().shape
        (3, 9)
    """
    found, truth = np.asarray(iterates), np.asarray(reference)
    if found.ndim != 3 or found.shape[1:] != truth.shape:
        raise ValueError(
            "error_map: expected iterates (n + 1, T, D) and a reference (T, D); got "
            f"{found.shape} and {truth.shape}."
        )
    ax = axes_or_new(ax)
    logs = _log_errors(found, truth)
    count, length = logs.shape
    extent = (0.5, length + 0.5, count - 0.5, -0.5)
    image = ax.imshow(
        logs, cmap="Greys", aspect="auto", extent=extent, interpolation="nearest"
    )
    ax.figure.colorbar(image, ax=ax, label="log₁₀ of the largest error")
    if history is not None:
        exact = block_size * np.asarray(history.exact)[: count - 1]
        rows = np.arange(1, exact.size + 1)
        style: dict[str, Any] = {
            "color": "#c4501b",
            "linestyle": "--",
            "linewidth": 1.5,
        }
        ax.plot(exact + 0.5, rows, label="provably exact to the left", **style)
        ax.legend(loc="lower left", framealpha=1.0)
        ax.set(xlim=extent[:2], ylim=extent[2:])
    ax.set(xlabel="time step", ylabel="iteration (0 is the guess)")
    ax.locator_params(axis="y", integer=True)
    return ax


def _log_errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """log10 of the largest error at every step; no error is the smallest decade."""
    with np.errstate(invalid="ignore"):
        errors = np.abs(found - truth).max(axis=2)
    errors = np.where(np.isfinite(errors), errors, np.nan)
    seen = errors[errors > 0]
    smallest = seen.min() if seen.size else 1.0
    return np.log10(np.where(errors == 0, smallest, errors))


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
