"""Iterated smoothing on hard problems, and its time per pass at T = 1e5.

    python -m benchmarks.nssm seeds [problem ...]    50 seeds from a zero start
    python -m benchmarks.nssm table                  the stored counts in Markdown
    python -m benchmarks.nssm time                   a pass against dynamax's EKS

All in float64 on the CPU. `seeds` writes `results/nssm.json` when it has run them all.

Two measures of failure. *Astray*: non-finite, or a log posterior more than 10 nats
below the mode that the iteration finds from the true trajectory. *Lost*: an RMSE
against the truth of more than twice that of the better of our two modes, or
non-finite. The first is hard on the extended smoother, whose mean is no mode even
where all is well.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.nssm_problems import PROBLEMS, draw, pendulum
from elk_ssm.linalg.structure import to_dense
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.posed import pose
from elk_ssm.smoothing import extended_smoother, log_prob, smooth

MARGIN = 10.0
INFLATIONS = (1000.0, 100.0, 10.0, 1.0)


def rmse(states: Any, truth: Any) -> Any:
    """Root mean squared error over everything but a leading seed axis."""
    return np.sqrt(np.mean((np.asarray(states) - np.asarray(truth)) ** 2, (1, 2)))


def dynamax_smoother(model: NonlinearSSM) -> Callable:
    """Return dynamax's sequential extended smoother, compiled, for one series."""
    from dynamax.nonlinear_gaussian_ssm import (
        ParamsNLGSSM,
        extended_kalman_smoother,
    )

    posed = pose(model, jnp.zeros((2, _width(model))))

    def dense(operator: Any) -> Any:
        return operator[0] if operator[0].ndim > 1 else jnp.diag(operator[0])

    params = ParamsNLGSSM(
        posed.initial_mean,
        posed.initial_covariance,
        lambda z, _: model.dynamics(z, None),
        dense(posed.dynamics_covariance),
        lambda z, seen: seen * model.emission(z, None),
        dense(posed.emission_covariance),
    )

    def means(y: Any) -> Any:
        # What is missing is an observation of nothing as zero, which changes nothing.
        seen = ~jnp.isnan(y)
        data = jnp.where(seen, y, 0.0)
        inputs = seen.astype(y.dtype)
        return extended_kalman_smoother(params, data, inputs=inputs).smoothed_means

    return jax.jit(means)


def _width(model: NonlinearSSM) -> int:
    return jax.eval_shape(model.emission, model.initial_mean, None).shape[0]


def seeds(name: str, count: int = 50, max_iters: int = 200) -> dict[str, Any]:
    """Smooth `count` series from zeros, and compare with the baselines."""
    problem = PROBLEMS[name]()
    model = problem.model
    truth, emissions = jax.vmap(lambda seed: draw(problem, seed))(jnp.arange(count))
    zeros = jnp.zeros_like(truth)
    run = smoother_of(model, emissions, max_iters=max_iters)
    undamped = {"noise": None, "safeguard": False}
    plain = smoother_of(model, emissions, max_iters=max_iters, **undamped)(zeros)
    ours, aided, annealed = run(zeros), run(truth), anneal(run, zeros)
    extended = jax.vmap(dynamax_smoother(model))(emissions)
    our_extended = jax.vmap(lambda y: extended_smoother(model, y).means)(emissions)
    density = jax.jit(jax.vmap(lambda x, y: log_prob(model, x, y)))
    best = np.minimum(rmse(ours.means, truth), rmse(aided.means, truth))

    def counts(means: Any) -> dict[str, Any]:
        log_posterior = np.asarray(density(means, emissions))
        finite = np.all(np.isfinite(means), (1, 2))
        gap = np.asarray(aided.log_posterior) - log_posterior
        return {
            "not finite": int(np.sum(~finite)),
            "astray": int(np.sum(~(finite & (gap <= MARGIN)))),
            "below the start": int(
                np.sum(~(log_posterior >= density(zeros, emissions)))
            ),
            "lost": int(np.sum(~(rmse(means, truth) <= 2 * best))),
            "as high as from the truth": int(np.sum(gap < 1e-3)),
        }

    return {
        "problem": name,
        "T": problem.length,
        "seeds": count,
        "margin": MARGIN,
        "ours": counts(ours.means) | passes(ours),
        "undamped": counts(plain.means) | passes(plain),
        "dynamax EKS": counts(extended),
        "annealed": counts(annealed.means) | passes(annealed),
        "largest difference of dynamax's EKS from ours": float(
            np.nanmax(np.abs(extended - our_extended))
        ),
    }


