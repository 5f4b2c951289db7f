"""dynamax's own objects against the accelerated ones, method by method.

    python -m benchmarks.dynamax_objects            # write results/dynamax_objects.json
    python -m benchmarks.dynamax_objects --small    # seconds, no files

Both objects run the same inherited `fit_em` as one compiled program, whose time is
given for one of `ITERATIONS`; of `fit_sgd`, which compiles anew at every call, a step:
the loss of a batch and its gradient. dynamax's classes filter and smooth sequentially.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks import harness
from benchmarks.harness import Row

ITERATIONS = 5
SIZES = ((4, 10, 10_000),)
EM, GAPS = "fit_em, an iteration", "a tenth missing"


def objects(size: int, width: int) -> tuple[Any, Any]:
    """Return dynamax's object and the accelerated one."""
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    from elk_ssm.interop.dynamax import accelerate

    model = LinearGaussianSSM(size, width)
    return model, accelerate(model)


def methods(model: Any, props: Any) -> dict[str, Any]:
    """Functions of parameters and emissions, by name."""

    def em(params: Any, y: Any) -> Any:
        options = {"num_iters": ITERATIONS, "verbose": False}
        return model.fit_em(params, props, y, **options)

    def sgd(params: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            batch = jax.vmap(lambda y: model.marginal_log_prob(params, y))
            return -jnp.sum(batch(y[None]))

        return jax.value_and_grad(loss)(params)

    return {
        EM: em,
        "fit_sgd, a step": sgd,
        "smoother": model.smoother,
        "filter": model.filter,
    }


def measure(sizes: tuple, seconds: float) -> list[Row]:
    """Time every method of both objects in turns, and compare what they return."""
    rows: list[Row] = []
    for size, width, steps in sizes:
        theirs, ours = objects(size, width)
        truth, props = theirs.initialize(jr.PRNGKey(0))
        _, y = theirs.sample(truth, jr.PRNGKey(1), steps)
        params, _ = theirs.initialize(jr.PRNGKey(2))
        gaps = jnp.where(jr.uniform(jr.PRNGKey(3), y.shape) < 0.1, jnp.nan, y)
        both = methods(theirs, props), methods(ours, props)
        for name in both[0]:
            candidates = {
                "dynamax": (both[0][name], (params, y)),
                "accelerated": (both[1][name], (params, y)),
            }
            if name == EM:
                candidates[GAPS] = both[1][name], (params, gaps)
            found, results = harness.compare(candidates, seconds=seconds)
            rows.append(_row((size, width, steps), name, found, results))
            print(rows[-1], flush=True)
    return rows


def _row(sizes: tuple[int, int, int], name: str, found: list[Row], results: Any) -> Row:
    times = {row["candidate"]: row for row in found}
    share = ITERATIONS if name == EM else 1
    row: Row = dict(zip(("D", "E", "T"), sizes)) | {"method": name}
    for candidate, label in (("dynamax", "dynamax"), ("accelerated", "accelerated")):
        row[f"{label}, ms"] = times[candidate]["run_ms"] / share
    row["over dynamax"] = row["accelerated, ms"] / row["dynamax, ms"]
    if GAPS in times:
        row[f"{GAPS}, ms"] = times[GAPS]["run_ms"] / share
    row["dynamax compiles, s"] = times["dynamax"]["compile_s"]
    row["accelerated compiles, s"] = times["accelerated"]["compile_s"]
    row["difference"] = _difference(results["accelerated"], results["dynamax"])
    return row


def _difference(found: Any, expected: Any) -> float:
    """Largest difference of any array, over its largest entry."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if np.size(b):
            size = np.max(np.abs(np.asarray(b, float)))
            gap = np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)))
            worst = max(worst, float(gap / size))
    return worst


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/dynamax_objects.md` has places for."""
    rows = stored["rows"]
    em = [row["over dynamax"] for row in rows if row["method"] == EM]
    return {
        "table": harness.table(rows, list(rows[0])),
        "em": f"{max(em):.3f}",
        "iterations": str(ITERATIONS),
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if "--small" in arguments:
        measure(((2, 3, 200),), 0.1)
        return 0
    machine = harness.hardware()
    harness.write("dynamax_objects", measure(SIZES, 3.0), machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
