"""Forward plus backward: ours, `jax.grad` through `lax.scan`, and a published style.

python -m benchmarks.gradients           # measure, write results/gradients.json
python -m benchmarks.gradients --small   # one small cell, for CI
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness
from benchmarks.harness import Row

SIZES, LENGTHS = (8, 32, 64), (1_000, 10_000, 100_000)
MAX_DIAGONAL_WORK = 64 * 10_000
SCAN = "grad through lax.scan"

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def gru(weights: jax.Array, h: jax.Array, u: jax.Array) -> jax.Array:
    """A GRU with three split recurrent products."""
    wz, uz, wr, ur, wn, un = weights
    z = jax.nn.sigmoid(h @ wz + u @ uz)
    r = jax.nn.sigmoid(h @ wr + u @ ur)
    n = jnp.tanh(r * (h @ wn) + u @ un)
    return (1 - z) * n + z * h


def case(size: int, length: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Weights `(6, D, D)` and inputs `(T, D)`."""
    rng = np.random.default_rng(size)
    weights = rng.normal(size=(6, size, size)) / np.sqrt(size)
    inputs = rng.normal(size=(length, size))
    return jnp.asarray(weights, dtype), jnp.asarray(inputs, dtype)


def total(states: jax.Array) -> jax.Array:
    """A loss that every state matters to."""
    return jnp.sum(jnp.sin(states) * jnp.cos(3 * states)) / states.shape[0]


def through_scan(checkpoint: bool) -> Loss:
    cell = jax.checkpoint(gru) if checkpoint else gru

    def loss(weights: jax.Array, inputs: jax.Array) -> jax.Array:
        def body(h: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = cell(weights, h, u)
            return h, h

        start = jnp.zeros(inputs.shape[1], inputs.dtype)
        return total(jax.lax.scan(body, start, inputs)[1])

    return loss


def by_elk(method: Any) -> Loss:
    def loss(weights: jax.Array, inputs: jax.Array) -> jax.Array:
        start = jnp.zeros(inputs.shape[1], inputs.dtype)
        sol = elk.evaluate(
            lambda h, u: gru(weights, h, u), start, inputs, method=method
        )
        return total(sol.states)

    return loss


def published_style() -> Loss:
    """Quasi-DEER whose backward pass reuses the diagonal of the Jacobian.

    The states are right; the adjoint recursion drops all off-diagonal terms. That is
    what the published code differentiates.
    """

    def loss(weights: jax.Array, inputs: jax.Array) -> jax.Array:
        start = jnp.zeros(inputs.shape[1], inputs.dtype)
        states = jax.lax.stop_gradient(
            elk.evaluate(
                lambda h, u: gru(weights, h, u), start, inputs, method=elk.quasi_deer()
            ).states
        )
        before = jnp.concatenate([start[None], states[:-1]])
        jacobians = jax.vmap(jax.jacfwd(gru, 1), (None, 0, 0))(weights, before, inputs)
        diagonals = jnp.diagonal(jacobians, axis1=1, axis2=2)
        values = jax.vmap(gru, (None, 0, 0))(weights, before, inputs)
        offsets = values - jax.lax.stop_gradient(diagonals) * before

        def combine(a: tuple, b: tuple) -> tuple:
            return a[0] * b[0], b[0] * a[1] + b[1]

        elements = (jax.lax.stop_gradient(diagonals), offsets)
        return total(jax.lax.associative_scan(combine, elements)[1])

    return loss


def candidates(size: int, length: int) -> dict[str, Loss]:
    """What to compare at one size."""
    chosen = {
        SCAN: through_scan(checkpoint=False),
        "the same, checkpointed": through_scan(checkpoint=True),
        "auto": by_elk(None),
    }
    if size * length <= MAX_DIAGONAL_WORK:
        chosen["quasi_deer"] = by_elk(elk.quasi_deer())
        chosen["quasi-DEER, published backward"] = published_style()
    if size * size * length <= MAX_DIAGONAL_WORK:
        chosen["deer"] = by_elk(elk.deer())
    return chosen


def exact(size: int, length: int) -> np.ndarray:
    """The gradient through `lax.scan` in float64."""
    with jax.enable_x64(True):
        arguments = case(size, length, jnp.float64)
        return np.asarray(jax.jit(jax.grad(through_scan(False)))(*arguments))


def measure(sizes: tuple[int, ...], lengths: tuple[int, ...]) -> list[Row]:
    """One row for each candidate in each cell."""
    rows = []
    for size in sizes:
        for length in lengths:
            arguments = case(size, length, jnp.float32)
            chosen = {
                name: (jax.value_and_grad(loss), arguments)
                for name, loss in candidates(size, length).items()
            }
            found, results = harness.compare(chosen, seconds=4.0)
            expected = exact(size, length)
            base = next(r["run_ms"] for r in found if r["candidate"] == SCAN)
            for row in found:
                gradient = results[row["candidate"]][1]
                rows.append({"D": size, "T": length} | row)
                rows[-1]["time over scan"] = row["run_ms"] / base
                rows[-1]["error"] = harness.largest_error(gradient, expected)
            print(f"D = {size}, T = {length} done", flush=True)
    return rows


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/gradients.md` has places for."""
    columns = ["D", "T", "candidate", "run_ms", "time over scan", "compile_s"]
    return {
        "grid": harness.table(stored["rows"], [*columns, "temp_mb", "error"]),
        "limit": f"{MAX_DIAGONAL_WORK:,}",
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if "--small" in arguments:
        rows = measure((4,), (200,))
        print(harness.table(rows, ["candidate", "run_ms", "time over scan", "error"]))
        return 0
    machine = harness.hardware()
    harness.write("gradients", measure(SIZES, LENGTHS), machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
