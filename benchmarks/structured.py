"""Iterations with the diagonal, the blocks and the whole of the Jacobian.

    python -m benchmarks.structured            # measure, write results/structured.json
    python -m benchmarks.structured --small    # seconds, no files

In float64 and to its default tolerance, on recurrences whose units are pairs. No time
is measured: what differs is the number of iterations and the memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness
from benchmarks.harness import Row
from elk_ssm.interop import cells

BLOCKS = elk.BlockDiagonalJacobian()
METHODS = {
    "diagonal": elk.quasi_deer(),
    "blocks": elk.quasi_deer(linearization=BLOCKS),
    "dense": elk.deer(),
}
Problem = tuple[Callable, Any, Any]


def flax_lstm(size: int, length: int, seed: int) -> Problem:
    """An untrained LSTM of flax on standard normal inputs."""
    import flax.linen as nn

    cell, key = nn.OptimizedLSTMCell(size), jax.random.key(seed)
    inputs = jnp.asarray(np.random.default_rng(seed).normal(size=(length, 4)))
    carry = cell.initialize_carry(key, (4,))
    variables = cell.init(key, carry, inputs[0])
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (variables, carry))
    return *cells.from_linen(cell, *wide), inputs


def paired_lstm(size: int, length: int, seed: int) -> Problem:
    """An LSTM with diagonal weights on c and h, as drawn."""
    key = jax.random.key(seed)
    params = cells.init_paired_lstm(key, 4, size, forget_length=30.0)
    inputs = jnp.asarray(np.random.default_rng(seed).normal(size=(length, 4)))
    return *cells.paired_lstm(params), inputs


def leapfrog(size: int, length: int, correlation: float, steps: int = 10) -> Problem:
    """Leapfrog steps of Hamiltonian Monte Carlo, momenta drawn anew every ten.

    The target is a Gaussian with that correlation between all dimensions, and a light
    quartic tail.
    """
    covariance = (1 - correlation) * np.eye(size) + correlation
    precision, step = jnp.asarray(np.linalg.inv(covariance)), 0.1

    def slope(q: jax.Array) -> jax.Array:
        return -precision @ q - 0.4 * q**3

    def f(state: tuple, entry: tuple) -> tuple:
        (q, p), (anew, key) = state, entry
        p = jnp.where(anew, jax.random.normal(key, (size,)), p)
        p = p + step / 2 * slope(q)
        q = q + step * p
        return q, p + step / 2 * slope(q)

    keys = jax.random.split(jax.random.key(0), length)
    return f, (jnp.ones(size), jnp.zeros(size)), (jnp.arange(length) % steps == 0, keys)


def transitions(size: int, length: int, correlation: float) -> Problem:
    """The same with ten leapfrog steps as one step of the recurrence."""
    f, start, (anew, keys) = leapfrog(size, 10 * length, correlation)

    def whole(state: tuple, entries: Any) -> tuple:
        return jax.lax.scan(lambda x, u: (f(x, u), None), state, entries)[0]

    inputs = jax.tree.map(lambda x: x.reshape(length, 10, *x.shape[1:]), (anew, keys))
    return whole, start, inputs


def problems(small: bool) -> Iterator[tuple[str, Problem]]:
    """Name and recurrence of every row."""
    size, length = (4, 50) if small else (32, 10_000)
    for seed in range(1 if small else 3):
        yield f"LSTM of flax, D = {size}, seed {seed}", flax_lstm(size, length, seed)
    if small:
        return
    yield f"LSTM of pairs, D = {size}", paired_lstm(size, length, 0)
    size, length = 10, 300
    for correlation in (0.0, 0.1, 0.3):
        name = f"leapfrog steps, correlation {correlation}"
        yield name, leapfrog(size, length, correlation)
    yield "HMC transitions of 10 steps, correlation 0.1", transitions(size, length, 0.1)


def measure(small: bool = False) -> list[Row]:
    """Solve every problem with every linearisation."""
    rows: list[Row] = []
    with jax.enable_x64(True):
        for name, (f, start, inputs) in problems(small):
            row: Row = {"problem": name, "T": len(jax.tree.leaves(inputs)[0])}
            memory: Row = {}
            for kind, method in METHODS.items():
                solve = jax.jit(
                    lambda u, f=f, x=start, m=method: elk.evaluate(f, x, u, method=m)
                )
                program = solve.lower(inputs).compile()
                sol = elk.raise_if_failed(program(inputs))
                row[kind] = int(sol.num_iters)
                found: Any = program.memory_analysis()
                memory[f"{kind}, MB"] = found.temp_size_in_bytes / 1e6
            row["blocks over diagonal"] = row["blocks"] / row["diagonal"]
            rows.append(row | memory)
            print(rows[-1], flush=True)
    return rows


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/structured.md` has places for."""
    rows = stored["rows"]
    columns = ["problem", "T", *METHODS, "blocks over diagonal"]
    memory = ["problem", *(f"{kind}, MB" for kind in METHODS)]
    return {
        "iterations": harness.table(rows, columns),
        "memory": harness.table(rows, memory),
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if "--small" in arguments:
        measure(small=True)
        return 0
    harness.write("structured", measure(), harness.hardware("float64"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
