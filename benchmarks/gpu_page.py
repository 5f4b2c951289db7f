"""The tables of `docs/accelerators.md`, from `results/gpu_counts.json`."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.gpu_budgets import COMPILE_SECONDS
from benchmarks.gpu_entry_points import failures
from benchmarks.gpu_program import BYTES_PER_MS, LAUNCH_US, SYNC_US
from benchmarks.harness import Row

STORED = "gpu_counts"
COLUMNS = (
    *("problem", "program", "D", "T", "passes", "launches", "launches a pass"),
    *("syncs", "GB moved", "temporary MB", "compile s", "model ms"),
)


def places(stored: Row) -> dict[str, str]:
    """What `docs/accelerators.md` has places for."""
    rows = stored["rows"]
    budgets = rows["budgets"]
    lost = [row for row in budgets if row["measured"] > row["asked"]]
    return {
        "launch_us": f"{LAUNCH_US:g}",
        "sync_us": f"{SYNC_US:g}",
        "bandwidth": f"{BYTES_PER_MS / 1e9:g}",
        "compile_seconds": f"{COMPILE_SECONDS:g}",
        "lost": f"{len(lost)} of {len(budgets)}",
        "budgets": harness.table([_budget(row) for row in budgets], _BUDGET),
        "programs": harness.table([_program(row) for row in rows["programs"]], COLUMNS),
        "branches": harness.table(_branches(rows["programs"]), _BRANCHES),
        "entry_points": _entry_points(rows["entry points"]),
    }


_BUDGET = ("program", "what", "asked", "measured", "beside it")
_BRANCHES = ("problem", "program", "D", "T", "cheaper", "dearer")


def _budget(row: Row) -> Row:
    other = row.get("of the other")
    beside = "" if other is None else f"{row['other']}: {_number(other)}"
    numbers = {name: _number(row[name]) for name in ("asked", "measured")}
    return row | numbers | {"beside it": beside}


def _program(row: Row) -> Row:
    exact = ("D", "T", "passes")
    return {
        name: value if name in exact or isinstance(value, str) else _number(value)
        for name, value in row.items()
    }


def _branches(programs: list[Row]) -> list[Row]:
    found = []
    for row in programs:
        cheap, dear = (
            row[f"launches, {which} branches"] for which in ("cheap", "dear")
        )
        if cheap != dear:
            named = {name: row[name] for name in ("problem", "program", "D", "T")}
            found.append(named | {"cheaper": cheap, "dearer": dear})
    return found


def _entry_points(rows: list[Row]) -> str:
    """What was tried and what failed, by size and dtype."""
    found = []
    for size, dtype in dict.fromkeys((row["D"], row["dtype"]) for row in rows):
        here = [row for row in rows if (row["D"], row["dtype"]) == (size, dtype)]
        failed = [row for row in here if "failed" in row]
        row: Row = {"D": size, "dtype": dtype, "tried": len(here)}
        row["compile"] = len(here) - len(failed)
        seconds = [row["compile s"] for row in here if "compile s" in row]
        row["slowest, s"] = max(seconds, default=0.0)
        found.append(row)
    tried = harness.table(found, ("D", "dtype", "tried", "compile", "slowest, s"))
    return "\n".join([tried, "", *(f"- {line}" for line in failures(rows))]).strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
