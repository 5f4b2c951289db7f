"""Figures 2, 5 and 6 of arXiv 2407.19115: time, memory and agreement on GRUs.

Called by `benchmarks.paper`. The cell is flax's GRU at its default initialisation with
standard normal inputs, as published; a batch is `jax.vmap` over input sequences. The
published iteration is that of `benchmarks.published` with its associative scans and its
stopping rule (largest step below 1e-4), ours stop by their own.

Time is measured where a few CPU cores can; which cells those are is decided by sizes
alone (`affordable`). Memory is what XLA's memory analysis says of the compiled program:
bytes of temporaries beside arguments and results. Nothing of it is run, so that it is
known, exactly, for sizes that no CPU would time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness, published, speed
from benchmarks.harness import Row

SCAN = "sequential (lax.scan)"


class Cell(NamedTuple):
    """Batch B, size D and length T of one measurement."""

    batch: int
    size: int
    length: int


# The grids of the authors' `fig2_time.yaml` and `fig6_time.yaml`.
FIGURE_2 = [
    Cell(16, size, length)
    for size in (8, 16, 32, 64)
    for length in (30_000, 100_000, 300_000, 1_000_000)
]
FIGURE_6 = [
    Cell(1, size, length)
    for size in (1, 2, 4, 8, 16, 32, 64)
    for length in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
]
# What is timed here of the grid of figure 6, and compiled of that of figure 2.
TIMED = [
    Cell(1, size, length)
    for size in (4, 32)
    for length in (1_000, 10_000, 100_000, 1_000_000)
]
COMPILED = [Cell(16, size, 30_000) for size in (8, 16, 32, 64)]
COMPILED += [Cell(16, 32, length) for length in (100_000, 300_000, 1_000_000)]
# The one whose memory the published code was measured for on a CPU.
COMPILED += [Cell(1, 32, 100_000)]


def by_published(name: str) -> Callable:
    """The published loop, until its steps are small."""

    def run(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> tuple:
        options = published.Options(name, "associative", "clip")
        step = published.make_step(options, speed.split(weights), start, inputs)
        guess = jnp.zeros((inputs.shape[0], start.shape[0]), start.dtype)
        return published.evaluate_until(step, guess)

    return run


def by_us(method: Any) -> Callable:
    """Our evaluation, to its default tolerance."""

    def run(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> tuple:
        sol = elk.evaluate(speed.split(weights), start, inputs, method=method)
        return sol.states, sol.num_iters

    return run


def one_by_one(weights: jax.Array, start: jax.Array, inputs: jax.Array) -> tuple:
    """`lax.scan`."""
    return speed.SCANS["scan, split gates"](weights, start, inputs), 1


class Candidate(NamedTuple):
    """How one is run, and how its work and memory grow: D to which power."""

    run: Callable
    power: int


CANDIDATES = {
    SCAN: Candidate(one_by_one, 0),
    "DEER, published": Candidate(by_published("deer"), 3),
    "quasi-DEER, published": Candidate(by_published("quasi_deer"), 2),
    "ours: deer": Candidate(by_us(elk.deer()), 3),
    "ours: quasi_deer": Candidate(by_us(elk.quasi_deer()), 2),
    "ours: default": Candidate(by_us(None), 0),
}
LARGEST_WORK = {0: 4e7, 2: 1.1e8, 3: 4e8}


def affordable(cell: Cell, power: int) -> bool:
    """Whether some CPU cores do it in seconds: B T D for scans, B T D^p for others."""
    work = cell.batch * cell.length * cell.size ** max(power, 1)
    return work <= LARGEST_WORK[power]


def arguments(cell: Cell) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights, x_0 and inputs, these with an axis of the batch in front if B > 1."""
    weights, start, inputs = speed.case(cell.size, cell.length)
    if cell.batch > 1:
        inputs = jnp.stack([jnp.roll(inputs, i, axis=0) for i in range(cell.batch)])
    return weights, start, inputs


