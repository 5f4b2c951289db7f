"""The demo's figure: residuals of every method, and one solve seen as inference.

The posterior after i iterations belongs to the surrogate linearised around iterate
i - 1; its mean is iterate i. Its process variance is estimated from the residuals of
iterate i - 1, so the band closes as the iteration converges.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import elk_ssm as elk
from elk_ssm import plotting
from elk_ssm.cli.cells import Cell
from elk_ssm.cli.method_names import make_method
from elk_ssm.cli.writing import replacing

BAND_METHOD = "quasi_elk"
BAND_ITERATIONS = (1, 2, 4)
WINDOW = 400  # Samples shown; all 12,000 would hide the band.
RESIDUAL_TOP = 1e3


class Bands(NamedTuple):
    """Iterates of one state dimension inside the window, with their bands.

    `iterations` has length n; `means` and `stds` have shape `(n, W)`, `reference` and
    `time` shape `(W,)`.
    """

    iterations: tuple[int, ...]
    time: np.ndarray
    reference: np.ndarray
    means: np.ndarray
    stds: np.ndarray


def write_figure(
    path: Path, cell: Cell, inputs: jax.Array, solutions: dict[str, Any]
) -> None:
    """Write the figure, whole or not at all.

    Args:
        path: the `.png` file.
        cell: a cell whose state is one array `(D,)`.
        inputs: shape `(T, C)`.
        solutions: by method, the solution for `cell`, with its history.
    """
    num_iters = int(solutions[BAND_METHOD].num_iters)
    figure = draw_figure(solutions, posterior_bands(cell, inputs, num_iters))
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)


def draw_figure(solutions: dict[str, Any], bands: Bands) -> Any:
    """Return the figure: residuals on the left, one panel per iterate on the right."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(12, 6.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    _draw_residuals(left.subplots(), solutions)
    grid = {"sharex": True, "sharey": True, "squeeze": False}
    panels = right.subplots(len(bands.iterations), 1, **grid)[:, 0]
    for index, ax in enumerate(panels):
        _draw_panel(ax, bands, index)
    panels[-1].set_xlabel("sample of the recording")
    right.suptitle("The posterior closes on the true trajectory", weight="bold")
    handles, _ = panels[0].get_legend_handles_labels()
    labels = ("posterior mean ± 2 std", "sequential evaluation")
    right.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def posterior_bands(cell: Cell, inputs: jax.Array, num_iters: int) -> Bands:
    """Return the posteriors of the first iterations, around the tallest spike."""
    step, start = cell.step, cell.initial_state
    method = make_method(BAND_METHOD)

    @jax.jit
    def solve(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        options = {"method": method, "num_iters": num_iters}
        guesses = elk.iterates(step, start, inputs, **options)
        return guesses, elk.sequential(step, start, inputs).states

    @jax.jit
    def infer(states: jax.Array) -> tuple[jax.Array, jax.Array]:
        surrogate = elk.linearize(
            step, states, inputs, initial_state=start, method=method
        )
        posterior = surrogate.filter()
        return posterior.means, posterior.standard_deviations

    guesses, reference = map(np.asarray, solve(inputs))
    shown = (*(i for i in BAND_ITERATIONS if i < num_iters), num_iters)
    posteriors = [infer(guesses[i - 1]) for i in shown]
    return _inside_window(shown, inputs, reference, posteriors)


def _inside_window(
    shown: tuple[int, ...], inputs: jax.Array, reference: np.ndarray, posteriors: list
) -> Bands:
    """Keep the window, and there the state dimension that moves most."""
    window = _window(np.asarray(inputs)[:, 0])
    dim = int(reference[window].std(axis=0).argmax())
    means, stds = (np.stack(x)[:, window, dim] for x in zip(*posteriors))
    time = np.arange(len(reference))[window]
    return Bands(shown, time, reference[window, dim], means, stds)


def _window(values: np.ndarray) -> slice:
    """Return the part of the recording around its largest value."""
    first = int(values.argmax()) - WINDOW // 2
    first = max(0, min(first, values.size - WINDOW))
    return slice(first, first + WINDOW)


def _draw_residuals(ax: Any, solutions: dict[str, Any]) -> None:
    histories, converged = {}, 0
    for name, solution in solutions.items():
        status = elk.Status(int(solution.status))
        converged += status == elk.Status.converged
        suffix = "" if status == elk.Status.converged else f": {status.name}"
        if np.isfinite(solution.history.residual_norm).any():
            # What does not iterate has no curve, and no place in the legend.
            histories[name + suffix] = solution.history
    plotting.residuals(histories, ax)
    ax.set_ylim(*_residual_limits(histories))
    title = f"GRU: {converged} of {len(solutions)} methods reach one trajectory"
    ax.set_title(title, weight="bold")


def _residual_limits(histories: dict[str, Any]) -> tuple[float, float]:
    """Let a method that diverges leave the picture, so that the others stay apart."""
    values = np.concatenate([np.ravel(h.residual_norm) for h in histories.values()])
    values = np.maximum(values[np.isfinite(values)], np.finfo(values.dtype).eps)
    low, high = values.min(initial=1.0), values.max(initial=0.0)
    return 0.3 * float(low), min(max(3 * float(high), 1.0), RESIDUAL_TOP)


def _draw_panel(ax: Any, bands: Bands, index: int) -> None:
    mean, std = bands.means[index], bands.stds[index]
    plotting.bands(
        bands.time, bands.reference, mean, std, ax, labels=["posterior mean"]
    )
    count = bands.iterations[index]
    title = f"after {count} iteration{'s' if count > 1 else ''}"
    ax.set_title(title, loc="left", fontsize="medium")
    ax.set_title(f"posterior std {std.max():.0e}", loc="right", fontsize="medium")
    ax.set(xlabel="", ylabel="GRU state")
