"""What `diagnose` predicts beside the passes that methods took.

    python -m benchmarks.predictions           # predict, write the results
    python -m benchmarks.predictions measure   # Picard and Jacobi anew as well
    python -m benchmarks.predictions --small   # two problems, for CI

The passes of DEER, quasi-DEER and the accelerator's default are those stored by
`benchmarks.convergence`, at T = 1,000 in float64; Picard and Jacobi, which it does not
run, are run here. The one constant of the model, how far a diverging iterate gets, was
chosen on the problems of `FITTED`; the errors that count are those on the others.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np

import elk_ssm as elk
from benchmarks import convergence, harness, problems
from benchmarks.harness import Row

FITTED = (
    "gru_D8",
    "gru_D32",
    "lstm_D4",
    "argru_seed0",
    "argru_seed2",
    "argru_seed4",
    "lorenz63",
    "chaotic_rnn_g1.5",
    "chaotic_rnn_g3",
    "double_well",
    "bistable_rnn",
    "mala_keys",
)
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
        "fitted": name in FITTED,
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
        line: Row = {"problem": row["problem"] + (" (fitted)" if row["fitted"] else "")}
        line |= {"exponent": row["exponent"], "growth": row["growth"]}
        for method in METHODS:
            pair = row["predicted"][method], row["measured"][method]
            line[method] = " / ".join(f"{n:,}" for n in pair)
        wide.append(line)
    errors = []
    for what, fitted in (("fitted", True), ("not fitted", False)):
        some = [row for row in rows if row["fitted"] == fitted]
        factors = {m: [factor(row, m) for row in some] for m in METHODS}
        line = {"problems": f"{what}, {len(some)}"}
        line |= {m: f"{np.median(f):.2f} ({max(f):.1f})" for m, f in factors.items()}
        everything = [x for f in factors.values() for x in f]
        # Where a method needs all T passes, the bound is easily right.
        open_ones = [
            factor(row, m)
            for row in some
            for m in METHODS
            if m == "auto" or row["measured"][m] < convergence.LENGTH
        ]
        line["all"] = f"{np.median(everything):.2f}"
        line["all below T"] = f"{np.median(open_ones):.2f}"
        line["within 1.5"] = f"{np.mean(np.array(everything) <= 1.5):.0%}"
        errors.append(line)
    columns = ["problem", "exponent", "growth", *METHODS]
    totals = ["all", "all below T", "within 1.5"]
    return {
        "table": harness.table(wide, columns),
        "errors": harness.table(errors, ["problems", *METHODS, *totals]),
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    jax.config.update("jax_enable_x64", True)
    if "--small" in arguments:
        for name in ("gru_D4", "lorenz63"):
            predict(name, stored_passes()[name])
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
