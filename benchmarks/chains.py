"""Iterations of Markov chains against their length, and whether they are the chains.

    python -m benchmarks.chains            # measure, write results/chains.json
    python -m benchmarks.chains --small    # seconds, no files

Two posteriors in float64: the linear regression of diabetes progression on ten
measurements of 442 patients (scikit-learn), and a mixture of three Gaussians in the
plane. MALA and HMC of blackjax, with step sizes that accept most proposals; against
blackjax's own loop over the same keys, mapped over chains. How far that loop is from
itself with one chain after the other, another program of the same steps, says how much
of an error is rounding that the chain amplifies. Counts, and no clock.
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

LENGTHS, CHAINS, BLOCK = (32, 128, 512), 4, 16
WHOLE = 128
METHODS = {
    "deer": elk.deer(),
    f"Newton over blocks of {BLOCK}": elk.auto(strategy="newton", block_size=BLOCK),
}


def regression() -> tuple[Callable, Any]:
    """Log posterior of weights and log noise, and where chains start: near its mode."""
    from sklearn import datasets

    found = datasets.load_diabetes()
    design = found.data / found.data.std(0)
    target = (found.target - found.target.mean()) / found.target.std()
    weights = np.linalg.lstsq(design, target, rcond=None)[0]

    def log_density(position: Any) -> jax.Array:
        residual = target - design @ position["weights"]
        scale = jnp.exp(position["log_scale"])
        prior = (position["weights"] ** 2).sum() + position["log_scale"] ** 2
        misfit = (residual**2).sum() / scale**2 / 2
        return -misfit - len(target) * position["log_scale"] - prior / 2

    scale = jnp.log(jnp.std(target - design @ weights))
    return log_density, {"weights": jnp.asarray(weights), "log_scale": scale}


def mixture() -> tuple[Callable, Any]:
    """Log density of three Gaussians, and their middle."""

    def log_density(position: jax.Array) -> jax.Array:
        means = jnp.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        return jax.nn.logsumexp(-((position - means) ** 2).sum(1) / 2)

    return log_density, jnp.array([0.0, 1.0])


def samplers() -> dict[tuple[str, str], tuple[Any, Any]]:
    """Sampler and first position of each case."""
    import blackjax

    found = {}
    cases = {
        "regression": (regression(), 3e-4, 0.01, 11),
        "mixture": (mixture(), 0.3, 0.4, 2),
    }
    for name, ((log_density, start), mala, hmc, size) in cases.items():
        found[name, "MALA"] = blackjax.mala(log_density, mala), start
        metric = jnp.ones(size)
        found[name, "HMC, 3 steps"] = blackjax.hmc(log_density, hmc, metric, 3), start
    return found


def own_loop(
    sampler: Any, start: Any, key: jax.Array, length: int, mapped: bool = True
) -> tuple[Any, Any]:
    """States of blackjax's loop and what it accepted, `(CHAINS, T, ...)`."""

    def one(key: jax.Array) -> tuple[Any, Any]:
        def body(state: Any, key: jax.Array) -> tuple[Any, tuple[Any, Any]]:
            state, info = sampler.step(key, state)
            return state, (state, info.is_accepted)

        keys = jax.random.split(key, length)
        return jax.lax.scan(body, sampler.init(start), keys)[1]

    keys = jax.random.split(key, CHAINS)
    return jax.jit(jax.vmap(one) if mapped else lambda x: jax.lax.map(one, x))(keys)


def cases(sampler: Any, length: int, methods: dict[str, Any]) -> dict[str, tuple]:
    """Kernel and method of each row; a step alone is solved for its whole state."""
    found = {name: (sampler, method) for name, method in methods.items()}
    if length == WHOLE:
        found["deer, whole state"] = sampler.step, METHODS["deer"]
    return found


def measure(lengths: tuple[int, ...], methods: dict[str, Any]) -> list[Row]:
    """One row for each posterior, kernel, length and method."""
    rows = []
    for (posterior, kernel), (sampler, start) in samplers().items():
        for length in lengths:
            key = jax.random.key(length)
            expected, accepted = own_loop(sampler, start, key, length)
            other, _ = own_loop(sampler, start, key, length, mapped=False)
            floor = harness.largest_error(other.position, expected.position)
            for name, (solved, method) in cases(sampler, length, methods).items():
                found = elk.chains(
                    solved, sampler.init(start), key, length, CHAINS,
                    method=method, info=lambda info: info.is_accepted,
                )  # fmt: skip
                rows.append({"posterior": posterior, "kernel": kernel, "T": length})
                rows[-1] |= {
                    "accepted": float(accepted.mean()),
                    "method": name,
                    "iterations": float(found.num_iters.mean()),
                    "most": int(found.num_iters.max()),
                    "converged": int((found.status == elk.Status.converged).sum()),
                    "other decisions": int((found.info != accepted).sum()),
                    "error": harness.largest_error(
                        found.states.position, expected.position
                    ),
                    "of the loop": floor,
                }
                print(rows[-1], flush=True)
    return rows


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/chains.md` has places for."""
    rows = stored["rows"]
    columns = ["posterior", "kernel", "accepted", "T", "method", "iterations", "most"]
    columns += ["converged", "other decisions", "error", "of the loop"]
    return {
        "iterations": harness.table(rows, columns),
        "count": str(CHAINS),
        "block": str(BLOCK),
        "whole": str(WHOLE),
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    with jax.enable_x64(True):
        if "--small" in arguments:
            measure((16,), {"deer": METHODS["deer"]})
            return 0
        machine = harness.hardware("float64")
        harness.write("chains", measure(LENGTHS, METHODS), machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