def shapes(cell: Cell) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The same without their numbers."""
    batch = (cell.batch,) if cell.batch > 1 else ()
    all_of_them = (
        (6, cell.size, cell.size),
        (cell.size,),
        (*batch, cell.length, cell.size),
    )
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in all_of_them)


def batched(run: Callable, cell: Cell) -> Callable:
    """Over a batch of inputs, if there is one."""
    return jax.vmap(run, (None, None, 0)) if cell.batch > 1 else run


def measure_time(cells: Iterable[Cell], seconds: float = 1.5) -> list[Row]:
    """Candidates in turns on each cell; what is too large here is said to be."""
    rows = []
    for cell in cells:
        found, results = _measured(cell, seconds)
        for name in CANDIDATES:
            row = {"B": cell.batch, "D": cell.size, "T": cell.length}
            row["candidate"] = name
            if name in found:
                row |= _timed(found[name], found, results[name], results[SCAN])
            else:
                row["run_ms"] = "needs an accelerator"
            rows.append(row)
        print(f"time: D = {cell.size}, T = {cell.length:,} done", flush=True)
    return rows


def _measured(cell: Cell, seconds: float) -> tuple[dict[str, Row], dict[str, Any]]:
    """Rows and results of the candidates that are affordable on a cell."""
    runs = {
        name: batched(run, cell)
        for name, (run, power) in CANDIDATES.items()
        if affordable(cell, power)
    }
    if not runs:  # its inputs alone may be gigabytes
        return {}, {}
    given = arguments(cell)
    chosen = {name: (run, given) for name, run in runs.items()}
    measured, results = harness.compare(chosen, seconds=seconds, at_most=9)
    return {row["candidate"]: row for row in measured}, results


def _timed(row: Row, found: dict[str, Row], result: tuple, scan: tuple) -> Row:
    return {
        "run_ms": row["run_ms"],
        "over the scan": row["run_ms"] / found[SCAN]["run_ms"],
        "iterations": int(np.max(result[1])),
        "compile_s": row["compile_s"],
        "error": harness.largest_error(result[0], scan[0]),
    }


# Code that is not run need not be fast: the same buffers in a third of the time.
QUICK = {"xla_backend_optimization_level": 0}


def measure_memory(cells: Iterable[Cell]) -> list[Row]:
    """Temporary bytes of each program, compiled for shapes alone."""
    rows = []
    for cell in cells:
        given = shapes(cell)
        for name, (run, _) in CANDIDATES.items():
            program = jax.jit(batched(run, cell)).lower(*given).compile(QUICK)
            bytes_used = program.memory_analysis().temp_size_in_bytes
            kept = {"B": cell.batch, "D": cell.size, "T": cell.length}
            rows.append(kept | {"candidate": name, "temp_mb": bytes_used / 1e6})
        print(f"memory: D = {cell.size}, T = {cell.length:,} done", flush=True)
    return rows


def measure_agreement(cell: Cell, last: int = 200) -> list[Row]:
    """Figure 5: outputs against those of `lax.scan`, and the last of the first unit."""
    given, rows = arguments(cell), []
    reference = np.asarray(jax.jit(one_by_one)(*given)[0])
    for name, (run, _) in CANDIDATES.items():
        states, iterations = jax.jit(run)(*given)
        states = np.asarray(states)
        difference = np.abs(states - reference).max(axis=1)
        rows.append(
            {
                "D": cell.size,
                "T": cell.length,
                "candidate": name,
                "iterations": int(iterations),
                "largest difference": float(difference.max()),
                "mean difference": float(difference.mean()),
                "last": [round(float(x), 5) for x in states[-last:, 0]],
            }
        )
    return rows


def vanilla(weights: tuple, start: jax.Array, inputs: jax.Array, how: Any) -> tuple:
    """The authors' example: s_t = tanh(W s_{t-1} + B u_t), normal weights."""
    recurrent, driven = weights

    def step(state: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.tanh(recurrent @ state + driven @ u)

    if how == "scan":
        sol = elk.sequential(step, start, inputs)
    else:
        sol = elk.evaluate(step, start, inputs, method=how)
    return sol.states, sol.num_iters


def measure_vanilla(
    size: int = 32, length: int = 2**16, largest_power: int = 3
) -> list[Row]:
    """The one example whose published times are text: `blog.ipynb`, on a T4."""
    rng = np.random.default_rng(0)
    scaled = rng.normal(size=(size, size)) / np.sqrt(size)
    drawn = (scaled, rng.normal(size=(size, 4)) / np.sqrt(4))
    weights = tuple(jnp.asarray(x, jnp.float32) for x in drawn)
    start = jnp.asarray(rng.normal(size=size), jnp.float32)
    inputs = jnp.asarray(rng.normal(size=(length, 4)), jnp.float32)
    methods = {SCAN: "scan", "ours: deer": elk.deer()}
    methods |= {"ours: quasi_deer": elk.quasi_deer(), "ours: default": None}
    methods = {
        name: how
        for name, how in methods.items()
        if CANDIDATES[name].power <= largest_power
    }
    chosen = {
        name: (partial(vanilla, how=how), (weights, start, inputs))
        for name, how in methods.items()
    }
    measured, results = harness.compare(chosen, seconds=4.0, at_most=9)
    found = {row["candidate"]: row for row in measured}
    return [
        {"D": size, "T": length, "candidate": name}
        | _timed(found[name], found, results[name], results[SCAN])
        for name in found
    ]
