"""Time side by side: `lax.scan`, the default, each method, the published iteration.

    python -m benchmarks.speed             # measure, write results and docs
    python -m benchmarks.speed --small     # one small cell, for CI
    python -m benchmarks.speed --docs      # write the docs from stored results

Three tables: the default against the best `lax.scan` of the same GRU; one iteration
(C = 1) against one iteration of the restated published code; and batches by `vmap`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness, published
from benchmarks.gradients import gru
from benchmarks.harness import Row

SIZES, LENGTHS = (4, 8, 16, 32, 64), (10_000, 100_000)
ITERATION_SIZES, ITERATION_LENGTH = (4, 8, 32), 10_000
DENSE_UP_TO = 8
BATCHES, BATCH_LENGTH, BATCH_SIZE = (1, 16, 256), 2_000, 8
ITERATIONS = 4
NOISE = 1e2

Step = Callable[[jax.Array, jax.Array], jax.Array]


def fused(weights: jax.Array) -> Step:
    """The same GRU with one product for the two gates, sliced."""
    wz, uz, wr, ur, wn, un = weights
    recurrent = jnp.concatenate([wz, wr, wn], axis=1)
    driven = jnp.concatenate([uz, ur, un], axis=1)

    def step(h: jax.Array, u: jax.Array) -> jax.Array:
        size = h.shape[0]
        a, b = h @ recurrent, u @ driven
        z = jax.nn.sigmoid(a[:size] + b[:size])
        r = jax.nn.sigmoid(a[size : 2 * size] + b[size : 2 * size])
        n = jnp.tanh(r * a[2 * size :] + b[2 * size :])
        return (1 - z) * n + z * h

    return step


def case(size: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Default-initialised weights `(6, D, D)`, x_0 and inputs `(T, D)`.

    As flax draws them: orthogonal recurrent and LeCun-normal input kernels.
    """
    rng = np.random.default_rng(size)
    recurrent = [np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(3)]
    driven = [rng.normal(size=(size, size)) / np.sqrt(size) for _ in range(3)]
    weights = [w for pair in zip(recurrent, driven) for w in pair]
    inputs = rng.normal(size=(length, size))
    as_float = [jnp.asarray(x, jnp.float32) for x in (np.stack(weights), inputs)]
    return as_float[0], jnp.zeros(size, jnp.float32), as_float[1]


