"""Speed side by side: `lax.scan`, our methods, flax's RNN, the published iteration.

    python -m benchmarks.speed            # measure, write results/speed.json
    python -m benchmarks.speed long       # that part again (see PARTS), others kept
    python -m benchmarks.speed --small    # seconds, no files
    python -m benchmarks.speed --figure   # its picture again, from the stored results

The Kalman smoothers of dynamax and cuthbert are in `benchmarks.kalman`, gradients in
`benchmarks.gradients`, the cost of the default on hard problems in
`benchmarks.convergence`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness, published, speed_page
from benchmarks.gradients import gru
from benchmarks.harness import Row

SIZES, LENGTHS = (4, 8, 16, 32, 64), (10_000, 100_000)
EVEN_SIZES, EVEN_LENGTHS = (4, 8, 16, 32), (1_000, 2_000, 4_000, 8_000, 16_000, 32_000)
ITERATION_SIZES, ITERATION_LENGTH = (4, 8, 32), 10_000
DENSE_UP_TO = 8
BATCHES, BATCH_SIZES, BATCH_LENGTH = (1, 4, 16, 256), (8, 32), 4_000
LONG, LONG_SIZE = 10_000_000, 32
ITERATIONS = 4
NOISE = 1e2

Step = Callable[[jax.Array, jax.Array], jax.Array]


def split(weights: jax.Array) -> Step:
    """A GRU as flax.linen writes it, six products."""
    return lambda h, u: gru(weights, h, u)


def fused(weights: jax.Array) -> Step:
    """The same GRU as flax.nnx and equinox write it: two products, sliced."""
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


WRITINGS = {"split": split, "fused": fused}


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
    """`lax.scan` of one writing of the cell."""

    def run(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> jax.Array:
        step = make(weights)

        def body(h: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = step(h, u)
            return h, h

        return jax.lax.scan(body, start, inputs, unroll=unroll)[1]

    return run


def evaluated_by(method: Any, make: Callable = split, **options: Any) -> Callable:
    """Our evaluation of one writing of the cell."""

    def run(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> jax.Array:
        return elk.evaluate(
            make(weights), start, inputs, method=method, **options
        ).states

    return run


def linen_rnn(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> jax.Array:
    """flax.linen.RNN over its GRUCell, with weights of its own."""
    from flax import linen

    module = linen.RNN(linen.GRUCell(features=start.shape[0]))
    parameters = module.init(jax.random.key(0), inputs[:1])
    return module.apply(parameters, inputs)


SCANS = {
    f"scan, {name} gates{', unroll 4' if unroll > 1 else ''}": scan_with(make, unroll)
    for name, make in WRITINGS.items()
    for unroll in (1, 4)
}
OURS = {
    "quasi_deer": elk.quasi_deer,
    "deer": elk.deer,
    "quasi_elk": lambda: elk.quasi_elk(NOISE),
    "elk": lambda: elk.elk(NOISE),
}


def measure_default(sizes: tuple[int, ...], lengths: tuple[int, ...]) -> list[Row]:
    """The default on both writings of a GRU against every `lax.scan` of them."""
    rows = []
    for size in sizes:
        for length in lengths:
            arguments = case(size, length)
            chosen = {name: (run, arguments) for name, run in SCANS.items()}
            for name, make in WRITINGS.items():
                chosen[f"auto, {name} gates"] = (evaluated_by(None, make), arguments)
            chosen["flax.linen.RNN"] = (linen_rnn, arguments)
            found, results = harness.compare(chosen, seconds=3.0)
            rows += [{"D": size, "T": length} | row for row in _rated(found, results)]
            print(f"default: D = {size}, T = {length} done", flush=True)
    return rows


def _rated(found: list[Row], results: dict[str, Any]) -> list[Row]:
    """Add speed-ups over the best scan of the same writing and of any, and errors."""
    times = {row["candidate"]: row["run_ms"] for row in found}
    best = min(times[name] for name in SCANS)
    for row in found:
        name = row["candidate"]
        row["over any scan"] = best / row["run_ms"]
        writing = "fused" if "fused" in name else "split"
        same = min(times[scan] for scan in SCANS if writing in scan)
        row["over its scan"] = same / row["run_ms"]
        if name != "flax.linen.RNN":
            reference = results["scan, split gates"]
            row["error"] = harness.largest_error(results[name], reference)
    return found


def measure_break_even(sizes: tuple[int, ...], lengths: tuple[int, ...]) -> list[Row]:
    """Blocks against the best scan of the same writing, also where `auto` declines."""
    rows = []
    for size in sizes:
        for length in lengths:
            arguments = case(size, length)
            block = elk.auto().forgetful_block_size(length, size)
            method = elk.auto(block_size=block)
            chosen = {name: (run, arguments) for name, run in SCANS.items()}
            for name, make in WRITINGS.items():
                run = evaluated_by(method, make)
                chosen[f"auto, {name} gates"] = (run, arguments)
            found, results = harness.compare(chosen, seconds=0.5)
            times = {r["candidate"]: r["over its scan"] for r in _rated(found, results)}
            ours = {f"{name} gates": times[f"auto, {name} gates"] for name in WRITINGS}
            rows.append({"D": size, "T": length, "C": block} | ours)
        print(f"break-even: D = {size} done", flush=True)
    return rows


def measure_methods(size: int, length: int) -> list[Row]:
    """Every method to convergence, on the easy problem on which all converge."""
    arguments = case(size, length)
    methods = {"auto": elk.auto, "jacobi, C = 64": partial(elk.jacobi, block_size=64)}
    methods |= OURS
    chosen = {"scan, split gates": (SCANS["scan, split gates"], arguments)}
    for name, build in methods.items():
        chosen[name] = (evaluated_by(build()), arguments)
    found, results = harness.compare(chosen, seconds=3.0, at_most=9)
    for row in found:
        row |= {"D": size, "T": length, "over the scan": _over(row, found[0])}
        reference = results["scan, split gates"]
        row["error"] = harness.largest_error(results[row["candidate"]], reference)
    return found


def _over(row: Row, scan: Row) -> float:
    return row["run_ms"] / scan["run_ms"]


def published_iterations(name: str) -> Callable:
    """A few iterations of the restated published code, its associative scans."""

    def run(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> jax.Array:
        options = published.Options(method=name, backend="associative")
        step = published.make_step(options, split(weights), start, inputs)
        states = jnp.zeros((inputs.shape[0], start.shape[0]), start.dtype)
        return jax.lax.fori_loop(0, ITERATIONS, lambda _, x: step(x, NOISE), states)

    return run


def measure_iterations(sizes: tuple[int, ...], length: int) -> list[Row]:
    """One iteration at C = 1, ours over the published one."""
    rows = []
    for size in sizes:
        for name in OURS:
            if name in ("deer", "elk") and size > DENSE_UP_TO:
                continue
            rows.append(_one_iteration(name, size, length))
            print(f"iteration: {name}, D = {size} done", flush=True)
    return rows


def _one_iteration(name: str, size: int, length: int) -> Row:
    arguments = case(size, length)
    # Exactly ITERATIONS passes: no tolerance is ever met.
    ours = evaluated_by(OURS[name](), max_iters=ITERATIONS, tol=1e-30)
    pair = {
        "ours": (ours, arguments),
        "published": (published_iterations(name), arguments),
    }
    (mine, theirs), _ = harness.compare(pair, seconds=2.0, at_most=9)
    return {
        "method": name,
        "D": size,
        "T": length,
        "ours, ms": mine["run_ms"] / ITERATIONS,
        "published, ms": theirs["run_ms"] / ITERATIONS,
        "ratio": mine["run_ms"] / theirs["run_ms"],
        "ours, compile s": mine["compile_s"],
        "published, compile s": theirs["compile_s"],
    }


def measure_batches(
    batches: tuple[int, ...], sizes: tuple[int, ...], length: int
) -> list[Row]:
    """`vmap` over a batch of input sequences."""
    rows = []
    for size in sizes:
        for batch in batches:
            rows += _one_batch(batch, size, length)
            print(f"batch: D = {size}, B = {batch} done", flush=True)
    return rows


def _one_batch(batch: int, size: int, length: int) -> list[Row]:
    weights, start, inputs = case(size, length)
    many = jnp.stack([jnp.roll(inputs, i, axis=0) for i in range(batch)])
    runs = {
        "scan, fused gates": SCANS["scan, fused gates"],
        "auto, fused gates": evaluated_by(None, fused),
        "blocks, fused gates": evaluated_by(elk.jacobi(block_size=80), fused),
    }
    chosen = {
        name: (jax.vmap(run, (None, None, 0)), (weights, start, many))
        for name, run in runs.items()
    }
    found, _ = harness.compare(chosen, seconds=2.0)
    best = found[0]["run_ms"]
    place = {"B": batch, "D": size, "T": length}
    return [place | row | {"speed-up": best / row["run_ms"]} for row in found]


def measure_compile(length: int) -> list[Row]:
    """Seconds to trace and compile, nothing run."""
    arguments = case(8, length)
    candidates = {
        "evaluate, defaults, D = 8": (evaluated_by(None), arguments),
        "its gradient": (_gradient, arguments),
        "elk(1e2), sequential, D = 8": (evaluated_by(elk.elk(NOISE)), arguments),
        "elk(1e2), associative, D = 4": (
            evaluated_by(elk.elk(NOISE), backend="associative"),
            case(4, length),
        ),
        "the same, the smoother": (
            evaluated_by(elk.elk(NOISE, estimate="smoother"), backend="associative"),
            case(4, length),
        ),
    }
    rows = []
    for name, (run, args) in candidates.items():
        seconds = float(np.median([_seconds_to_compile(run, args) for _ in range(3)]))
        rows.append({"program": name, "T": length, "seconds": seconds})
        print(f"compile: {name} {seconds:.2f} s", flush=True)
    return rows


def _seconds_to_compile(run: Callable, arguments: tuple) -> float:
    jax.clear_caches()
    # A new function each time: jit recognises the old one, cleared or not.
    return harness.compiled(lambda *args: run(*args), arguments)[1]["compile_s"]


def _gradient(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> jax.Array:
    run = evaluated_by(None)
    return jax.grad(lambda w: jnp.sum(run(w, start, inputs) ** 2))(weights)


def measure_long(length: int, size: int) -> list[Row]:
    """The last state of a very long recurrence, each way in a process of its own."""
    rows = []
    for keep in ("last", "all"):
        command = [sys.executable, "-m", "benchmarks.speed", "--long", keep]
        command += [str(length), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        gigabytes, seconds = map(float, done.stdout.split()[-2:])
        rows.append(
            {
                "keep": keep,
                "T": length,
                "D": size,
                "inputs, GB": 4e-9 * length * size,
                "largest memory of the process, GB": gigabytes,
                "seconds with compilation": seconds,
            }
        )
        print(f"long: {rows[-1]}", flush=True)
    return rows


def run_long(keep: str, length: int, size: int) -> None:
    """Print the largest resident memory in GB and the seconds it took."""
    weights, start, _ = case(size, 1)
    # Drawn in pieces, so that the drawing is not what takes the memory.
    pieces, keys = 100, jax.random.split(jax.random.key(0), 100)
    draw = jax.jit(
        partial(
            jax.lax.map, lambda key: jax.random.normal(key, (length // pieces, size))
        )
    )
    inputs = jax.block_until_ready(draw(keys).reshape(-1, size))
    begun = time.perf_counter()
    run = jax.jit(
        lambda w, x, u: elk.evaluate(fused(w), x, u, keep=keep).states  # type: ignore
    )
    found = jax.block_until_ready(run(weights, start, inputs))
    assert bool(jnp.all(jnp.isfinite(found.reshape(-1, size)[-1])))
    seconds = time.perf_counter() - begun
    # Of this program alone; `getrusage` also counts the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    print(1024e-9 * peak, seconds)


PARTS: dict[str, Callable[[], list[Row]]] = {
    "default": lambda: measure_default(SIZES, LENGTHS),
    "break_even": lambda: measure_break_even(EVEN_SIZES, EVEN_LENGTHS),
    "methods": lambda: measure_methods(8, 10_000),
    "iterations": lambda: measure_iterations(ITERATION_SIZES, ITERATION_LENGTH),
    "batches": lambda: measure_batches(BATCHES, BATCH_SIZES, BATCH_LENGTH),
    "compile": lambda: measure_compile(10_000),
    "long": lambda: measure_long(LONG, LONG_SIZE),
}


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if "--long" in arguments:
        keep, length, size = arguments[-3:]
        run_long(keep, int(length), int(size))
        return 0
    if "--small" in arguments:
        rows = measure_default((4,), (2_000,))
        columns = ["candidate", "run_ms", "over any scan", "error"]
        print(harness.table(rows, columns))
        return 0
    if "--figure" not in arguments:
        chosen = [name for name in PARTS if name in arguments]
        stored = harness.read("speed")["rows"] if chosen else {}
        machine = harness.hardware()
        rows = {name: PARTS[name]() for name in chosen or PARTS}
        harness.write("speed", stored | rows, machine)
    speed_page.draw(harness.read("speed")["rows"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
