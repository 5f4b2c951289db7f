"""What an H100 would run: kernels, synchronisations and bytes, counted without one.

    python -m benchmarks.gpu_counts                  # results/gpu_counts.json
    python -m benchmarks.gpu_counts --small          # a few cells, no files
    python -m benchmarks.gpu_counts --check          # fails above a ceiling
    python -m benchmarks.gpu_counts --only quasi_elk # these again, others kept
    python -m benchmarks.gpu_counts --entry-points   # does everything compile? hours

`make gpu-counts` and `make gpu-budgets` run it in an environment of its own. See
`gpu_program` for what is counted, `gpu_cells` for the programs and their passes,
`gpu_budgets` for the goals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import gpu_budgets, gpu_entry_points, harness
from benchmarks.gpu_cells import (
    CELLS,
    SHORT,
    Cell,
    Passes,
    as_published,
    by_scan,
    ours,
)
from benchmarks.gpu_program import (
    Branches,
    Counts,
    can_compile,
    compile_for_h100,
    count,
)
from benchmarks.harness import Row

NAME = "gpu_counts"
COLUMNS = (
    *("problem", "program", "D", "T", "passes", "launches", "launches a pass"),
    *("syncs", "GB moved", "temporary MB", "compile s", "model ms"),
)
SMALL = (
    by_scan("GRU", 8, SHORT),
    ours("GRU", "quasi_deer", 8, SHORT),
    as_published("quasi_deer", 8, SHORT),
)


def counted(cell: Cell, passes: Passes | None) -> Row:
    """Compile a cell and count it; `passes` is None where nothing is iterated."""
    function, arguments = cell.build()
    compiled = compile_for_h100(function, *arguments)

    def at(passes: Passes, branches: Branches = cell.branches) -> Counts:
        how: Any = {"rounds": cell.rounds(passes), "branches": branches}
        return count(compiled, passes=max(passes.iterated, 1), **how)

    here = passes or Passes(iterated=1)
    whole = at(here)
    row: Row = dict(zip(("problem", "program", "D", "T"), cell.key))
    row |= {
        "launches": round(whole.launches),
        "syncs": round(whole.syncs),
        "GB moved": whole.bytes_moved / 1e9,
        "temporary MB": whole.temporary_bytes / 1e6,
        "compile s": whole.seconds,
        "model ms": whole.modelled_ms,
        "launches, cheap branches": round(at(here, "cheap").launches),
        "launches, dear branches": round(at(here, "dear").launches),
    }
    if passes is not None:
        # Of the kind that there is most of: one more of it.
        kind = "iterated" if passes.iterated else "short"
        more = passes._replace(**{kind: getattr(passes, kind) + 1})
        row["launches a pass"] = round(at(more).launches - whole.launches)
        row |= {"passes": passes.total, "of Newton": passes.iterated}
        row |= {"sweeps": passes.sweeps} if passes.sweeps else {}
    return row


def measure(cells: Iterable[Cell]) -> Iterator[Row]:
    """Count cells at the passes that a CPU takes."""
    for cell in cells:
        if not cell.is_here:
            print(f"{cell.key}: skipped, {cell.needs} is not installed", flush=True)
            continue
        row = counted(cell, cell.passes_here())
        print({name: row.get(name) for name in COLUMNS}, flush=True)
        yield row


def store(programs: list[Row], entry_points: list[Row]) -> None:
    """Write the results; of what was not measured now, the stored ones stay."""
    known: Row = {}
    if (harness.RESULTS / f"{NAME}.json").exists():
        known = harness.read(NAME)["rows"]
    at = gpu_budgets.by_key(known.get("programs", []))
    at |= gpu_budgets.by_key(programs)
    rows = [at[cell.key] for cell in CELLS if cell.key in at]
    gpu_budgets.add_beyond(rows)
    compiled = gpu_entry_points.by_key(known.get("entry points", []))
    compiled |= gpu_entry_points.by_key(entry_points)
    tables = {
        "budgets": gpu_budgets.judged(rows),
        "programs": rows,
        "entry points": [
            compiled[entry] for entry in gpu_entry_points.ALL if entry in compiled
        ],
    }
    harness.write(NAME, tables, harness.hardware())


def check() -> int:
    """Count the cells that have a ceiling; 1 if one is above it."""
    cells = {cell.key: cell for cell in CELLS}
    found = []
    for ceiling in gpu_budgets.CEILINGS:
        row = counted(cells[ceiling.key], ceiling.passes)
        print(harness.table([row], COLUMNS).splitlines()[-1], flush=True)
        found += gpu_budgets.overruns(ceiling, row)
    few = gpu_entry_points.measure(gpu_entry_points.FEW)
    found += gpu_entry_points.failures(few)
    print("\n".join(found) or "no count is above its ceiling")
    return 1 if found else 0


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_counts")
    parser.add_argument("--small", action="store_true", help="a few cells, no files")
    parser.add_argument("--check", action="store_true", help="fail above a ceiling")
    parser.add_argument("--entry-points", action="store_true", help="only these")
    parser.add_argument("--only", default="", help="those with this in their name")
    args = parser.parse_args(arguments)
    if not can_compile():
        print("JAX's CUDA plugin is not installed: see constraints-gpu.txt")
        return 2
    if args.check:
        return check()
    if args.entry_points:
        asked = [e for e in gpu_entry_points.ALL if args.only in str(e)]
        for row in gpu_entry_points.measure(asked):
            store([], [row])
        return 0
    cells = SMALL if args.small else [c for c in CELLS if args.only in str(c.key)]
    rows = []
    for row in measure(cells):
        rows.append(row)
        if not args.small:
            store([row], [])
    print(harness.table(rows, COLUMNS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
