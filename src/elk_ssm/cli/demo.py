"""The demo: a real recording drives two cells, each evaluated by every method.

The recording is the membrane potential of a neuron that matplotlib ships. A run is
compiled apart from running, side by side with the others; its time is the median of
three, of fewer if slow.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

import elk_ssm as elk
from elk_ssm._start import cursor_if_interrupted
from elk_ssm.cli.cells import Cell, make_cell
from elk_ssm.cli.demo_figure import write_figure
from elk_ssm.cli.demo_table import SEQUENTIAL, Run, conclusion, is_wrong, show_runs
from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.method_names import METHOD_NAMES, make_method
from elk_ssm.cli.output import say, to_standard_output
from elk_ssm.cli.recording import membrane_recording
from elk_ssm.cli.writing import check_output

# One that every method but Picard finds, and one that is hard without damping.
CELLS = ("gru", "rnn")
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
    cells = {name: make_cell(name, STATE_SIZE, 1, seed) for name in CELLS}
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
    asked = [
        (name, method, _evaluator(cell, method), (cell.initial_state, inputs))
        for name, cell in cells.items()
        for method in (SEQUENTIAL, *METHOD_NAMES)
    ]
    with cursor_if_interrupted(), _progress() as progress:
        task = progress.add_task("compiling", total=2 * len(asked))
        compiled = []
        for program in _compile_side_by_side([(f, args) for *_, f, args in asked]):
            compiled.append(program)
            progress.update(task, advance=1)
        runs: list[Run] = []
        references: dict[str, Any] = {}
        for (name, method, _, args), program in zip(asked, compiled, strict=True):
            run = _run(name, method, program, args, references)
            runs.append(run)
            progress.update(task, advance=1, description=f"{name} {method}")
    return runs


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"))
    text = TextColumn("{task.description}")
    hidden = not console.is_terminal
    return Progress(*columns, text, console=console, disable=hidden, transient=True)


def _compile_side_by_side(asked: list[tuple]) -> Iterator[tuple[Any, float]]:
    """Yield programs and the seconds that each took, compiled on all cores."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        futures = [pool.submit(_compile, *one) for one in asked]
        yield from (future.result() for future in futures)
    finally:
        pool.shutdown(cancel_futures=True)


def _compile(function: Callable[..., Any], args: tuple) -> tuple[Any, float]:
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    return program, time.perf_counter() - start


def _run(
    name: str,
    method: str,
    compiled: tuple[Any, float],
    args: tuple,
    references: dict[str, Any],
) -> Run:
    """Run a program; the scan comes first, and is what the others are compared with."""
    program, compile_seconds = compiled
    solution, seconds = _timed(program, args)
    if method == SEQUENTIAL:
        references[name] = solution.states
        return Run(name, method, solution, "", 0.0, seconds, compile_seconds)
    status = elk.Status(int(solution.status)).name
    error = _max_error(solution.states, references[name])
    return Run(name, method, solution, status, error, seconds, compile_seconds)


def _evaluator(cell: Cell, method: str) -> Callable[[Any, jax.Array], Any]:
    def sequential(state: Any, inputs: jax.Array) -> Any:
        return elk.sequential(cell.step, state, inputs)

    def solve(state: Any, inputs: jax.Array) -> Any:
        return elk.evaluate(cell.step, state, inputs, history=MAX_ITERS, **options)

    if method == SEQUENTIAL:
        return sequential
    options = {"method": make_method(method), "max_iters": MAX_ITERS}
    return solve


def _timed(program: Callable[..., Any], args: tuple) -> tuple[Any, float]:
    """Return the result, and the median time of a run."""
    seconds: list[float] = []
    while len(seconds) < NUM_RUNS and sum(seconds) < PATIENCE_SECONDS:
        start = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def _max_error(states: Any, reference: Any) -> float:
    """Return the largest difference; NaN if any, which NumPy's max keeps."""
    pairs = zip(jax.tree.leaves(states), jax.tree.leaves(reference))
    return float(np.max([np.max(np.abs(np.asarray(x - y))) for x, y in pairs]))
