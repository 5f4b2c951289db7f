"""Tables of `benchmarks.paper`: for the terminal and for `docs/which_algorithm.md`.

Beside ours stands what the published code gave, not what can be read off the paper's
figures: on a CPU, by the authors' scripts on their own problems (medians, or ranges,
over seeds); on a T4 GPU, by the output that the authors' `blog.ipynb` stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import harness, paper_convergence
from benchmarks.harness import Row
from benchmarks.published import PUBLISHED as COUNTS

STORED = "paper"

RESET = "NaN set to 0"
# By problem and T, then method: iterations to a mean absolute deviation below 0.1.
ITERATIONS: dict[tuple[str, int], dict[str, str]] = {
    ("AR-GRU, trained", 10_000): {
        f"DEER, {RESET}": "4,421",
        f"quasi-DEER, {RESET}": "8,043",
        "ELK": "150",
        "quasi-ELK": "1,372",
    },
    ("Lorenz-96", 1_000): {
        f"DEER, {RESET}": "{} to {}".format(*COUNTS["lorenz96"]["deer"]),
        "DEER, no reset": "{} to {}".format(*COUNTS["lorenz96"]["deer, no reset"]),
        f"quasi-DEER, {RESET}": "{} to {}".format(*COUNTS["lorenz96"]["quasi_deer"]),
        "quasi-DEER, no reset": "{} to {}".format(
            *COUNTS["lorenz96"]["quasi_deer, no reset"]
        ),
        "ELK": "{} to {}".format(*COUNTS["lorenz96"]["elk"]),
        "quasi-ELK": "{} to {}".format(*COUNTS["lorenz96"]["quasi_elk"]),
    },
}
GRU_ITERATIONS = {"DEER, published": "4 to 5", "quasi-DEER, published": "11 to 13"}
# Over `lax.scan`, on a CPU, by (D, T).
GRU_TIMES = {
    ("DEER, published", 32, 10_000): "31",
    ("DEER, published", 32, 100_000): "20",
    ("quasi-DEER, published", 32, 10_000): "11",
    ("quasi-DEER, published", 32, 100_000): "11",
}
GRU_MEMORY = {
    ("DEER, published", 1, 32, 100_000): "1,270",
    ("quasi-DEER, published", 1, 32, 100_000): "153 to 220",
}
# On a T4, `blog.ipynb`, D = 32, T = 65,536.
T4 = {
    "sequential (lax.scan)": {"T4, ms": "435", "T4, iterations": "-"},
    "ours: deer": {"T4, ms": "84.1", "T4, iterations": "6"},
    "ours: quasi_deer": {"T4, ms": "39.3", "T4, iterations": "30"},
}

_COUNT = "iterations to MAD < 0.1"
_WORST = "largest error on the way"
_END = "error at the end"


def _curves(rows: list[Row]) -> str:
    shown = []
    for row in rows:
        known = ITERATIONS.get((row["problem"], row["T"]), {})
        count = row["iterations"]
        shown.append(
            row
            | {
                _COUNT: "not reached" if count is None else count,
                "depth over T": "-" if count is None else row["depth over T"],
                "published code": known.get(row["method"], "-"),
                _WORST: row.get(_WORST, "-"),
            }
        )
    columns = ["problem", "method", "s^2", _COUNT, "published code"]
    return harness.table(shown, [*columns, "depth over T", _WORST, _END])


def _sweep(rows: list[Row]) -> str:
    wide: dict[float, Row] = {}
    for row in rows:
        late = "*" if row["did not arrive"] else ""
        cell = f"{row['median iterations']:,.0f}{late}"
        wide.setdefault(row["s^2"], {"s^2": row["s^2"]})[row["method"]] = cell
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return harness.table(list(wide.values()), ["s^2", *methods])


def _time(rows: list[Row]) -> str:
    shown = []
    for row in rows:
        cell = (row["candidate"], row["D"], row["T"])
        known = {
            "published code, over the scan": GRU_TIMES.get(cell, "-"),
            "published code, iterations": GRU_ITERATIONS.get(row["candidate"], "-"),
        }
        blank = dict.fromkeys(("over the scan", "iterations", "error"), "-")
        shown.append(blank | row | known)
    columns = ["D", "T", "candidate", "run_ms", "over the scan"]
    columns += ["published code, over the scan", "iterations"]
    return harness.table(shown, [*columns, "published code, iterations", "error"])


def _memory(rows: list[Row]) -> str:
    shown = []
    for row in rows:
        cell = (row["candidate"], row["B"], row["D"], row["T"])
        known = {"published code, MB": GRU_MEMORY.get(cell, "-")}
        shown.append(row | known | {"temp_mb": f"{row['temp_mb']:,.1f}"})
    columns = ["B", "D", "T", "candidate", "temp_mb", "published code, MB"]
    return harness.table(shown, columns)


def _vanilla(rows: list[Row]) -> str:
    none = {"T4, ms": "-", "T4, iterations": "-"}
    shown = [row | T4.get(row["candidate"], none) for row in rows]
    if any((row["D"], row["T"]) != (32, 65_536) for row in rows):
        shown = [row | none for row in rows]
    columns = ["D", "T", "candidate", "run_ms", "over the scan", "iterations"]
    return harness.table(shown, [*columns, "T4, ms", "T4, iterations", "error"])


def _agreement(rows: list[Row]) -> str:
    columns = ["D", "T", "candidate", "iterations"]
    return harness.table(rows, [*columns, "largest difference", "mean difference"])


# Part, title, how its rows become a table.
TABLES: list[tuple[str, str, Callable[[list[Row]], str]]] = [
    ("time", "Figures 2 and 6, time: GRUs, one sequence", _time),
    ("memory", "Figures 2 and 6, memory: temporaries of the program", _memory),
    ("vanilla", "The authors' example, whose times they print", _vanilla),
    ("argru", "Figure 4: the autoregressive GRU", _curves),
    ("agreement", "Figure 5: outputs against those of lax.scan", _agreement),
    ("lorenz", "Figure 8, bottom: Lorenz-96 with and without damping", _curves),
]


def tables(parts: dict[str, Any]) -> dict[str, str]:
    """A table for each part that has been measured, by its title."""
    found = {title: make(parts[part]) for part, title, make in TABLES if part in parts}
    for problem, rows in parts.get("sensitivity", {}).items():
        title = f"Figures 7 and 8, median iterations by the noise: {problem}"
        found[f"{title} (* some gave up at {rows[0]['limit']:,})"] = _sweep(rows)
    return found


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/which_algorithm.md` has places for."""
    parts = {name: part["rows"] for name, part in stored["rows"].items()}
    found = {part: make(parts[part]) for part, _, make in TABLES}
    sweeps = parts["sensitivity"]
    trained = sweeps["AR-GRU, trained"]
    found |= {
        "sweep_argru": _sweep(trained),
        "sweep_lorenz": _sweep(sweeps["Lorenz-96"]),
    }
    block = paper_convergence.BLOCK
    found["bound"] = str(trained[0]["limit"] // block)
    found["runs"] = str(trained[0]["runs"])
    found["argru_T"] = f"{parts['argru'][0]['T']:,}"
    found["minutes"] = f"{sum(m['minutes'] for m in _machines(stored)):.0f}"
    loads = sorted(m["load"] for m in _machines(stored))
    found["loads"] = f"{loads[0]:.1f} to {loads[-1]:.1f}"
    named = {"deer": f"DEER, {RESET}", "elk": "ELK", "ours": "ours: Newton"}
    for short, start in named.items():
        rows = [r for r in parts["argru"] if r["problem"] == "AR-GRU, trained"]
        (row,) = (r for r in rows if r["method"].startswith(start))
        found[f"argru_{short}"] = f"{row['iterations']:,}"
    return found


def _machines(stored: dict[str, Any]) -> list[Row]:
    """What each part ran on, and for how long."""
    return [part["machine"] for part in stored["rows"].values()]
