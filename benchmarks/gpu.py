"""On an accelerator: correct first, then how fast, and against which floor.

    python -m benchmarks.gpu            # results/gpu.json; needs jax and numpy only
    python -m benchmarks.gpu --small    # a minute on any device, no files

1. Errors of the methods against float64 `lax.scan` on the CPU.
2. The diagonal affine scan against the bandwidth floor: the bytes of reading A and b
   and writing x once, over the bandwidth of a copy measured here. Our prefix scan and
   `jax.lax.associative_scan` both, which decides the default.
3. Every program of the count table (`gpu_cells`): what it launches, the time that the
   model gives, and the time that it takes; the costs of a launch and of a
   synchronisation fitted to these times; cuDNN's LSTM beside them.
4. A default-initialised GRU, D = 8 to 128, T = 1e4 to 1e6, and the trained AR-GRU at
   T = 1e4: the default, its block sizes, quasi-DEER and DEER against `lax.scan` on the
   same device.

At the end it says which defaults the times ask to change. Runs without dynamax.
`--budget SECONDS` stops starting new cells after that time and writes what there is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import gpu_cells, gpu_times, harness, problems
from benchmarks.gpu_program import BYTES_PER_MS
from benchmarks.harness import Row
from benchmarks.speed import case, fused, scan_with
from elk_ssm.kalman.affine import affine_scan
from elk_ssm.linalg.structure import Diagonal

SIZES, LENGTHS = (8, 32, 64, 128), (10_000, 100_000, 1_000_000)
BLOCKS, ARGRU_BLOCKS = (16, 64, 256), (16, 24, 32, 48)
SCAN_ROUNDS_UP_TO = 100_000
DENSE_UP_TO = 32, 10_000
SMALL_CELLS = (
    gpu_cells.by_scan("GRU", 8, 300),
    gpu_cells.ours("GRU", "quasi_deer", 8, 300),
    gpu_cells.as_published("quasi_deer", 8, 300),
)
CHECKED = 2_000


def evaluated(method: Any, weights: Any, start: Any, inputs: Any) -> jax.Array:
    """States of the GRU by one of our methods, its blocks on the accelerator."""
    return elk.evaluate(fused(weights), start, inputs, method=method).states


def newton(block_size: int | None = None) -> Any:
    """The accelerator's default, also where this runs on a CPU."""
    return elk.auto(strategy="newton", block_size=block_size)


def check(sizes: tuple[int, ...], length: int) -> list[Row]:
    """Largest relative errors against float64 `lax.scan`."""
    methods = {
        "auto": newton(),
        "quasi_deer": elk.quasi_deer(),
        "deer": elk.deer(),
        "lax.scan": None,
    }
    rows = []
    for size in sizes:
        arguments = case(size, length)
        exact = _in_float64(arguments)
        for name, method in methods.items():
            if name == "deer" and size > DENSE_UP_TO[0]:
                continue
            run = scan_with(fused, 1) if method is None else partial(evaluated, method)
            found = jax.jit(run)(*arguments)
            error = harness.largest_error(found, exact)
            rows.append({"D": size, "T": length, "candidate": name, "error": error})
    return rows


def _in_float64(arguments: tuple) -> np.ndarray:
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = [jnp.asarray(np.asarray(x), jnp.float64) for x in arguments]
        return np.asarray(jax.jit(scan_with(fused, 1))(*wide))


def measure_gru(
    sizes: tuple[int, ...], lengths: tuple[int, ...], blocks: tuple[int, ...] = BLOCKS
) -> Iterator[Row]:
    """The default and its parts against `lax.scan`; without blocks only the default."""
    for length in lengths:
        for size in sizes:
            arguments = case(size, length)
            chosen: dict[str, Callable] = {"lax.scan": scan_with(fused, 1)}
            chosen["auto"] = partial(evaluated, newton())
            for block in blocks:
                name = f"auto, blocks of {block}"
                chosen[name] = partial(evaluated, newton(block))
            if not blocks:
                yield from _against_scan(chosen, arguments, {"D": size, "T": length})
                continue
            chosen["quasi_deer"] = partial(evaluated, elk.quasi_deer())
            if size <= DENSE_UP_TO[0] and length <= DENSE_UP_TO[1]:
                chosen["deer"] = partial(evaluated, elk.deer())
            yield from _against_scan(chosen, arguments, {"D": size, "T": length})


def measure_argru(length: int, blocks: tuple[int, ...]) -> Iterator[Row]:
    """The trained AR-GRU, on which the published methods were slower than a scan."""
    problem = problems.make("argru_seed0", length=length, seed=0, dtype="float32")

    def by_scan(start: jax.Array, inputs: Any) -> jax.Array:
        def body(x: jax.Array, u: Any) -> tuple[jax.Array, jax.Array]:
            x = problem.f(x, u)
            return x, x

        return jax.lax.scan(body, start, inputs)[1]

    def ours(block: int | None, start: jax.Array, inputs: Any) -> jax.Array:
        method = newton(block)
        return elk.evaluate(problem.f, start, inputs, method=method).states

    chosen: dict[str, Callable] = {"lax.scan": by_scan, "auto": partial(ours, None)}
    chosen |= {f"auto, blocks of {c}": partial(ours, c) for c in blocks}
    arguments = (problem.initial_state, problem.inputs)
    yield from _against_scan(chosen, arguments, {"problem": "AR-GRU", "T": length})