def smoother_of(model: NonlinearSSM, emissions: Any, **options: Any) -> Callable:
    """Return a compiled function of guesses and a factor on the process noise."""
    Q = to_dense(pose(model, emissions[0]).dynamics_covariance)

    def one(y: Any, guess: Any, inflation: Any) -> Any:
        noisier = replace(model, dynamics_covariance=inflation * Q)
        return smooth(noisier, y, guess=guess, **options)

    compiled = jax.jit(jax.vmap(one, (0, 0, None)))
    return lambda guess, inflation=1.0: compiled(emissions, guess, inflation)


def anneal(run: Callable, guess: Any) -> Any:
    """Smooth with less and less process noise, each time from the last result.

    Under much process noise every step follows its own emissions, and few modes are
    left; as the noise falls, the trajectory learns to obey the dynamics.
    """
    for inflation in INFLATIONS:
        result = run(guess, inflation)
        guess = result.means
    return result


def passes(result: Any) -> dict[str, Any]:
    """Count what converged; the annealed passes are those of the last run."""
    return {
        "converged": int(np.sum(np.asarray(result.status) == 0)),
        "median passes": float(np.median(result.num_iters)),
        "most passes": int(np.max(result.num_iters)),
    }


def time_pass(length: int = 100_000, repeats: int = 5) -> dict[str, Any]:
    """Time one pass of ours and dynamax's extended smoother, interleaved medians."""
    problem = pendulum(length)
    _, emissions = draw(problem, 0)
    extended = dynamax_smoother(problem.model)
    guess = extended(emissions)
    passes = 4

    def iterate(y, count):
        result = smooth(
            problem.model, y, guess=guess, max_iters=count, tol=1e-300, noise=1e4
        )
        return result.means

    several = jax.jit(iterate)
    candidates = {
        "dynamax EKS": lambda: extended(emissions),
        "final pass only": lambda: several(emissions, 0),
        f"{passes} passes": lambda: several(emissions, passes),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        jax.block_until_ready(candidate())
    for _ in range(repeats):
        for name, candidate in candidates.items():
            before = time.perf_counter()
            jax.block_until_ready(candidate())
            times[name].append(time.perf_counter() - before)
    medians = {name: statistics.median(values) for name, values in times.items()}
    each = (medians[f"{passes} passes"] - medians["final pass only"]) / passes
    ratio = each / medians["dynamax EKS"]
    return {"T": length, **medians, "per pass": each, "per pass / EKS": ratio}


ESTIMATES = ("ours", "undamped", "dynamax EKS", "annealed")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the stored counts in Markdown, a line for each estimate and figure."""
    lines = [["", *(row["problem"] for row in rows)], ["---"] * (len(rows) + 1)]
    for estimate in ESTIMATES:
        for figure in rows[0][estimate]:
            counts = (f"{row[estimate][figure]:g}" for row in rows)
            lines.append([f"{estimate}: {figure}", *counts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> None:
    """Print one line a figure."""
    jax.config.update("jax_enable_x64", True)
    task, *names = arguments or ["seeds"]
    if task == "table":
        print(table(harness.read("nssm")["rows"]))
        return
    machine, results = harness.hardware("float64"), []
    for result in [time_pass()] if task == "time" else map(seeds, names or PROBLEMS):
        print("\n".join(f"{key:34s} {value}" for key, value in result.items()), "\n")
        results.append(result)
    if task == "seeds" and not names:
        harness.write("nssm", results, machine)


if __name__ == "__main__":
    main(sys.argv[1:])
