"""How many iterations each method takes on the problem suite, and what comes out.

    python -m benchmarks.convergence             # measure, write the results
    python -m benchmarks.convergence --small     # T = 200 and few problems, for CI
    python -m benchmarks.convergence cost        # the cost of the default again
    python -m benchmarks.convergence accelerator # the accelerator's default again

Everything is in float64, with the same defaults on every problem. The sequential depth
of a run is passes x (C + 2 log2(T / C)), C = 1 without blocks; evaluating step by step
has depth T.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import elk_ssm as elk
from benchmarks import harness, problems
from benchmarks.harness import Row

LENGTH, SMALL_LENGTH = 1_000, 200
ARGRU_LENGTH = 10_000
TOLERANCE = 1e-12
SMALL = ("gru_D4", "lorenz96", "linear_unstable", "argru_seed0")
LEFT_OUT = ("gru_D64", "gru_D128", "lstm_D64", "lstm_D128")

METHODS: dict[str, Callable[[], Any]] = {
    "auto (CPU)": lambda: elk.auto(strategy="forgetful"),
    "auto (accelerator)": lambda: elk.auto(strategy="short_blocks"),
    "deer": elk.deer,
    "quasi_deer": elk.quasi_deer,
    "elk, annealed": lambda: elk.elk(elk.Annealed(1.0, 4.0)),
    "quasi_elk, gain ratio": lambda: elk.quasi_elk(elk.GainRatio(1.0)),
}


def block_size(method: Any, length: int, size: int) -> int:
    """C of a method."""
    if isinstance(method, elk.Auto):
        if method.strategy == "short_blocks":
            return method.newton(length, size).block_size
        return method.forgetful_block_size(length, size)
    return method.block_size


def run(problem: problems.Problem, name: str, method: Any, limit: int | None) -> Row:
    """Evaluate one problem by one method."""
    sol = elk.evaluate(
        problem.f,
        problem.initial_state,
        problem.inputs,
        length=problem.length,
        method=method,
        max_iters=limit,
    )
    passes, length = int(sol.num_iters), problem.length
    size = block_size(method, length, problem.state_dim)
    depth = passes * (size + 2 * np.log2(max(length / size, 1)))
    if int(sol.plan.kind) < elk.PlanKind.newton_blocks:
        in_blocks = passes * int(sol.plan.block_size) * (int(sol.plan.kind) == 1)
        depth = in_blocks + int(sol.plan.sequential_steps)
    return {
        "problem": problem.name,
        "D": problem.state_dim,
        "T": length,
        "method": name,
        "iterations": passes,
        "depth over T": float(depth / length),
        "status": elk.Status(int(sol.status)).name,
        "error": harness.largest_error(sol.states, problem.reference()),
    }


def measure(
    names: tuple[str, ...], length: int, methods: dict[str, Callable] = METHODS
) -> list[Row]:
    """Methods on some problems."""
    rows = []
    for name in names:
        problem = problems.make(name, length=length, seed=0, dtype="float64")
        for method, build in methods.items():
            rows.append(run(problem, method, build(), None))
        print(
            f"{name}: " + ", ".join(f"{r['iterations']}" for r in rows[-len(methods) :])
        )
    return rows


def measure_long(draws: tuple[int, ...] = (0, 1, 2)) -> list[Row]:
    """The AR-GRU at T = 10,000: five sets of weights, three draws of the noise."""
    rows = []
    for draw, seed in itertools.product(draws, range(problems.ARGRU_SEEDS)):
        name = f"argru_seed{seed}"
        problem = problems.make(name, length=ARGRU_LENGTH, seed=draw, dtype="float64")
        problem = problem._replace(name=f"{name}, noise {draw}")
        for method in ("auto (CPU)", "auto (accelerator)"):
            rows.append(run(problem, method, METHODS[method](), None))
        damped = elk.auto(strategy="short_blocks", noise=elk.Annealed(1.0, 2.0))
        rows.append(run(problem, "the same, damped", damped, None))
    return rows


COST_LENGTH = 10_000
COST_PROBLEMS = (
    "gru_D4",
    "gru_D8",
    "gru_D16",
    "gru_D32",
    "lstm_D4",
    "lstm_D16",
    "slow_gru",
    "argru_seed0",
    "argru_seed4",
    "lorenz96",
    "chaotic_rnn_g1.5",
    "linear_unstable",
)


def measure_cost(names: tuple[str, ...] = COST_PROBLEMS) -> list[Row]:
    """Run time of the default over `lax.scan` of the same function, float32."""
    rows = []
    with jax.enable_x64(False):
        for name in names:
            problem = problems.make(name, length=COST_LENGTH, seed=0, dtype="float32")

            def scan(state: Any, inputs: Any, f: Any = problem.f) -> Any:
                def body(x: Any, u: Any) -> Any:
                    x = f(x, u)
                    return x, x

                return jax.lax.scan(body, state, inputs, length=COST_LENGTH)[1]

            def auto(state: Any, inputs: Any, f: Any = problem.f) -> Any:
                sol = elk.evaluate(f, state, inputs, length=COST_LENGTH)
                return sol.states, sol.plan

            arguments = (problem.initial_state, problem.inputs)
            chosen = {"scan": (scan, arguments), "auto": (auto, arguments)}
            found, results = harness.compare(chosen, seconds=2.0, at_most=60)
            times = {row["candidate"]: row for row in found}
            rows.append(
                {
                    "problem": name,
                    "D": problem.state_dim,
                    "scan, ms": times["scan"]["run_ms"],
                    "auto, ms": times["auto"]["run_ms"],
                    "auto over scan": times["auto"]["run_ms"] / times["scan"]["run_ms"],
                    "compile_s": times["auto"]["compile_s"],
                    "plan": results["auto"][1].describe(),
                }
            )
            print(rows[-1], flush=True)
    return rows


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/convergence.md` has places for."""
    rows, counts = stored["rows"], harness.read("published_counts")
    columns = ["iterations", "depth over T", "status", "error"]
    draws = harness.read("argru_draws")["rows"]
    failed = [row for row in rows["suite"] if row["status"] != "converged"]
    published = counts["argru"]["published code"]
    return {
        "T": f"{rows['length']:,}",
        "suite": _wide(rows["suite"], "iterations"),
        "depth": _wide(rows["suite"], "depth over T"),
        "error": _wide(rows["suite"], "error"),
        "failed": harness.table(failed, ["problem", "D", "method", *columns]),
        "argru_T": f"{ARGRU_LENGTH:,}",
        "argru": harness.table(rows["argru"], ["problem", "method", *columns]),
        "draws": harness.table(draws, list(draws[0])),
        "cost_T": f"{COST_LENGTH:,}",
        "cost": harness.table(rows["cost"], list(rows["cost"][0])),
        "published": _published(counts),
        "published_deer": str(published["deer"]),
        "published_elk": str(published["elk"]),
    }


