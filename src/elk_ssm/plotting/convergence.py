"""Pictures over iterations: residuals, the noise that needs fewest, the gate."""

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from elk_ssm.plotting.style import COLOURS, LINE_STYLES, MARKERS, axes_or_new
from elk_ssm.solution import History, Solution, Status
from elk_ssm.sweep import NoiseSweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Residuals(Protocol):
    """What `residuals` reads: one residual per iteration, NaN past the last."""

    residual_norm: Any


def residuals(
    histories: "Residuals | Solution | Mapping[str, Residuals | Solution]",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the largest residual against the iteration, one curve a method.

    Args:
        histories: A `Solution` with a history, a `History`, or several by label;
            `residual_norm` has shape `(n,)` and is NaN past the last iteration. A
            residual of zero has no place on a logarithmic axis and is drawn at the
            rounding unit.
        ax: The axes to draw on; new ones by default.

    Returns:
        The axes, both scales logarithmic, the iterations counted from 1.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: A solution has no history, or that of a batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.deer(), history=9,
        ... )
        >>> ax = elk.plotting.residuals({"DEER": sol.history}, Figure().subplots())
        >>> ax.get_xlabel()
        'iteration'
    """
    several = isinstance(histories, Mapping)
    named: Any = histories if several else {"residual": histories}
    curves = {label: _history_of(label, given) for label, given in named.items()}
    ax = axes_or_new(ax)
    styles = zip(cycle(COLOURS), cycle(LINE_STYLES), cycle(MARKERS))
    for (label, history), (colour, line, marker) in zip(curves.items(), styles):
        iteration, residual = _finite_curve(history)
        style: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker}
        # Evenly spaced on the logarithmic axis, the last one always.
        marked = np.unique(np.geomspace(1, max(iteration.size, 1), 12).astype(int) - 1)
        ax.plot(iteration, residual, label=label, markevery=marked.tolist(), **style)
    ax.set(xscale="log", yscale="log", xlabel="iteration")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylabel("largest residual  |x[t] − f(x[t−1], u[t])|")
    if several and curves:
        ax.legend(frameon=False)
    return ax


def _history_of(label: str, given: Any) -> Residuals:
    """Return what has the residuals of a solution, or of a history as it is."""
    history: Any = given.history if isinstance(given, Solution) else given
    if history is None:
        raise ValueError(
            f"The solution {label!r} has no history: evaluate with history=n."
        )
    if np.ndim(history.residual_norm) != 1:
        raise ValueError(
            f"The history {label!r} is that of a batch, "
            f"{np.shape(history.residual_norm)}: take one of it."
        )
    return history


def noise_sweep(sweep: NoiseSweep, ax: "Axes | None" = None) -> "Axes":
    """Draw the iterations that every noise of a sweep took.

    Args:
        sweep: Of `elk_ssm.sweep_noise`, N noises. Runs that did not converge are
            crosses; `inf`, the undamped method, has its own place at the right.
        ax: The axes to draw on; new ones by default.

    Returns:
        The axes: s^2 in units of the process variance, logarithmic, against iterations,
        logarithmic.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import elk_ssm as elk
        >>> noises, num_iters = jnp.array([1.0, 1e2]), jnp.array([40, 9])
        >>> sweep = elk.NoiseSweep(noises, num_iters, 0 * noises, 0 * num_iters)
        >>> ax = elk.plotting.noise_sweep(sweep, Figure().subplots())
        >>> ax.get_ylabel()
        'iterations'
    """
    ax = axes_or_new(ax)
    noises, iterations = np.asarray(sweep.noises), np.asarray(sweep.num_iters)
    converged = np.asarray(sweep.status) == Status.converged
    places, infinite = _with_infinity(noises)
    finite = ~infinite & converged
    ax.plot(places[finite], iterations[finite], "k-", linewidth=1)
    for kind, marker, label in (
        (converged, "o", "converged"),
        (~converged, "x", "did not converge"),
    ):
        if kind.any():
            ax.plot(
                places[kind], iterations[kind], "k", ls="", marker=marker, label=label
            )
    best = int(sweep.best)
    if best >= 0:
        ax.plot(
            places[best], iterations[best], ls="", marker="o", ms=13, mfc="none",
            color="k", label="fewest iterations",
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", ylabel="iterations")
    ax.set_xlabel("observation noise s²  (process variance = 1)")
    _label_counts(ax)
    if infinite.any():
        _label_infinity(ax, places, infinite)
    ax.legend(frameon=False)
    return ax


def gate(history: History, ax: "Axes | None" = None) -> "Axes":
    """Draw the exact prefix and how many states were set back, over iterations.

    Args:
        history: Of a solution, fields `(n,)`, NaN past the last iteration. The unknowns
            are the states, or with blocks the ends of blocks.
        ax: The axes to draw on; new ones by default.

    Returns:
        The axes: iterations from 1 against a number of unknowns.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import elk_ssm as elk
        >>> seen = elk.History(*[jnp.array([1.0, 2.0, jnp.nan])] * 5)
        >>> ax = elk.plotting.gate(seen, Figure().subplots())
        >>> ax.lines[0].get_ydata().tolist()
        [1.0, 2.0]
    """
    ax = axes_or_new(ax)
    exact, set_back = np.asarray(history.exact), np.asarray(history.set_back)
    done = np.isfinite(exact)
    iteration = np.arange(1, exact.size + 1)
    ax.step(
        iteration[done], exact[done], "k-", where="post", label="provably exact prefix"
    )
    ax.vlines(
        iteration[done], 0, set_back[done], color=COLOURS[3], linewidth=3, alpha=0.8,
        label="set back: update not taken",
    )  # fmt: skip
    ax.set(xlabel="iteration", ylabel="number of unknowns (states or block ends)")
    ax.locator_params(axis="x", integer=True)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def _finite_curve(history: Residuals) -> tuple[np.ndarray, np.ndarray]:
    residual = np.asarray(history.residual_norm)
    finite = np.isfinite(residual)
    shown = np.where(residual == 0, np.finfo(residual.dtype).eps, residual)
    return np.arange(1, residual.size + 1)[finite], shown[finite]


def _with_infinity(noises: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places on a logarithmic axis; infinity goes two decades past the largest."""
    infinite = np.isinf(noises)
    largest = noises[~infinite].max(initial=1.0)
    return np.where(infinite, 100 * largest, noises), infinite


def _label_counts(ax: "Axes") -> None:
    """Plain numbers at 1, 2 and 5 of every decade, where a power would be too few."""
    from matplotlib.ticker import LogLocator, NullLocator

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")


def _label_infinity(ax: "Axes", places: np.ndarray, infinite: np.ndarray) -> None:
    place = float(places[infinite][0])
    ax.axvline(place / 10, color="k", linestyle=":", linewidth=0.8)
    exponents = np.log10(places[~infinite])
    low, high = (exponents.min(), exponents.max()) if exponents.size else (0.0, 0.0)
    step = max(1, int(np.ceil((high - low) / 6)))
    ticks = 10.0 ** np.arange(np.ceil(low), np.floor(high) + 1, step)
    names = [f"$10^{{{round(np.log10(tick))}}}$" for tick in ticks]
    ax.set_xticks([*ticks, place], [*names, "∞ (undamped)"])
    ax.minorticks_off()
