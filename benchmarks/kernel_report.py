"""What the rollout kernel becomes on an H100: launches, bytes, registers and spills.

    python -m benchmarks.kernel_report [PART OF A NAME ...]

Compiled for a GPU that is only described, in the environment that `make gpu-counts`
makes (see `gpu_program`); nothing is timed. XLA writes the PTX of every kernel, and
`ptxas -v` of the CUDA wheel says what registers it takes and what does not fit them.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gpu_program import compile_for_h100, count
from benchmarks.speed import WRITINGS, case
from elk_ssm.kernels import NAME, Walk, roll_out_lanes, why_not
from elk_ssm.kernels.rollout import plan_of

LANES, STEPS, LONG = 1_568, 64, 100_000


class Cell(NamedTuple):
    """A step, its constants, and the shapes of n lanes and C steps of it."""

    step: Callable
    consts: Any
    starts: Any
    entries: Any
    walk: Walk = Walk()


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def gru(size: int, lanes: int, steps: int, writing: str = "fused") -> Cell:
    def step(weights: Any, h: Any, u: Any) -> Any:
        return WRITINGS[writing](weights)(h, u)

    weights = case(size, 1)[0]
    return Cell(step, weights, shape(lanes, size), shape(steps, lanes, size))


def gru_adjoint(size: int, lanes: int, steps: int) -> Cell:
    forward = gru(size, lanes, steps)

    def step(weights: Any, w: Any, entry: Any) -> Any:
        x, u, v = entry
        pull = jax.vjp(lambda x: forward.step(weights, x, u), x)[1]
        return pull(w)[0] + v

    walk = Walk(reverse=True)
    return Cell(step, forward.consts, forward.starts, (forward.entries,) * 3, walk)


def gru_tangent(size: int, lanes: int, steps: int) -> Cell:
    forward = gru(size, lanes, steps)

    def step(weights: Any, d: Any, entry: Any) -> Any:
        x, u = entry
        return jax.jvp(lambda x: forward.step(weights, x, u), (x,), (d,))[1]

    return Cell(step, forward.consts, forward.starts, (forward.entries,) * 2)


def lstm(size: int, lanes: int, steps: int) -> Cell:
    def step(weights: Any, state: Any, u: Any) -> Any:
        recurrent, driven = weights
        c, h = state[:size], state[size:]
        i, f, g, o = jnp.split(h @ recurrent + u @ driven, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jnp.concatenate([c, jax.nn.sigmoid(o) * jnp.tanh(c)])

    weights = (shape(size, 4 * size),) * 2
    return Cell(step, weights, shape(lanes, 2 * size), shape(steps, lanes, size))


def vanilla(size: int, lanes: int, steps: int) -> Cell:
    def step(weights: Any, h: Any, u: Any) -> Any:
        return jnp.tanh(weights @ h + u)

    starts, entries = shape(lanes, size), shape(steps, lanes, size)
    return Cell(step, shape(size, size), starts, entries)


def lorenz(lanes: int, steps: int) -> Cell:
    def step(_: Any, x: Any, entry: Any) -> Any:
        slope = [
            10 * (x[1] - x[0]),
            x[0] * (28 - x[2]) - x[1],
            x[0] * x[1] - 8 / 3 * x[2],
        ]
        return x + 0.01 * jnp.stack(slope)

    return Cell(step, (), shape(lanes, 3), None, Walk(steps=steps))


def lorenz_96(size: int, lanes: int, steps: int) -> Cell:
    def step(_: Any, x: Any, entry: Any) -> Any:
        slope = (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8
        return x + 0.01 * slope

    return Cell(step, (), shape(lanes, size), None, Walk(steps=steps))


def double(cell: Cell) -> Cell:
    """The same cell in float64."""

    def wide(x: Any) -> Any:
        x = x if isinstance(x, jax.ShapeDtypeStruct) else shape(*x.shape, dtype=x.dtype)
        return shape(*x.shape, dtype=jnp.float64)

    return Cell(cell.step, *jax.tree.map(wide, cell[1:4]), cell.walk)


def cells() -> dict[str, Cell]:
    """Every cell of the report by its name."""
    found: dict[str, Cell] = {}
    for size in (4, 8, 32, 64, 128):
        found[f"fused-gru-{size}-lanes"] = gru(size, LANES, STEPS)
        found[f"fused-gru-{size}-scan"] = gru(size, 1, LONG)
    found["split-gru-32-lanes"] = gru(32, LANES, STEPS, "split")
    found["split-gru-33-lanes"] = gru(33, LANES, STEPS, "split")
    found["fused-gru-32-batch"] = gru(32, 100, LONG // 100)
    found["fused-gru-32-float64-lanes"] = double(gru(32, LANES, STEPS))
    for size in (8, 32, 64):
        found[f"adjoint-gru-{size}-lanes"] = gru_adjoint(size, LANES, STEPS)
        found[f"adjoint-gru-{size}-scan"] = gru_adjoint(size, 1, LONG)
    found["split-gru-48-lanes"] = gru(48, LANES, STEPS, "split")
    found["lstm-64-lanes"] = lstm(64, LANES, STEPS)
    found["lstm-64-scan"] = lstm(64, 1, LONG)
    found["lstm-32-lanes"] = lstm(32, LANES, STEPS)
    found["lstm-32-scan"] = lstm(32, 1, LONG)
    found["vanilla-32-scan"] = vanilla(32, 1, LONG)
    found["vanilla-128-scan"] = vanilla(128, 1, LONG)
    found["vanilla-64-lanes"] = vanilla(64, LANES, STEPS)
    found["vanilla-128-lanes"] = vanilla(128, LANES, STEPS)
    found["tangent-gru-32-lanes"] = gru_tangent(32, LANES, STEPS)
    found["adjoint-gru-32-float64-lanes"] = double(gru_adjoint(32, LANES, STEPS))
    found["lorenz-lanes"] = lorenz(LANES, STEPS)
    found["lorenz-scan"] = lorenz(1, LONG)
    found["lorenz-96-40-lanes"] = lorenz_96(40, LANES, STEPS)
    return found


@cache
def dump() -> Path:
    """Where XLA writes what it compiles; asked for before it compiles anything."""
    folder = tempfile.mkdtemp()
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_dump_to={folder}"
    return Path(folder)


def registers() -> str:
    """What `ptxas` says of the kernel compiled last."""
    paths = [p for p in dump().glob("*.ptx") if f".entry {NAME}" in p.read_text()]
    latest = max(paths, key=lambda p: p.stat().st_mtime)
    tool = next(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/ptxas"))
    command = [tool, "-v", "-arch=sm_90a", latest, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert used
    assert spilled
    program = latest.read_text()
    assert "tf32" not in program  # float32 is never rounded to ten bits
    waits = program.count("bar.sync")
    return (
        f"{used[1]:>3} registers, {spilled[1]} + {spilled[2]} bytes spilled, "
        f"{waits} barriers"
    )


def report(name: str, cell: Cell) -> str:
    """Compile one cell; what came of it in a line."""
    step, consts, starts, entries, walk = cell
    why = why_not(step, consts, starts, entries)
    if why is not None:
        return f"{name:28} no kernel: {why}"
    launch = plan_of(step, consts, starts, entries).launch

    def run(consts: Any, starts: Any, entries: Any) -> Any:
        return roll_out_lanes(step, consts, starts, entries, walk)

    counts = count(compile_for_h100(run, consts, starts, entries))
    return (
        f"{name:28} {launch.lanes:>2} lanes {launch.warps:>2} warps, "
        f"{counts.launches:.0f} launches, {counts.bytes_moved / 1e6:.1f} MB, "
        f"{counts.temporary_bytes / 1e6:.0f} MB temporary, {registers()}, "
        f"{counts.seconds:.1f} s"
    )


def main() -> None:
    dump()
    jax.config.update("jax_enable_x64", True)
    for name, cell in cells().items():
        if not sys.argv[1:] or any(word in name for word in sys.argv[1:]):
            print(report(name, cell), flush=True)


if __name__ == "__main__":
    main()
