"""The demo's table, and what it means in one sentence.

A terminal too narrow for the table gets a paragraph for each run: words wrap, and no
number is cut.
"""

from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

TRUSTED_ERROR = 1e-4
SEQUENTIAL = "sequential"
HEADINGS = ("cell", "method", "iters", "status", "max error", "run ms", "compile s")
WORDS = ("cell", "method", "status")


class Run(NamedTuple):
    """One evaluation of one cell; `method` is "sequential" for the reference."""

    cell: str
    method: str
    solution: Any
    status: str
    max_error: float
    run_seconds: float
    compile_seconds: float


def show_runs(console: Console, runs: list[Run], title: str) -> None:
    """Print the table, or paragraphs where it does not fit."""
    table = make_table(runs, title)
    # Of itself a console measures what it could squeeze the table into.
    boundless = console.options.update(width=1_000)
    needed = Measurement.get(console, boundless, table).maximum
    if needed <= console.width:
        console.print(table)
        return
    console.print(title, highlight=False)
    for run in runs:
        cell, method, *rest = _row(run)
        named = [f"{h} {x}" for h, x in zip(HEADINGS[2:], rest) if x]
        console.print(f"{cell} {method}: {', '.join(named)}", highlight=False)


def make_table(runs: list[Run], title: str) -> Table:
    """Return one row for each run, ruled off after each cell."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS:
        justify: Any = "left" if heading in WORDS else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for run, following in zip(runs, [*runs[1:], runs[-1]]):
        table.add_row(*_row(run), end_section=run.cell != following.cell)
    return table


def conclusion(runs: list[Run]) -> str:
    """Say what the table means."""
    solved = [run for run in runs if run.method != SEQUENTIAL]
    good = [r for r in solved if r.status == "converged" and not is_wrong(r)]
    others = sorted({r.method for r in solved if r.status != "converged"})
    what = f"{len(good)} of {len(solved)} solves found the trajectory of the scan"
    if good:
        what += f", off by at most {max(r.max_error for r in good):.0e}"
    if others:
        what += f"; {', '.join(others)} needed more iterations than they had"
    wrong = sorted({r.method for r in runs if is_wrong(r)})
    if wrong:
        what += f"; {', '.join(wrong)} SAID CONVERGED AND WAS WRONG"
    return f"{what}; {_fastest(runs, good)}."


def _fastest(runs: list[Run], good: list[Run]) -> str:
    """Compare with one step after the other, on this machine, for each cell."""
    found = []
    for scan in (run for run in runs if run.method == SEQUENTIAL):
        own = [run for run in good if run.cell == scan.cell]
        if own:
            best = min(own, key=lambda run: run.run_seconds)
            ratio = scan.run_seconds / best.run_seconds
            found.append(f"{best.method} for the {scan.cell} ({ratio:.2g}x)")
    if not found:
        return "none is to be compared in speed"
    return f"the fastest here, in speeds of the scan: {', '.join(found)}"


def _row(run: Run) -> tuple[str, ...]:
    times = f"{1e3 * run.run_seconds:.1f}", f"{run.compile_seconds:.2f}"
    if run.method == SEQUENTIAL:
        return run.cell, run.method, "", "", "", *times
    iterations = str(int(run.solution.num_iters))
    status = f"{run.status} (WRONG)" if is_wrong(run) else run.status
    return run.cell, run.method, iterations, status, f"{run.max_error:.1e}", *times


def is_wrong(run: Run) -> bool:
    """Whether a run says that it converged, and is wrong."""
    return run.status == "converged" and not run.max_error < TRUSTED_ERROR
