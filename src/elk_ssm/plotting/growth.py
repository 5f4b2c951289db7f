"""A picture of a diagnosis: how perturbations grow and die out over time."""

from typing import TYPE_CHECKING, Any

import numpy as np

from elk_ssm.diagnosis import Diagnosis
from elk_ssm.jacobian_products import FORGOTTEN
from elk_ssm.plotting.style import BLUE, GREY, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def diagnosis(found: Diagnosis, ax: "Axes | None" = None) -> "Axes":
    """Draw the growth of perturbations from every start that was followed.

    Args:
        found: Of `elk_ssm.diagnose`; S starts, `log_growth` of shape `(S, T)`.
        ax: The axes to draw on; new ones by default.

    Returns:
        The axes: time steps against the natural logarithm of the largest product of
        Jacobians from a start, the one that grows most in black, the mean growth (the
        Lyapunov exponent) dotted, and the level at which a start counts as forgotten.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> import elk_ssm as elk
        >>> found = elk.diagnose(
        ...     lambda x, u: jnp.tanh(0.5 * x + u), jnp.zeros(2), jnp.ones((99, 2))
        ... )
        >>> ax = elk.plotting.diagnosis(found, Figure().subplots())
        >>> ax.get_xlabel()
        'time step'
    """
    ax = axes_or_new(ax)
    growth = np.asarray(found.log_growth)
    steps = np.arange(1, growth.shape[1] + 1)
    for row in growth:
        ax.plot(steps, row, color=GREY, linewidth=0.8)
    ax.lines[0].set_label("growth since a start")
    shown, largest = _largest(found, growth)
    label = f"largest: exp({float(found.growth):.3g})"
    ax.plot(steps[shown], largest, "k-o", markevery=[-1], linewidth=2, label=label)
    exponent = float(found.lyapunov_exponent)
    mean: dict[str, Any] = {"color": BLUE, "linestyle": ":", "linewidth": 2.0}
    ax.plot(steps, exponent * steps, label=f"mean: {exponent:+.3g} per step", **mean)
    _keep_in_view(ax, growth)
    ax.set(xlabel="time step", ylabel="log growth of a perturbation (nats)")
    ax.legend(framealpha=1.0, fontsize="small")
    return ax


def _largest(found: Diagnosis, growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the interval of largest growth, and the growth along it."""
    first, last = (int(i) for i in found.growth_interval)
    start = np.argmax(~np.isnan(growth), axis=1)
    shown = np.arange(first, last + 1)
    return shown, growth[np.flatnonzero(start == first)[0], shown]


def _keep_in_view(ax: "Axes", growth: np.ndarray) -> None:
    """Mark where a start counts as forgotten; cut off what lies far below that."""
    level = float(np.log(FORGOTTEN))
    low, high = float(np.nanmin(growth)), max(float(np.nanmax(growth)), 1.0)
    room = 0.05 * (high - min(low, 0.0))
    if low > level / 2:
        ax.set_ylim(min(low, 0.0) - room, high + room)
        return
    style: dict[str, Any] = {"color": "k", "linestyle": "--", "linewidth": 0.8}
    ax.axhline(level, label="forgotten: 1e-6", **style)
    ax.set_ylim(1.5 * level, high + 0.1 * abs(level))
