"""What a pass over a mesh sends, and what follows for many devices.

python -m benchmarks.sharding           # measure, write results/sharding.json
python -m benchmarks.sharding --small   # two devices, for CI

The number of devices is fixed when JAX starts, so each mesh size is measured by a
process of its own (`--devices P`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import elk_ssm as elk
from benchmarks import harness
from benchmarks.collectives import collectives
from benchmarks.harness import Row

D, LENGTH = 4, 65_536
COUNTS, MANY, STEPS = (2, 4, 8), (8, 64, 1_024), 100_000_000
METHODS = {
    "quasi_deer": elk.quasi_deer(),
    "deer": elk.deer(),
    "elk": elk.elk(1e2),
    "deer, blocks of 64": elk.deer(block_size=64, gate=elk.Gate()),
}
# The assumptions of the arithmetic, named on the page.
BANDWIDTH, LATENCY, MEMORY_BANDWIDTH = 25e9, 10e-6, 2e12
TRIPS = 2


def solve(method: elk.Method, mesh: Mesh | None, W: Any, inputs: Any) -> elk.Solution:
    """Evaluate an Elman network."""

    def f(x: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.tanh(W @ x + u)

    return elk.evaluate(f, jnp.zeros(D), inputs, method=method, mesh=mesh)


def compiled(method: elk.Method, mesh: Mesh, gradient: bool) -> Any:
    """Compile the states, or the gradient of a loss on them, for sharded inputs."""

    def states(W: Any, inputs: Any) -> Any:
        return solve(method, mesh, W, inputs).states

    def loss(W: Any, inputs: Any) -> Any:
        return jnp.sum(states(W, inputs) ** 2)

    sharding = NamedSharding(mesh, P("time"))
    W = jax.ShapeDtypeStruct((D, D), jnp.float32)
    inputs = jax.ShapeDtypeStruct((LENGTH, D), jnp.float32, sharding=sharding)
    program = jax.grad(loss) if gradient else states
    return jax.jit(program).lower(W, inputs).compile()


def measure_mesh(names: list[str]) -> list[Row]:
    """Read the compiled programs on all devices of this process."""
    mesh = Mesh(np.array(jax.devices()), ("time",))
    rows = []
    for name in names:
        for part in ("pass", "backward"):
            program = compiled(METHODS[name], mesh, part == "backward")
            mark = "one_pass" if part == "pass" else "transpose(jvp"
            found = [each for each in collectives(program) if mark in each.place]
            rows.append({"devices": mesh.size, "method": name, "part": part})
            rows[-1] |= summary(found)
            if part == "pass":
                memory = program.memory_analysis()
                held = memory.temp_size_in_bytes + memory.output_size_in_bytes
                held += memory.argument_size_in_bytes
                rows[-1]["bytes held a step"] = held * mesh.size / LENGTH
    return rows


def summary(found: list) -> Row:
    """Counts of collectives, and the bytes that each device receives by them."""
    of = {
        kind: [each for each in found if each.kind == kind]
        for kind in ("all-gather", "all-reduce", "collective-permute")
    }
    assert sum(map(len, of.values())) == len(found)
    return {kind: len(each) for kind, each in of.items()} | {
        f"{kind} bytes": sum(one.bytes for one in each) for kind, each in of.items()
    }


def cost_of_a_step(method: elk.Method, length: int) -> Row:
    """Time a method: nanoseconds for each pass and step that a device holds."""
    rng = np.random.default_rng(0)
    W = jnp.asarray(rng.normal(size=(D, D)) / D**0.5, jnp.float32)
    inputs = jnp.asarray(rng.normal(size=(length, D)), jnp.float32)
    mesh = Mesh(np.array(jax.devices()), ("time",))
    candidates = {
        "ns alone": lambda W, inputs: solve(method, None, W, inputs),
        "ns": lambda W, inputs: solve(method, mesh, W, inputs),
    }
    chosen = {name: (run, (W, inputs)) for name, run in candidates.items()}
    rows, results = harness.compare(chosen, seconds=5.0)
    passes = int(results["ns"].num_iters)
    unit = 1e6 / length / passes
    found = {row["candidate"]: unit * row["run_ms"] for row in rows}
    found["ns"] *= mesh.size
    return {"passes": passes, **found}


def in_processes(option: str, counts: tuple[int, ...], names: list[str]) -> list:
    """Measure each mesh size in a process that has so many devices."""
    found = []
    for count in counts:
        flag = f"--xla_force_host_platform_device_count={count}"
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.sharding", option, *names],
            env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
            cwd=harness.ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(run.stdout.splitlines()[-1]))
        print(f"{option[2:]}: {count} devices done", flush=True)
    return found


# ---------------------------------------------------------------------- arithmetic


def seconds_sent(row: Row, devices: int) -> float:
    """Time of the collectives of one pass on so many devices.

    All-gathers double what they hold log2(P) times; all-reduces are one up and one down
    a tree; a halo is one message. Bytes of a gather grow with P, the others do not.
    """
    if devices == 1:
        return 0.0
    hops = np.log2(devices)
    rounds = hops * row["all-gather"] + 2 * hops * row["all-reduce"]
    gathered = row["all-gather bytes"] / row["devices"] * (devices - 1)
    rest = 2 * row["all-reduce bytes"] + row["collective-permute bytes"]
    messages = rounds + row["collective-permute"]
    return LATENCY * messages + (gathered + rest) / BANDWIDTH


def efficiency(row: Row, per_step: float, devices: int, steps: int) -> float:
    """Local time over local time plus that of the collectives."""
    local = per_step * steps / devices
    return local / (local + seconds_sent(row, devices))


def predictions(rows: list[Row], costs: dict[str, Row]) -> list[Row]:
    """Strong scaling at T = 1e8, and weak scaling at 1e8 / 64 steps a device."""
    found = []
    for row in (r for r in rows if r["part"] == "pass" and r["devices"] == 8):
        name = row["method"]
        memory_bound = TRIPS * row["bytes held a step"] / MEMORY_BANDWIDTH
        kinds = {
            "accelerator, memory-bound": memory_bound,
            "CPU core, as measured": 1e-9 * costs[name]["ns"],
        }
        for kind, per_step in kinds.items():
            found.append({"method": name, "local work": kind})
            found[-1]["ns a step and pass"] = 1e9 * per_step
            for devices in MANY:
                strong = efficiency(row, per_step, devices, STEPS)
                found[-1][f"strong, {devices:,}"] = strong
            weak = efficiency(row, per_step, 1_024, STEPS // 64 * 1_024)
            found[-1]["weak, 1,024"] = weak
            found[-1]["ms sent, 1,024"] = 1e3 * seconds_sent(row, 1_024)
    return found


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/sharding.md` has places for."""
    measured, costs = stored["rows"]["measured"], stored["rows"]["costs"]
    kinds = ["all-gather", "all-reduce", "collective-permute"]
    columns = ["method", "devices", *kinds, *(f"{kind} bytes" for kind in kinds)]
    named = [{"method": name} | cost for name, cost in costs.items()]
    arithmetic = predictions(measured, costs)
    passes = [row for row in measured if row["part"] == "pass"]
    backward = [row for row in measured if row["part"] == "backward"]
    *fewer, most = dict.fromkeys(str(row["devices"]) for row in measured)
    return {
        "D": str(D),
        "T": f"{LENGTH:,}",
        "devices": f"{', '.join(fewer)} and {most}",
        "passes": harness.table(passes, [*columns, "bytes held a step"]),
        "backward": harness.table(backward, columns),
        "costs": harness.table(named, ["method", "passes", "ns alone", "ns"]),
        "bandwidth": f"{BANDWIDTH / 1e9:.0f} GB/s",
        "latency": f"{LATENCY * 1e6:.0f} us",
        "trips": str(TRIPS),
        "memory_bandwidth": f"{MEMORY_BANDWIDTH / 1e12:.0f} TB/s",
        "efficiency": harness.table(arithmetic, list(arithmetic[0])),
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if arguments[:1] == ["--devices"]:
        print(json.dumps(measure_mesh(arguments[1:])))
        return 0
    if arguments[:1] == ["--costs"]:
        costs = {n: cost_of_a_step(METHODS[n], LENGTH) for n in arguments[1:]}
        print(json.dumps(costs))
        return 0
    if "--small" in arguments:
        (rows,) = in_processes("--devices", (2,), ["quasi_deer"])
        cost = {"quasi_deer": cost_of_a_step(METHODS["quasi_deer"], 200)}
        print(harness.table(rows, list(rows[0])))
        rows = [row | {"devices": 8} for row in rows]
        print(harness.table(predictions(rows, cost), ["method", "strong, 64"]))
        return 0
    machine = harness.hardware()
    meshes = in_processes("--devices", COUNTS, list(METHODS))
    measured = [row for rows in meshes for row in rows]
    (costs,) = in_processes("--costs", (2,), list(METHODS))
    harness.write("sharding", {"measured": measured, "costs": costs}, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