def scan_with(make: Callable[[jax.Array], Step], unroll: int) -> Callable:
    def run(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> jax.Array:
        step = make(weights)

        def body(h: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = step(h, u)
            return h, h

        return jax.lax.scan(body, start, inputs, unroll=unroll)[1]

    return run


def split(weights: jax.Array) -> Step:
    return lambda h, u: gru(weights, h, u)


def evaluated_by(method: Any, **options: Any) -> Callable:
    def run(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> jax.Array:
        return elk.evaluate(
            split(weights), start, inputs, method=method, **options
        ).states

    return run


SCANS = {
    "scan, split gates": scan_with(split, 1),
    "scan, split gates, unroll 4": scan_with(split, 4),
    "scan, fused gates": scan_with(fused, 1),
    "scan, fused gates, unroll 4": scan_with(fused, 4),
}


def measure_default(sizes: tuple[int, ...], lengths: tuple[int, ...]) -> list[Row]:
    """The default against every `lax.scan`."""
    rows = []
    for size in sizes:
        for length in lengths:
            arguments = case(size, length)
            chosen = {name: (run, arguments) for name, run in SCANS.items()}
            chosen["auto"] = (evaluated_by(None), arguments)
            found, results = harness.compare(chosen, seconds=3.0)
            best = min(r["run_ms"] for r in found if r["candidate"] in SCANS)
            for row in found:
                row |= {"D": size, "T": length, "speed-up": best / row["run_ms"]}
                row["error"] = harness.largest_error(
                    results[row["candidate"]], results["scan, split gates"]
                )
            rows += found
            print(f"default: D = {size}, T = {length} done", flush=True)
    return rows


def published_iterations(name: str) -> Callable:
    """A few iterations of the restated published code, its associative scans."""

    def run(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> jax.Array:
        options = published.Options(method=name, backend="associative")
        step = published.make_step(options, split(weights), start, inputs)
        states = jnp.zeros((inputs.shape[0], start.shape[0]), start.dtype)
        return jax.lax.fori_loop(0, ITERATIONS, lambda _, x: step(x, NOISE), states)

    return run


OURS = {
    "quasi_deer": elk.quasi_deer,
    "deer": elk.deer,
    "quasi_elk": lambda: elk.quasi_elk(NOISE),
    "elk": lambda: elk.elk(NOISE),
}


def measure_iterations(sizes: tuple[int, ...], length: int) -> list[Row]:
    """One iteration at C = 1, ours over the published one."""
    rows = []
    for size in sizes:
        arguments = case(size, length)
        for name, build in OURS.items():
            if name in ("deer", "elk") and size > DENSE_UP_TO:
                continue
            # Exactly ITERATIONS passes: no tolerance is ever met.
            ours = evaluated_by(build(), max_iters=ITERATIONS, tol=1e-30)
            pair = {
                "ours": (ours, arguments),
                "published": (published_iterations(name), arguments),
            }
            found, _ = harness.compare(pair, seconds=2.0, at_most=9)
            mine, theirs = found
            rows.append(
                {
                    "method": name,
                    "D": size,
                    "T": length,
                    "ours, ms": mine["run_ms"] / ITERATIONS,
                    "published, ms": theirs["run_ms"] / ITERATIONS,
                    "ratio": mine["run_ms"] / theirs["run_ms"],
                    "ours, compile s": mine["compile_s"],
                    "published, compile s": theirs["compile_s"],
                }
            )
            print(f"iteration: {name}, D = {size} done", flush=True)
    return rows


def measure_batches(batches: tuple[int, ...], length: int, size: int) -> list[Row]:
    """`vmap` over a batch of input sequences."""
    weights, start, inputs = case(size, length)
    rows = []
    for batch in batches:
        many = jnp.stack([jnp.roll(inputs, i, axis=0) for i in range(batch)])
        chosen = {
            name: (jax.vmap(run, (None, None, 0)), (weights, start, many))
            for name, run in (
                ("scan, split gates", SCANS["scan, split gates"]),
                ("auto", evaluated_by(None)),
                ("jacobi(block_size=64)", evaluated_by(elk.jacobi(block_size=64))),
            )
        }
        found, _ = harness.compare(chosen, seconds=2.0)
        best = found[0]["run_ms"]
        for row in found:
            rows.append({"B": batch, "D": size, "T": length, **row})
            rows[-1]["speed-up"] = best / row["run_ms"]
        print(f"batch: B = {batch} done", flush=True)
    return rows


def document(stored: dict[str, Any]) -> str:
    """The page of the docs."""
    rows = stored["rows"]
    columns = ["D", "T", "candidate", "run_ms", "speed-up", "compile_s", "temp_mb"]
    losing = [
        r for r in rows["default"] if r["candidate"] == "auto" and r["speed-up"] < 1
    ]
    return "\n".join(
        [
            "# When does this pay?",
            "",
            "Written by `python -m benchmarks.speed`, numbers in "
            "`benchmarks/results/speed.json`.",
            harness.machine_line(stored["hardware"]),
            "Candidates of a cell take turns; medians; compile time apart. "
            "GPU: not measured.",
            "",
            "## Where it does not",
            "",
            "On a CPU, in batches: `lax.scan` under `vmap` fills the vector unit by "
            "itself, and blocks add work (last table).",
            "",
            "On a CPU, for a recurrence that does not forget its past: `auto` then "
            "evaluates step by step, and costs what the scan costs plus the probe.",
            "",
            "For short sequences: below a few thousand steps the fixed cost of the "
            "probe and the blocks is larger than what they save.",
            "",
            "Cells of the table below in which `auto` was slower than the best scan:",
            "",
            harness.table(losing, ["D", "T", "speed-up"]) if losing else "none.",
            "",
            "## The default against the best scan",
            "",
            "A GRU with flax's default initialisation as a plain function. Speed-up "
            "is over the fastest of the four scans of that cell.",
            "",
            harness.table(rows["default"], [*columns, "error"]),
            "",
            "## One iteration against the published one",
            "",
            "At C = 1, the whole pass with its stopping test, against the restatement "
            "of the published iteration in `benchmarks/published.py` (associative "
            "scans, diagonal of the dense Jacobian, generic and scalar parallel "
            "Kalman filters).",
            "",
            harness.table(rows["iterations"], list(rows["iterations"][0])),
            "",
            "## Batches",
            "",
            harness.table(rows["batches"], ["B", *columns]),
        ]
    )


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if "--small" in arguments:
        rows = measure_default((4,), (2_000,))
        print(harness.table(rows, ["candidate", "run_ms", "speed-up", "error"]))
        return 0
    if "--docs" not in arguments:
        machine = harness.hardware()
        rows = {
            "default": measure_default(SIZES, LENGTHS),
            "iterations": measure_iterations(ITERATION_SIZES, ITERATION_LENGTH),
            "batches": measure_batches(BATCHES, BATCH_LENGTH, BATCH_SIZE),
        }
        harness.write("speed", rows, machine)
    harness.document("speed", document(harness.read("speed")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
