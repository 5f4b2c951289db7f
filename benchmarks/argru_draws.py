"""Passes on the autoregressive GRU, for many weights and draws of its noise.

    python -m benchmarks.argru_draws            # measure, write a file of results
    python -m benchmarks.argru_draws --small    # seconds, no files

The hard case of the suite: trained weights, T = 10,000, from nothing, in float64 to the
default tolerance. Five trained weights times six draws that no choice was made with
(that rollouts help was seen on draws 100 to 102, and 4 chosen on 200 to 205).
`rollouts` are passes of zero order after each gated pass, which are not counted: each
costs a small part of a pass (see `Gate`).
"""

from __future__ import annotations

import sys
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

import elk_ssm as elk
from benchmarks import harness, problems
from benchmarks.harness import Row

LENGTH, DRAWS = 10_000, range(300, 306)
SIZES, ROLLOUTS = (16, 64), (0, 1, 4)


def solver(block_size: int, rollouts: int) -> Any:
    """Compile Newton's method over blocks for any weights and noise."""
    gate = elk.Gate(rollouts=rollouts)
    method = elk.deer(block_size=block_size, gate=gate)

    @jax.jit
    def solve(params: Any, start: jax.Array, noise: jax.Array) -> tuple:
        step = partial(problems.argru_step, params)
        sol = elk.evaluate(step, start, noise, method=method, backend="sequential")
        return sol.num_iters, sol.status

    return solve


def measure(
    length: int = LENGTH,
    draws: range = DRAWS,
    seeds: int = 5,
    sizes: tuple[int, ...] = SIZES,
) -> list[Row]:
    """Count passes for every block size, number of rollouts, weights and draw."""
    rows: list[Row] = []
    for size in sizes:
        for rollouts in ROLLOUTS:
            solve, found = solver(size, rollouts), []
            for seed in range(seeds):
                params = jax.tree.map(jnp.asarray, problems.argru_params(seed))
                for draw in draws:
                    made = {"length": length, "seed": draw, "dtype": "float64"}
                    problem = problems.make(f"argru_seed{seed}", **made)
                    passes, status = solve(
                        params, problem.initial_state, problem.inputs
                    )
                    assert int(status) == elk.Status.converged
                    found.append((seed, int(passes)))
            row: Row = {"C": size, "rollouts": rollouts}
            for seed in range(seeds):
                own = [passes for of, passes in found if of == seed]
                row[f"weights {seed}"] = f"{min(own)} to {max(own)}"
            every = [passes for _, passes in found]
            row |= {"median": median(every), "largest": max(every)}
            rows.append(row)
            print(row, flush=True)
    return rows


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    jax.config.update("jax_enable_x64", True)
    if "--small" in arguments:
        measure(100, range(200, 201), 1, (16,))
        return 0
    harness.write("argru_draws", measure(), harness.hardware("float64"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
