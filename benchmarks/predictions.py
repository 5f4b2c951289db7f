"""What `diagnose` predicts beside the passes that methods took.

    python -m benchmarks.predictions           # predict, write the results
    python -m benchmarks.predictions measure   # Picard and Jacobi anew as well
    python -m benchmarks.predictions --small   # one problem, for CI

The passes of DEER, quasi-DEER and the accelerator's default are those stored by
`benchmarks.convergence`, at T = 1,000 in float64; Picard and Jacobi, which it does not
run, are run here. Each is tried on the first half of the steps and drawn out; the two
constants of the default were chosen by hand with passes of these problems in sight.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np

import elk_ssm as elk
from benchmarks import convergence, harness, problems
from benchmarks.harness import Row

CONVERGENCE = {"deer": "deer", "quasi_deer": "quasi_deer", "auto": "auto (accelerator)"}
OWN = {"picard": elk.picard, "jacobi": elk.jacobi}
METHODS = ("deer", "quasi_deer", "picard", "jacobi", "auto")
NAMES = tuple(n for n in problems.NAMES if n not in convergence.LEFT_OUT)


def measured(name: str) -> dict[str, int]:
    """Passes of the methods that no other benchmark runs."""
    problem = problems.make(name, length=convergence.LENGTH, dtype="float64")
    found = {}
    for method, build in OWN.items():
        sol = elk.evaluate(
            problem.f,
            problem.initial_state,
            problem.inputs,
            length=problem.length,
            method=build(),
        )
        found[method] = int(sol.num_iters)
    return found


def predict(name: str, known: dict[str, int]) -> Row:
    """A problem's diagnosis beside the passes that it took."""
    problem = problems.make(name, length=convergence.LENGTH, dtype="float64")
    found = elk.diagnose(
        problem.f, problem.initial_state, problem.inputs, length=problem.length
    )
    row = {
        "problem": name,
        "exponent": float(found.lyapunov_exponent),
        "growth": float(found.growth),
        "predicted": found.predictions,
        "measured": known,
    }
    print(
        {k: (n, known.get(k)) for k, n in found.predictions.items()}, name, flush=True
    )
    return row


def stored_passes() -> dict[str, dict[str, int]]:
    """Passes by problem and method, of `benchmarks.convergence`."""
    rows = harness.read("convergence")["rows"]["suite"]
    found = {(r["problem"], r["method"]): r["iterations"] for r in rows}
    return {
        name: {ours: found[name, theirs] for ours, theirs in CONVERGENCE.items()}
        for name in NAMES
    }


def factor(row: Row, method: str) -> float:
    """By which factor a prediction is wrong, at least 1."""
    a, b = row["predicted"][method], row["measured"][method]
    return max(a / b, b / a)


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/prediction.md` has places for."""
    rows = stored["rows"]
    wide = []
    for row in rows:
        line: Row = {k: row[k] for k in ("problem", "exponent", "growth")}
        for method in METHODS:
            pair = row["predicted"][method], row["measured"][method]
            line[method] = " / ".join(f"{n:,}" for n in pair)
        wide.append(line)
    columns = ["problem", "exponent", "growth", *METHODS]
    totals = ["all", "all below T", "within 1.5"]
    errors = harness.table([_errors(rows)], ["problems", *METHODS, *totals])
    return {"table": harness.table(wide, columns), "errors": errors}


def _errors(rows: list[Row]) -> Row:
    """Median and largest factor of each method, and of all of them together."""
    factors = {m: [factor(row, m) for row in rows] for m in METHODS}
    everything = [x for f in factors.values() for x in f]
    # Where a method needs all T passes, the bound is easily right.
    below = [
        factor(row, m)
        for row in rows
        for m in METHODS
        if m == "auto" or row["measured"][m] < convergence.LENGTH
    ]
    line: Row = {"problems": len(rows)}
    line |= {m: f"{np.median(f):.2f} ({max(f):.1f})" for m, f in factors.items()}
    return line | {
        "all": f"{np.median(everything):.2f}",
        "all below T": f"{np.median(below):.2f}",
        "within 1.5": f"{np.mean(np.array(everything) <= 1.5):.0%}",
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    jax.config.update("jax_enable_x64", True)
    if "--small" in arguments:
        predict("gru_D4", stored_passes()["gru_D4"])
        return 0
    machine = harness.hardware("float64")
    known = stored_passes()
    if "measure" in arguments:
        own = {name: measured(name) for name in NAMES}
    else:
        rows = harness.read("prediction")["rows"]
        own = {r["problem"]: {m: r["measured"][m] for m in OWN} for r in rows}
    rows = [predict(name, known[name] | own[name]) for name in NAMES]
    harness.write("prediction", rows, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
