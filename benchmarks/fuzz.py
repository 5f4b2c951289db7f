"""Random cases of what is promised, counted: the long run of the property tests.

    python -m benchmarks.fuzz --cases 12000 --seed 0      # make fuzz CASES= SEED=
    python -m benchmarks.fuzz --kinds linear --cases 500 --seed 3
    python -m benchmarks.fuzz --small                     # a few cases, writes nothing

Hypothesis draws the cases, the same ones for the same seed; `tests/properties` draws
some of the same and shrinks what fails. Here nothing stops at a failure: each is
printed with a script that shows it, all are counted, and the exit code is 1 when there
is one. Counts go to `benchmarks/results/fuzz.json`, a row for each kind.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import numpy as np

from benchmarks import fuzz_linear, fuzz_nonlinear, fuzz_recurrences, harness
from benchmarks.fuzz_recurrences import Verdict
from benchmarks.search_report import FLAGS


class Kind(NamedTuple):
    """What is drawn, how it is judged, which share of all cases it gets, the claim."""

    cases: Callable[[], Any]
    check: Callable[[Any], Verdict]
    share: float
    claim: str


KINDS = {
    "recurrences": Kind(
        fuzz_recurrences.cases,
        fuzz_recurrences.check,
        0.45,
        "converged: error below 10 tol times the amplification; else the right status, "
        "finite states",
    ),
    "gradients": Kind(
        fuzz_recurrences.gradient_cases,
        fuzz_recurrences.check_gradient,
        0.1,
        "gradients are those through lax.scan",
    ),
    "linear models": Kind(
        fuzz_linear.cases,
        fuzz_linear.check,
        0.3,
        "smoothed moments and likelihood are those of a hundred digits",
    ),
    "nonlinear models": Kind(
        fuzz_nonlinear.cases,
        fuzz_nonlinear.check,
        0.15,
        "converged: a mode, with no slope and nothing higher beside it",
    ),
}
SMALL, STORED = 40, "fuzz"
Row = dict[str, Any]


def run(
    name: str, count: int, seed: int, seconds: float = np.inf, scripts: int = 20
) -> Row:
    """Run cases of a kind, until the time is up; a failure is printed and counted."""
    until, kind = time.monotonic() + seconds, KINDS[name]
    ended = Counter[str]()
    begun, failed, worst = time.process_time(), 0, 0.0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(kind.cases())
    def every(case: Any) -> None:
        nonlocal failed, worst
        if time.monotonic() > until:
            raise KeyboardInterrupt
        found = kind.check(case)
        ended[found.ended] += 1
        worst = max(worst, found.ratio) if np.isfinite(found.ratio) else worst
        if found.failures:
            failed += 1
            if failed <= scripts:
                print(found.script, *found.failures, sep="\n", flush=True)
        done = ended.total()
        if done % 500 == 0:
            print(f"{name}: {done} cases, {failed} failed", file=sys.stderr, flush=True)

    try:
        every()
    except KeyboardInterrupt:
        print(f"{name}: ended after {ended.total()} of {count} cases", file=sys.stderr)
    return {
        "kind": name,
        "claim": kind.claim,
        "cases": ended.total(),
        "failures": failed,
        "seed": seed,
        "largest error over its bound": float(worst),
        "ended": dict(ended),
        "cpu_s": time.process_time() - begun,
    }


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/trust.md` has places for."""
    rows = stored["rows"]
    columns = ["kind", "claim", "cases", "failures", "largest error over its bound"]
    ended = [
        {"kind": row["kind"], "ended": name, "cases": number}
        for row in rows
        for name, number in sorted(row["ended"].items())
    ]
    return {
        "table": harness.table(rows, columns),
        "ended": harness.table(ended, ["kind", "ended", "cases"]),
        "cases": f"{sum(row['cases'] for row in rows):,}",
        "failures": str(sum(row["failures"] for row in rows)),
        "seed": " and ".join(sorted({str(row["seed"]) for row in rows})),
    }


def _store(rows: list[Row], machine: Row) -> None:
    """Replace the rows of the kinds that ran."""
    new = {row["kind"]: row for row in rows}
    path = harness.RESULTS / "fuzz.json"
    old = harness.read("fuzz")["rows"] if path.exists() else []
    merged = {row["kind"]: row for row in old} | new
    kept = [merged[name] for name in KINDS if name in merged]
    harness.write("fuzz", kept, machine)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=12_000, help="of all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=np.inf, help="for each kind")
    parser.add_argument("--small", action="store_true", help=f"{SMALL} cases")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("XLA_FLAGS", FLAGS)
    machine = harness.hardware("float32 and float64")
    total = SMALL if chosen.small else chosen.cases
    share = sum(KINDS[name].share for name in chosen.kinds)
    rows = []
    for name in chosen.kinds:
        count = max(1, round(total * KINDS[name].share / share))
        rows.append(run(name, count, chosen.seed, 60 * chosen.minutes))
        if not chosen.small:
            _store(rows[-1:], machine)
    print(harness.table(rows, ["kind", "cases", "failures", "seed", "cpu_s"]))
    cases, failed = (sum(row[name] for row in rows) for name in ("cases", "failures"))
    print(f"seed {chosen.seed}: {cases} cases, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
