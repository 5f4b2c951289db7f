"""What the programs of the count table may cost: asked, published, measured.

`BUDGETS` are goals, beside what the published iteration or `lax.scan` takes. `CEILINGS`
hold what was reached: counts are exact, so a program that launches one kernel more than
its ceiling has become worse, and `python -m benchmarks.gpu_counts --check` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.gpu_cells import LONG, SHORT, Passes
from benchmarks.harness import Row

Key = tuple[str, str, int, int]
BEYOND = "launches beyond the forward pass"


class Budget(NamedTuple):
    """A goal: `column` of the cell `key` is at most `asked`; `other` is compared."""

    key: Key
    column: str
    asked: float
    other: Key | None = None


class Ceiling(NamedTuple):
    """What a cell took when it was last lowered, at a number of passes."""

    key: Key
    passes: Passes
    launches: int
    syncs: int
    gigabytes: float
    temporary_mb: float


def _gru(program: str, size: int) -> Key:
    return "GRU", program, size, LONG


def _whole(size: int, launches: float, gigabytes: float, ms: float) -> list[Budget]:
    asked = {"launches": launches, "GB moved": gigabytes, "model ms": ms}
    ours, theirs = _gru("default", size), _gru("published quasi_deer", size)
    return [Budget(ours, name, most, theirs) for name, most in asked.items()]


def _a_pass(program: str, asked: dict[int, float]) -> list[Budget]:
    return [
        Budget(
            _gru(program, size),
            "launches a pass",
            most,
            _gru(f"published {program}", size),
        )
        for size, most in asked.items()
    ]


def _smoother(
    key: Key, launches: float, gigabytes: float, other: Key | None = None
) -> list[Budget]:
    asked = {"launches": launches, "GB moved": gigabytes}
    return [Budget(key, name, most, other) for name, most in asked.items()]


_PARALLEL = "smoother, E = 4", "dynamax, parallel", 4, LONG
BUDGETS = (
    *_whole(32, 400, 3.0, 2.0),
    *_whole(8, 300, 0.7, 1.0),
    Budget(_gru("default, kernel", 32), "launches", 40, _gru("default", 32)),
    *_a_pass("quasi_deer", {32: 24, 8: 18}),
    *_a_pass("deer", {32: 60, 8: 55}),
    Budget(_gru("deer", 32), "temporary MB", 500, _gru("published deer", 32)),
    *_a_pass("quasi_elk", {32: 40, 8: 36}),
    Budget(
        ("GRU", "elk", 4, SHORT),
        "launches a pass",
        170,
        ("GRU", "published elk", 4, SHORT),
    ),
    *_smoother(("smoother, E = 4", "lgssm_smoother", 4, LONG), 300, 1.5, _PARALLEL),
    *_smoother(("smoother, E = 50", "lgssm_smoother", 10, SHORT), 400, 3.0),
    Budget(
        ("AR-GRU", "default", 4, SHORT),
        "model ms",
        10.0,
        ("AR-GRU", "lax.scan", 4, SHORT),
    ),
    Budget(
        ("GRU, gradient", "default", 32, LONG),
        BEYOND,
        600,
        ("GRU, gradient", "lax.scan", 32, LONG),
    ),
)
COMPILE_SECONDS = 10.0
# Launches and synchronisations as they were counted, sizes rounded up.
CEILINGS = (
    Ceiling(_gru("default", 32), Passes(short=4), 256, 7, 1.39, 81.0),
    Ceiling(_gru("quasi_deer", 8), Passes(iterated=15), 407, 21, 2.80, 35.3),
    Ceiling(("AR-GRU", "default", 4, SHORT), Passes(4, 19), 4_123, 32, 0.246, 0.62),
)


def add_beyond(rows: Sequence[Row]) -> None:
    """Say of gradients how many launches they add to their forward pass."""
    at = by_key(rows)
    for row in rows:
        problem, _, what = row["problem"].partition(", ")
        forward = at.get((problem, row["program"], row["D"], row["T"]))
        if what == "gradient" and forward is not None:
            row[BEYOND] = row["launches"] - forward["launches"]


def by_key(rows: Sequence[Row]) -> dict[Key, Row]:
    """Rows of the count table by their key."""
    return {(r["problem"], r["program"], r["D"], r["T"]): r for r in rows}


def judged(rows: Sequence[Row]) -> list[Row]:
    """Each budget beside what was measured, the worst first."""
    at, found = by_key(rows), []
    for budget in BUDGETS:
        if budget.key not in at:
            continue
        measured = at[budget.key].get(budget.column)
        other = at.get(budget.other, {}) if budget.other else {}
        row = _line(budget.key, budget.column, budget.asked, measured)
        if budget.other and budget.column in other:
            row |= {"other": budget.other[1], "of the other": other[budget.column]}
        found.append(row)
    slowest = max((row for row in rows if _is_ours(row)), key=_compile, default=None)
    if slowest is not None:
        key = tuple(slowest[name] for name in ("problem", "program", "D", "T"))
        found.append(_line(key, "compile s", COMPILE_SECONDS, _compile(slowest)))
    return sorted(found, key=lambda row: -row["measured"] / row["asked"])


def _line(key: Any, column: str, asked: float, measured: Any) -> Row:
    problem, program, size, length = key
    what = f"{problem}: {program}, D = {size}, T = {length:,}"
    return {"program": what, "what": column, "asked": asked, "measured": measured}


def _is_ours(row: Row) -> bool:
    others = ("lax.scan", "published", "dynamax", "cuthbert", "flax")
    return not row["program"].startswith(others)


def _compile(row: Row) -> float:
    return row["compile s"]


def overruns(ceiling: Ceiling, row: Row) -> list[str]:
    """What is above its ceiling, a line each."""
    most = {
        "launches": ceiling.launches,
        "syncs": ceiling.syncs,
        "GB moved": ceiling.gigabytes,
        "temporary MB": ceiling.temporary_mb,
    }
    problem, program, size, length = ceiling.key
    return [
        f"{problem}, {program}, D = {size}, T = {length:,}: {row[name]:,.6g} {name}, "
        f"above its ceiling of {limit:,.6g}"
        for name, limit in most.items()
        if row[name] > limit
    ]