def _wide(rows: list[Row], column: str) -> str:
    """One number of each run; a star where it did not converge."""
    found = {(r["problem"], r["method"]): r for r in rows}
    names = list(dict.fromkeys(r["problem"] for r in rows))
    wide = []
    for name in names:
        row: Row = {"problem": name}
        for method in METHODS:
            r = found[name, method]
            mark = "" if r["status"] == "converged" else "*"
            digits = {"iterations": ",d", "depth over T": ".2g", "error": ".0e"}[column]
            row[method] = f"{r[column]:{digits}}{mark}"
        wide.append(row)
    return harness.table(wide, ["problem", *METHODS])


def _published(counts: Any) -> str:
    rows = []
    for family in (name for name in counts if isinstance(counts[name], dict)):
        ours, theirs = counts[family].get("here"), counts[family].get("published code")
        if ours is None:
            continue
        for method, found in ours.items():
            low, high = found["range"]
            rows.append(
                {
                    "problem": family,
                    "method": method,
                    "here, median": found["median"],
                    "here, range": f"{low} to {high}",
                    "published": _range((theirs or {}).get(method, "")),
                }
            )
    return harness.table(
        rows, ["problem", "method", "here, median", "here, range", "published"]
    )


def _range(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    jax.config.update("jax_enable_x64", True)
    if "cost" in arguments:
        stored = harness.read("convergence")
        rows = stored["rows"] | {"cost": measure_cost()}
        harness.write("convergence", rows, stored["hardware"])
        return 0
    if "accelerator" in arguments:
        stored = harness.read("convergence")
        rows = stored["rows"]
        names = tuple(dict.fromkeys(row["problem"] for row in rows["suite"]))
        name = "auto (accelerator)"
        found = measure(names, LENGTH, {name: METHODS[name]})
        again = {(row["problem"], name): row for row in found}
        rows["suite"] = [
            again.get((r["problem"], r["method"]), r) for r in rows["suite"]
        ]
        rows["argru"] = measure_long()
        harness.write("convergence", rows, stored["hardware"])
        return 0
    if "--small" in arguments:
        print(_wide(measure(SMALL, SMALL_LENGTH), "iterations"))
        return 0
    machine = harness.hardware("float64")
    names = tuple(name for name in problems.NAMES if name not in LEFT_OUT)
    rows = {"length": LENGTH, "suite": measure(names, LENGTH)}
    rows |= {"argru": measure_long(), "cost": measure_cost()}
    harness.write("convergence", rows, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
