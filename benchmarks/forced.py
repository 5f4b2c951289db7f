"""Passes of a free run and of runs that are pulled towards data.

    python -m benchmarks.forced             # measure, write the results
    python -m benchmarks.forced --small     # one problem, for CI

The data are the recurrence's own trajectory with 1 % of its size as noise: a model that
fits its data. Every run is DEER without blocks and without gate, in float64, from the
default guess, so that what alpha does is not hidden by what else helps.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness, problems
from benchmarks.harness import Row
from benchmarks.lyapunov import runge_kutta

LENGTH, SMALL_LENGTH, NOISE = 1_000, 200, 0.01
NAMES = ("lorenz63", "lorenz96", "rossler", *(f"chaotic_rnn_g{g}" for g in (1.5, 2, 3)))
ALPHAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
STEP = 0.1
METHODS = {"deer": elk.deer, "quasi_deer": elk.quasi_deer}


def rossler(length: int) -> problems.Problem:
    """Rossler (1976), a = b = 0.2, c = 5.7, Runge-Kutta steps of 0.1."""

    def field(x: jax.Array) -> jax.Array:
        return jnp.stack([-x[1] - x[2], x[0] + 0.2 * x[1], 0.2 + x[2] * (x[0] - 5.7)])

    f = runge_kutta(field, STEP)
    settled = elk.sequential(f, jnp.array([1.0, 1.0, 0.0]), length=2_000).states[-1]
    return problems.Problem("rossler", f, settled, None, length, chaotic=True)


def make(name: str, length: int) -> problems.Problem:
    """One of the problems, in float64."""
    if name == "rossler":
        return rossler(length)
    return problems.make(name, length=length, dtype="float64")


def measure_one(name: str, length: int, alphas: tuple[float, ...] = ALPHAS) -> Row:
    """Passes of the free run and at every alpha; what `diagnose` says before."""
    problem = make(name, length)
    start, inputs = problem.initial_state, problem.inputs
    found = elk.diagnose(problem.f, start, inputs, length=length)
    truth = elk.sequential(problem.f, start, inputs, length=length).states
    noise = np.random.default_rng(0).normal(size=truth.shape)
    data = truth + NOISE * jnp.std(truth, axis=0) * noise
    least = found.least_alpha

    def passes(alpha: float) -> dict[str, str]:
        g = elk.forced(problem.f, alpha)
        pairs = g.inputs(start, data, inputs)
        cells = {}
        for method, build in METHODS.items():
            sol = elk.evaluate(g, start, pairs, method=build())
            mark = "" if int(sol.status) == elk.Status.converged else "*"
            cells[method] = f"{int(sol.num_iters)}{mark}"
        return cells

    row: Row = {"problem": name, "D": problem.state_dim, "T": length}
    row |= {"exponent": float(found.lyapunov_exponent), "least alpha": least}
    row["free"] = passes(0.0)
    row["at the least"] = passes(least)
    row |= {f"{alpha:g}": passes(alpha) for alpha in alphas}
    print(row, flush=True)
    return row


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/forcing.md` has places for."""
    rows = stored["rows"]
    columns = {"free": "free", "at the least": "least alpha, passes"}
    columns |= {f"{alpha:g}": f"alpha {alpha:g}" for alpha in ALPHAS}
    kept = ["problem", "D", "exponent", "least alpha"]
    return {
        method: harness.table(
            [row | {n: row[c][method] for c, n in columns.items()} for row in rows],
            [*kept, *columns.values()],
        )
        for method in METHODS
    } | {"T": f"{rows[0]['T']:,}"}


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    jax.config.update("jax_enable_x64", True)
    if "--small" in arguments:
        measure_one("lorenz63", SMALL_LENGTH, (0.2,))
        return 0
    machine = harness.hardware("float64")
    rows = [measure_one(name, LENGTH) for name in NAMES]
    harness.write("forcing", rows, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
