"""Measuring side by side: compile apart from run, candidates in turns, medians.

    rows = compare({"ours": (f, args), "scan": (g, args)}, seconds=2.0)
    write("speed", rows, notes={"load": ...})      # results/speed.json
    print(table(rows, ["candidate", "run_ms"]))

The machines are shared and noisy: within one call the candidates take turns, so that a
ratio of medians means more than either of its terms.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
DOCS = ROOT / "docs"

Row = dict[str, Any]


def hardware(dtype: str = "float32") -> Row:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "dtype": dtype,
        "load": round(os.getloadavg()[0], 2),
    }


def machine_line(machine: Row) -> str:
    """One sentence on the hardware, for the top of a page."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, device {machine['device']}, jax "
        f"{machine['jax']}, Python {machine['python']}, {machine['dtype']}; load "
        f"average {machine['load']} when it began (above 0.5 "
        "other programs shared the cores)."
    )


def compiled(function: Callable, arguments: tuple) -> tuple[Callable[[], Any], Row]:
    """Compile ahead of time; return what runs it, compile seconds and temp memory."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    row = {"compile_s": time.perf_counter() - start}
    memory = program.memory_analysis()
    if memory is not None:
        row["temp_mb"] = memory.temp_size_in_bytes / 1e6
    return lambda: jax.block_until_ready(program(*arguments)), row


def compare(
    candidates: dict[str, tuple[Callable, tuple]],
    *,
    seconds: float = 2.0,
    at_least: int = 3,
    at_most: int = 25,
) -> tuple[list[Row], dict[str, Any]]:
    """Time candidates in turns.

    Returns:
        A row each (median and quartiles in ms, compile seconds, temporary MB), and
        what each returned.
    """
    programs = {name: compiled(*candidate) for name, candidate in candidates.items()}
    results = {name: run() for name, (run, _) in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    begun, rounds = time.perf_counter(), 0
    while rounds < at_least or (
        rounds < at_most and time.perf_counter() - begun < seconds
    ):
        for name, (run, _) in programs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    rows = []
    for name, (_, row) in programs.items():
        quartiles = [float(q) for q in np.percentile(times[name], [25, 75])]
        median = float(np.median(times[name]))
        rows.append({"candidate": name, "run_ms": median, "quartiles_ms": quartiles})
        rows[-1] |= row
    return rows, results


def write(name: str, rows: Any, machine: Row) -> Path:
    """Write `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"hardware": machine, "rows": rows}, indent=1) + "\n")
    return path


def read(name: str) -> dict[str, Any]:
    """Read `results/<name>.json`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


# Columns as a table names them, with their units.
HEADS = {
    "run_ms": "run, ms",
    "compile_s": "compile, s",
    "temp_mb": "temporary, MB",
    "error": "relative error",
    "exponent": "exponent, per step",
    "speed-up": "speed-up, times",
    "compile s": "compile, s",
    "model ms": "model, ms",
    "temporary MB": "temporary, MB",
    "ms a step": "a step, ms",
}


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Write rows as a markdown table; numbers get three digits."""
    heads = [HEADS.get(column, column) for column in columns]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (_cell(row.get(column, "")) for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def largest_error(found: Any, expected: Any) -> float:
    """Largest difference over all leaves, over the largest entry; NaN is infinite."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected)))
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs if _is_float(b)]
    worst = max(float(np.max(np.abs(a.astype(float) - b))) for a, b in pairs)
    size = max(float(np.max(np.abs(b))) for _, b in pairs)
    return worst / size if np.isfinite(worst) else np.inf


def _is_float(x: Any) -> bool:
    return np.issubdtype(np.asarray(x).dtype, np.floating)
