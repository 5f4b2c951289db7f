"""Time to the first result: one call in a process of its own, nothing compiled before.

    python -m benchmarks.first_result           # measure, write the results
    python -m benchmarks.first_result --small   # one candidate, for CI

Importing and making the inputs come before the clock starts. Seconds of wall time, and
of all cores together: what a loaded machine changes least. Every candidate is measured
`REPEATS` times in turn with the others, and the median is kept.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import harness
from benchmarks.harness import Row

SIZE, LENGTHS, REPEATS = 16, (1_000, 10_000), 5
CANDIDATES = ("scan", "evaluate", "gradient of scan", "gradient of evaluate")


def once(candidate: str, length: int) -> dict[str, float]:
    """Seconds of the first call in this process."""
    import jax
    import jax.numpy as jnp

    import elk_ssm as elk

    keys = jax.random.split(jax.random.key(0), 7)
    first = [jax.random.normal(k, (SIZE, SIZE)) / SIZE**0.5 for k in keys[:6]]
    inputs = jax.random.normal(keys[6], (length, SIZE))
    start = jax.block_until_ready(jnp.zeros(SIZE))
    jax.block_until_ready((first, inputs))

    def f(x: jax.Array, u: jax.Array) -> jax.Array:
        reset = jax.nn.sigmoid(first[0] @ x + first[1] @ u)
        update = jax.nn.sigmoid(first[2] @ x + first[3] @ u)
        return (1 - update) * x + update * jnp.tanh(first[4] @ (reset * x) + u)

    def scan(u: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, u: (f(x, u),) * 2, start, u)[1]

    def evaluate(u: jax.Array) -> jax.Array:
        return elk.evaluate(f, start, u).states

    run: Any = scan if candidate.endswith("scan") else evaluate
    if candidate.startswith("gradient"):
        states = run
        run = jax.grad(lambda u: states(u).sum())
    wall, cores = time.perf_counter(), time.process_time()
    jax.block_until_ready(run(inputs))
    return {
        "seconds": time.perf_counter() - wall,
        "core seconds": time.process_time() - cores,
    }


def apart(candidate: str, length: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.first_result", candidate, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(length: int, repeats: int = REPEATS) -> list[Row]:
    """Medians of all candidates, which take turns."""
    found: dict[str, list[dict[str, float]]] = {c: [] for c in CANDIDATES}
    for _ in range(repeats):
        for candidate in CANDIDATES:
            found[candidate].append(apart(candidate, length))
    rows = []
    for candidate, runs in found.items():
        row: Row = {"candidate": candidate, "T": length, "D": SIZE}
        for name in ("seconds", "core seconds"):
            row[name] = statistics.median(run[name] for run in runs)
        reference = "gradient of scan" if "gradient" in candidate else "scan"
        row["over the scan"] = row["core seconds"] / statistics.median(
            run["core seconds"] for run in found[reference]
        )
        print(row, flush=True)
        rows.append(row)
    return rows


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if "--small" in arguments:
        print(apart("evaluate", 100))
        return 0
    if len(arguments) == 2:
        print(json.dumps(once(arguments[0], int(arguments[1]))))
        return 0
    machine = harness.hardware("float32")
    rows = [row for length in LENGTHS for row in measure(length)]
    harness.write("first_result", rows, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
