"""The programs of the count table timed on the device at hand, and the model fitted.

    time = launches * a + syncs * b + bytes / copy

The counts are of the program that runs, compiled for this device, at the passes that it
takes here. `a` and `b` are fitted to the measured times by least squares of relative
errors, beside the bandwidth of a copy measured here; a cell whose time is far from the
fit is not made of launches and bytes. `advice` says what the times ask to change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_cells import METHODS, Cell, Passes
from benchmarks.gpu_program import (
    BYTES_PER_MS,
    LAUNCH_US,
    SYNC_US,
    Compiled,
    count,
)
from benchmarks.harness import Row

COLUMNS = (
    *("problem", "program", "D", "T", "passes", "launches", "syncs", "GB moved"),
    *("model ms", "fitted ms", "run ms", "over the model"),
)
SECONDS, AT_LEAST, AT_MOST = 1.0, 3, 15
# A default that loses by less is kept: the next machine decides otherwise.
MARGIN = 1.2


def measure(cells: Iterable[Cell]) -> Iterator[Row]:
    """Time each cell that can be run here, and count what ran."""
    for cell in cells:
        if not cell.is_here:
            print(f"{cell.key}: skipped, {cell.needs} is not installed", flush=True)
            continue
        row = timed(cell)
        print({name: row[name] for name in COLUMNS if name in row}, flush=True)
        yield row


def timed(cell: Cell) -> Row:
    """Median time of a cell beside its counts."""
    function, arguments = cell.build()
    begun = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    row: Row = dict(zip(("problem", "program", "D", "T"), cell.key))
    row["compile s"] = time.perf_counter() - begun
    passes = cell.passes_here()
    if passes is not None:
        row["passes"] = passes.total
    here = passes or Passes(iterated=1)
    how: Any = {"rounds": cell.rounds(here), "branches": cell.branches}
    text = Compiled(program.as_text() or "")
    found = count(text, passes=max(here.iterated, 1), **how)
    row |= {"launches": round(found.launches), "syncs": round(found.syncs)}
    row |= {"GB moved": found.bytes_moved / 1e9, "model ms": found.modelled_ms}
    row["run ms"] = median_ms(lambda: program(*arguments))
    return row | {"over the model": row["run ms"] / row["model ms"]}


def median_ms(run: Callable[[], Any]) -> float:
    """Median of some runs after a first one."""
    jax.block_until_ready(run())
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < AT_LEAST or (
        len(times) < AT_MOST and time.perf_counter() - begun < SECONDS
    ):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def fit(rows: Sequence[Row], bytes_per_ms: float) -> Row:
    """Costs of a launch and of a sync, in us; adds fitted times to `rows`."""
    counts = np.array([[row["launches"], row["syncs"]] for row in rows], float) / 1e3
    moving = np.array([1e9 * row["GB moved"] for row in rows]) / bytes_per_ms
    times = np.array([row["run ms"] for row in rows])
    relative = counts / times[:, None], (times - moving) / times
    launch, sync = _not_negative(*relative)
    fitted = counts @ [launch, sync] + moving
    for row, value in zip(rows, fitted):
        row["fitted ms"] = float(value)
    error = float(np.sqrt(np.mean((fitted / times - 1) ** 2)))
    return {
        "launch us": float(launch),
        "sync us": float(sync),
        "TB/s": bytes_per_ms / 1e9,
        "relative error": error,
    }


def _not_negative(columns: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares in two unknowns that are no less than zero."""
    both = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    if np.all(both >= 0):
        return both
    alone = np.maximum(columns.T @ wanted, 0) / np.maximum((columns**2).sum(0), 1e-30)
    left = [float(np.sum((columns[:, i] * alone[i] - wanted) ** 2)) for i in (0, 1)]
    best = int(np.argmin(left))
    return np.where(np.arange(2) == best, alone, 0.0)


def cudnn_lstm(size: int, length: int) -> Iterator[Row]:
    """The LSTM of cuDNN: not the same cell, but the kernel that others would call."""
    if jax.default_backend() != "gpu":
        print("cuDNN: skipped, it needs a GPU", flush=True)
        return
    from jax.experimental import rnn

    weights = rnn.init_lstm_weight(jax.random.key(0), size, size, 1, False)
    inputs, start = jnp.ones((1, length, size)), jnp.zeros((1, 1, size))
    lengths = jnp.full(1, length, jnp.int32)

    @jax.jit
    def run(weights: jax.Array, inputs: jax.Array) -> jax.Array:
        sizes = size, size, 1, 0.0, False
        return rnn.lstm(inputs, start, start, weights, lengths, *sizes)[0]

    row: Row = {"problem": "LSTM", "program": "cuDNN", "D": size, "T": length}
    yield row | {"run ms": median_ms(lambda: run(weights, inputs))}


def advice(rows: Sequence[Row], fitted: Row) -> list[str]:
    """What the times say about the defaults and about the model."""
    found = []
    places = dict.fromkeys((row["problem"], row["D"], row["T"]) for row in rows)
    for problem, size, length in places:
        here = [
            row
            for row in rows
            if (row["problem"], row["D"], row["T"]) == (problem, size, length)
        ]
        found += _of_one_place(f"{problem}, D = {size}, T = {length:,}", here)
    of_model = {"launch us": LAUNCH_US, "sync us": SYNC_US, "TB/s": BYTES_PER_MS / 1e9}
    for name, assumed in of_model.items():
        if fitted[name] and not 1 / MARGIN < fitted[name] / assumed < MARGIN:
            found.append(
                f"The model in benchmarks/gpu_program.py has {assumed:g} {name}; here "
                f"it is {fitted[name]:.3g}."
            )
    return found


def _of_one_place(where: str, rows: Sequence[Row]) -> list[str]:
    times = {row["program"]: row["run ms"] for row in rows}
    if "default" not in times:
        return []
    best = min(times, key=lambda name: times[name])
    ratio = times["default"] / times[best]
    if ratio < MARGIN:
        return []
    what = "change the default to it" if best in METHODS else "the default should win"
    return [f"{where}: the default takes {ratio:.2g} times what {best} takes; {what}."]