def _against_scan(
    chosen: dict[str, Callable], arguments: tuple, place: Row
) -> Iterator[Row]:
    rounds = 5 if place["T"] <= SCAN_ROUNDS_UP_TO else 1
    candidates = {name: (run, arguments) for name, run in chosen.items()}
    found, results = harness.compare(
        candidates, seconds=1.0, at_least=min(rounds, 3), at_most=rounds
    )
    for row in found:
        row["speed-up"] = found[0]["run_ms"] / row["run_ms"]
        row["error"] = harness.largest_error(
            results[row["candidate"]], results["lax.scan"]
        )
        yield place | row
    print(place, {r["candidate"]: round(r["speed-up"], 2) for r in found}, flush=True)


def measure_affine(sizes: tuple[int, ...], length: int) -> Iterator[Row]:
    """The diagonal affine scan over its bandwidth floor."""
    for size in sizes:
        rng = np.random.default_rng(size)
        shape = (length, size)
        diagonal = jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
        offsets = jnp.asarray(rng.normal(size=shape), jnp.float32)
        candidates = {
            "copy": (lambda a, b: a + 1, (offsets, diagonal)),
            "ours": (_ours, (diagonal, offsets)),
            "lax.associative_scan": (_theirs, (diagonal, offsets)),
        }
        found, _ = harness.compare(candidates, seconds=1.0, at_most=15)
        # A copy reads and writes one array; the scan reads two and writes one.
        floor = 1.5 * found[0]["run_ms"]
        for row in found:
            row |= {"D": size, "T": length, "over the floor": row["run_ms"] / floor}
            row["GB/s of a copy"] = 8e-6 * length * size / found[0]["run_ms"]
            yield row
        print("affine", size, {r["candidate"]: r["run_ms"] for r in found}, flush=True)


def _ours(diagonal: jax.Array, offsets: jax.Array) -> jax.Array:
    return affine_scan(Diagonal(diagonal), offsets, backend="associative")


def _theirs(diagonal: jax.Array, offsets: jax.Array) -> jax.Array:
    def combine(first: tuple, second: tuple) -> tuple:
        return first[0] * second[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(combine, (diagonal, offsets))[1]


def within(budget: float, cells: Iterator[Row]) -> list[Row]:
    """Collect rows until `budget` (a time of `time.monotonic`) has passed."""
    rows = []
    for row in cells:
        rows.append(row)
        if time.monotonic() > budget:
            print("the time is up; what follows is left out", flush=True)
            break
    return rows


def advice(rows: dict[str, list[Row]]) -> list[str]:
    """What the times of blocks and of affine scans say about the defaults."""
    found = []
    for place in {(row["D"], row["T"]) for row in rows["gru"]}:
        here = [row for row in rows["gru"] if (row["D"], row["T"]) == place]
        times = {row["candidate"]: row["run_ms"] for row in here}
        best = min(times, key=lambda name: times[name])
        if "auto" in times and times["auto"] > gpu_times.MARGIN * times[best]:
            ratio = times["auto"] / times[best]
            found.append(
                f"GRU, D = {place[0]}, T = {place[1]:,}: {best} is {ratio:.2g} times "
                "as fast as the default."
            )
    for size in {row["D"] for row in rows["affine"]}:
        here = [row for row in rows["affine"] if row["D"] == size]
        times = {row["candidate"]: row["run_ms"] for row in here}
        ours, theirs = times["ours"], times["lax.associative_scan"]
        if ours > gpu_times.MARGIN * theirs:
            found.append(f"Affine scan, D = {size}: `lax.associative_scan` is faster.")
    return sorted(found)


def report(cells: list[Row], affine: list[Row], others: list[str]) -> Row:
    """Fit the model to the cells; print model against measured, and what to change."""
    if jax.default_backend() == "cpu":
        print("On a CPU: the model is of a GPU, and what is fitted means nothing.")
    copies = [row["GB/s of a copy"] for row in affine] or [1e-6 * BYTES_PER_MS]
    fitted = gpu_times.fit(cells, 1e6 * max(copies))
    print(harness.table(cells, gpu_times.COLUMNS))
    print("fitted:", {name: float(f"{value:.3g}") for name, value in fitted.items()})
    changes = gpu_times.advice(cells, fitted) + others
    print("To change:", *(changes or ["nothing"]), sep="\n  ")
    return fitted | {"to change": changes}


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--small", action="store_true", help="small sizes, no files")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds")
    args = parser.parse_args(arguments)
    end, small = time.monotonic() + args.budget, args.small
    sizes, lengths = ((8,), (300,)) if small else (SIZES, LENGTHS)
    rows: dict[str, Any] = {"check": check(sizes, 300 if small else CHECKED)}
    print(harness.table(rows["check"], ["D", "T", "candidate", "error"]))
    rows["affine"] = within(end, measure_affine(sizes, 1_000 if small else 1_000_000))
    cells = SMALL_CELLS if small else gpu_cells.CELLS
    rows["cells"] = within(end, gpu_times.measure(cells))
    rows["cudnn"] = list(gpu_times.cudnn_lstm(32, 300 if small else gpu_cells.LONG))
    print(*rows["cudnn"], sep="\n")
    several = ((), ()) if small else (ARGRU_BLOCKS, BLOCKS)
    rows["argru"] = within(end, measure_argru(300 if small else 10_000, several[0]))
    rows["gru"] = within(end, measure_gru(sizes, lengths, several[1]))
    rows["fit"] = report(rows["cells"], rows["affine"], advice(rows))
    if not small:
        harness.write("gpu", rows, harness.hardware())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
