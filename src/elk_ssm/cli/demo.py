"""The demo: a real recording drives three cells, each evaluated by every method.

The recording is the membrane potential of a neuron that matplotlib ships. A run is
compiled apart from running; its time is the median of three, of fewer if slow.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

import elk_ssm as elk
from elk_ssm._start import cursor_if_interrupted
from elk_ssm.cli.cells import CELL_NAMES, Cell, make_cell
from elk_ssm.cli.demo_figure import write_figure
from elk_ssm.cli.demo_table import Run, conclusion, is_wrong, show_runs
from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.method_names import METHOD_NAMES, make_method
from elk_ssm.cli.output import say, to_standard_output
from elk_ssm.cli.recording import membrane_recording
from elk_ssm.cli.writing import check_output

STATE_SIZE = 8
MAX_ITERS = 200  # Picard and Jacobi may need as many iterations as there are samples.
NUM_RUNS = 3
PATIENCE_SECONDS = 1.0  # A slow run is not repeated beyond this.
FIGURE_NAME = "elk-ssm-demo.png"


def run_demo(output_dir: Path, length: int | None, seed: int) -> int:
    """Run the demo, print its table and write its figure to `output_dir`.

    Returns:
        The exit code: 1 if a method reports converged and is wrong.
    """
    inputs = jnp.asarray(membrane_recording(length), jnp.zeros(()).dtype)
    figure_path = _prepare(output_dir)
    cells = {name: make_cell(name, STATE_SIZE, 1, seed) for name in CELL_NAMES}
    runs = _run_all(cells, inputs)
    with to_standard_output():
        title = f"membrane.dat, {len(inputs)} samples, state size {STATE_SIZE}"
        show_runs(Console(), runs, title)
    solutions = {r.method: r.solution for r in runs if r.cell == "gru" and r.status}
    write_figure(figure_path, cells["gru"], inputs, solutions)
    say(f"figure: {figure_path}")
    say(conclusion(runs))
    return int(any(is_wrong(run) for run in runs))


def _prepare(output_dir: Path) -> Path:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot use the directory {output_dir}: {error.strerror}"
        ) from error
    check_output(output_dir / FIGURE_NAME, ".png")
    return output_dir / FIGURE_NAME


def _run_all(cells: dict[str, Cell], inputs: jax.Array) -> list[Run]:
    total = len(cells) * (1 + len(METHOD_NAMES))
    with cursor_if_interrupted(), _progress() as progress:
        task = progress.add_task("", total=total)
        runs = []
        for name, cell in cells.items():
            for run in _run_cell(name, cell, inputs):
                runs.append(run)
                progress.update(task, advance=1, description=f"{name} {run.method}")
    return runs


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"))
    text = TextColumn("{task.description}")
    hidden = not console.is_terminal
    return Progress(*columns, text, console=console, disable=hidden, transient=True)


def _run_cell(name: str, cell: Cell, inputs: jax.Array) -> Iterator[Run]:
    """Yield the sequential run, then one run per method."""

    def sequential(state: Any, inputs: jax.Array) -> Any:
        return elk.sequential(cell.step, state, inputs)

    reference, *seconds = _timed(sequential, cell.initial_state, inputs)
    yield Run(name, "sequential", reference, "", 0.0, *seconds)
    for method in METHOD_NAMES:
        solve = _solver(cell, method)
        solution, *seconds = _timed(solve, cell.initial_state, inputs)
        status = elk.Status(int(solution.status)).name
        error = _max_error(solution.states, reference.states)
        yield Run(name, method, solution, status, error, *seconds)


def _solver(cell: Cell, method: str) -> Callable[[Any, jax.Array], Any]:
    options = {"method": make_method(method), "max_iters": MAX_ITERS}

    def solve(state: Any, inputs: jax.Array) -> Any:
        return elk.evaluate(cell.step, state, inputs, history=MAX_ITERS, **options)

    return solve


def _timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float, float]:
    """Return the result, the median time of a run, and the time to compile."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    seconds: list[float] = []
    while len(seconds) < NUM_RUNS and sum(seconds) < PATIENCE_SECONDS:
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds), compile_seconds


def _max_error(states: Any, reference: Any) -> float:
    """Return the largest difference; NaN if any, which NumPy's max keeps."""
    pairs = zip(jax.tree.leaves(states), jax.tree.leaves(reference))
    return float(np.max([np.max(np.abs(np.asarray(x - y))) for x, y in pairs]))
