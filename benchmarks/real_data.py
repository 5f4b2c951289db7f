"""Two real recordings, smoothed and learned at full size, against independent truths.

    python -m benchmarks.real_data [volatility] [spikes]    results/real_data.json
    python -m benchmarks.real_data --figures FOLDER         ... and a figure each

The recordings and models are in `real_cases`. Parameters are the maximum of the
Laplace marginal likelihood times a weak prior, by `elk.fit`. Three independent answers
(see `truth`): the mode by SciPy's banded Newton, the smoothing distribution and the
likelihood at the learned parameters by quadrature, and states together with parameters
by NUTS. dynamax's extended smoother, on its transformed observation, runs at our
parameters and at those that its own extended likelihood prefers.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import elk_ssm as elk
from benchmarks import harness, truth
from benchmarks import real_figures as figures
from benchmarks.real_cases import CASES, Case, Params


class Latent(NamedTuple):
    """Means and standard deviations of the latent path, `(T,)` each."""

    mean: np.ndarray
    deviation: np.ndarray

    def band(self, width: float = 1.959964) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the normal 95 % band."""
        return self.mean - width * self.deviation, self.mean + width * self.deviation


def extended(case: Case, params: Params) -> Any:
    """Run dynamax's sequential extended Kalman smoother on the transformed values."""
    from dynamax.nonlinear_gaussian_ssm import ParamsNLGSSM, extended_kalman_smoother

    model = case.build(params)
    gaussian = ParamsNLGSSM(
        model.initial_mean,
        model.initial_covariance,
        lambda z: model.dynamics(z, None),
        model.dynamics_covariance,
        case.emission,
        jnp.full((1, 1), case.emission_variance),
    )
    return extended_kalman_smoother(gaussian, case.transformed(case.values))


def extended_fit(case: Case, steps: int) -> Params:
    """Learn the parameters by dynamax's extended marginal likelihood, with Adam."""
    tool = optax.adam(0.05)

    def loss(params: Params) -> Any:
        likelihood = extended(case, params).marginal_loglik
        return -(likelihood + case.log_prior(params)) / len(case.values)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tool.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.asarray, case.start)
    carry = (start, tool.init(start))
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps)[0])
    return run(carry)[0]


def curvature_of(case: Case, params: Params, guess: Any) -> tuple[Params, float]:
    """Return what the curvature of the objective says at the learned parameters.

    Returns:
        Each parameter's deviation, and the length of the Newton step that is left to
        the maximum, in units of these deviations.
    """
    names = sorted(params)

    def objective(flat: Any) -> Any:
        chosen = dict(zip(names, flat))
        found = elk.smooth(case.build(chosen), case.values, guess=guess)
        return found.log_likelihood + case.log_prior(chosen)

    slope, h = jax.jit(jax.grad(objective)), 1e-3
    at = jnp.stack([params[name] for name in names])
    rows = [(slope(at + e) - slope(at - e)) / (2 * h) for e in h * jnp.eye(len(names))]
    precision = -np.asarray(jnp.stack(rows))
    covariance = np.linalg.inv((precision + precision.T) / 2)
    left = np.asarray(slope(at))
    deviations = dict(zip(names, np.sqrt(np.diag(covariance))))
    return deviations, float(np.sqrt(left @ covariance @ left))


def sample(
    case: Case, params: Params, draws: int, warmup: int
) -> tuple[truth.Draws, Any]:
    """Draw parameters and states by NUTS, the states from standardised noise."""

    def states_of(position: Params) -> Any:
        model = case.build(position["params"])
        root = jnp.sqrt(model.dynamics_covariance[0])
        noise = position["noise"]

        def step(z: Any, eps: Any) -> Any:
            z = model.dynamics(z, None) + root * eps
            return z, z

        first = jnp.sqrt(model.initial_covariance[0]) * noise[0]
        first = model.initial_mean + first
        rest = jax.lax.scan(step, first, noise[1:])[1]
        return model, jnp.concatenate([first[None], rest])

    def log_density(position: Params) -> Any:
        model, states = states_of(position)
        terms = jax.vmap(lambda z, y: model.log_density(z, y, None))(
            states, case.values
        )
        prior = case.log_prior(position["params"]) - 0.5 * jnp.sum(
            position["noise"] ** 2
        )
        return jnp.sum(terms) + prior

    start = {"params": params, "noise": jnp.zeros(len(case.values))}
    found = truth.sample_nuts(log_density, start, draws, warmup)
    states = jax.lax.map(lambda p: states_of(p)[1][:, 0], found.positions)
    return found, np.asarray(states)


def against(latent: Latent, exact: Latent, mass: np.ndarray) -> dict[str, float]:
    """Compare a Gaussian approximation with a posterior.

    Args:
        latent: The approximation.
        exact: Posterior moments.
        mass: Posterior mass in the approximation's 95 % band, `(T,)`.
    """
    error = latent.mean - exact.mean
    return {
        "rmse of mean": float(np.sqrt(np.mean(error**2))),
        "rmse / posterior sd": float(np.sqrt(np.mean((error / exact.deviation) ** 2))),
        "width ratio": float(np.mean(latent.deviation / exact.deviation)),
        "coverage of 95 % band": float(np.mean(mass)),
        "worst step's coverage": float(np.min(mass)),
    }


def timed(function: Callable, repeats: int = 1) -> tuple[Any, float]:
    """Return a result and the median of the seconds it took."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - begun)
    return result, float(np.median(seconds))


class Study(NamedTuple):
    """A row of results and the paths to draw."""

    row: dict[str, Any]
    paths: dict[str, Latent]


def study(
    case: Case,
    steps: int = 400,
    draws: int = 2000,
    warmup: int = 1000,
    cells: int = 600,
) -> Study:
    """Learn, smooth and compare; `draws=0` leaves out NUTS."""
    start = jax.tree.map(jnp.asarray, case.start)
    options: dict[str, Any] = {"num_steps": steps, "log_prior": case.log_prior}
    fitted, fit_seconds = timed(
        lambda: elk.fit(case.build, start, case.values, **options)
    )
    params, model = fitted.params, case.build(fitted.params)
    run = jax.jit(lambda: elk.smooth(case.build(params), case.values))
    found, seconds = timed(run, 7)
    ours = _latent(found.means, found.covariances)
    first, mean, phi, q = map(float, case.autoregression(params))
    mode = truth.newton_mode(first, mean, phi, q, case.curvature, len(case.values))
    low, high = ours.mean - 8 * ours.deviation, ours.mean + 8 * ours.deviation
    grid = truth.grid_posterior(model, case.values, low.min(), high.max(), cells)
    exact = Latent(grid.mean, grid.deviation)
    baseline = jax.jit(lambda p: extended(case, p))
    same, extended_seconds = timed(lambda: baseline(params), 7)
    theirs = _latent(same.smoothed_means, same.smoothed_covariances)
    learned = extended_fit(case, steps)
    refit = baseline(learned)
    refitted = _latent(refit.smoothed_means, refit.smoothed_covariances)
    deviations, left = curvature_of(case, params, found.means)
    row = {
        "data": case.name,
        "T": len(case.values),
        "status": elk.Status(int(found.status)).name,
        "passes from the prior mean": int(found.num_iters),
        "seconds": {
            "fit, with compilation": fit_seconds,
            "smooth": seconds,
            "dynamax EKS": extended_seconds,
        },
        "largest difference from SciPy's mode": float(np.abs(mode - ours.mean).max()),
        "log likelihood": {
            "Laplace": float(found.log_likelihood),
            "quadrature": float(grid.log_likelihood),
        },
        "left to the maximum, in posterior deviations": left,
        "against quadrature, same parameters": {
            "ours": against(ours, exact, grid.mass_between(*ours.band())),
            "dynamax EKS": against(theirs, exact, grid.mass_between(*theirs.band())),
        },
        "parameters": {
            name: {
                "ours": float(value(params[key])),
                "ours 95 %": _interval(value, params[key], deviations[key]),
                "dynamax EKS": float(value(learned[key])),
            }
            for key, (name, value) in case.natural.items()
        },
    }
    paths = {"ours": ours, "quadrature": exact, "dynamax EKS": refitted}
    if draws:
        paths["NUTS"] = _compare_nuts(case, params, paths, row, draws, warmup)
    return Study(row, paths)


def _latent(means: Any, covariances: Any) -> Latent:
    return Latent(np.asarray(means[:, 0]), np.sqrt(np.asarray(covariances[:, 0, 0])))


def _interval(value: Callable, at: Any, deviation: float) -> list[float]:
    return [float(value(at + s * 1.959964 * deviation)) for s in (-1, 1)]


def _compare_nuts(
    case: Case, params: Params, paths: dict, row: dict, draws: int, warmup: int
) -> Latent:
    """Add what NUTS says to a row; return its latent path."""
    (found, states), seconds = timed(lambda: sample(case, params, draws, warmup))
    chains = found.positions["params"]
    sizes = [truth.effective_size(chain) for chain in chains.values()]
    row["seconds"]["NUTS"] = seconds
    row["NUTS"] = {
        "draws": draws,
        "warmup": warmup,
        "divergences": found.divergences,
        "leapfrog steps a draw": found.mean_leapfrogs,
        "smallest effective size of a parameter": min(sizes),
    }
    for key, (name, value) in case.natural.items():
        drawn = np.asarray(value(chains[key]))
        row["parameters"][name] |= {
            "NUTS mean": float(drawn.mean()),
            "NUTS 95 %": np.percentile(drawn, [2.5, 97.5]).tolist(),
        }
    exact = Latent(states.mean(0), states.std(0))
    compared = {}
    for name in ("ours", "dynamax EKS"):
        low, high = paths[name].band()
        mass = np.mean((states >= low) & (states <= high), axis=0)
        compared[name] = against(paths[name], exact, mass)
    row["against NUTS, each with its own parameters"] = compared
    return exact


def main(arguments: list[str] | None = None) -> None:
    """Study the recordings and write the results, and figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cases", nargs="*", default=list(CASES), help="of " + ", ".join(CASES)
    )
    parser.add_argument("--figures", type=Path, help="folder for the figures")
    chosen = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    machine, rows = harness.hardware("float64"), []
    for name in chosen.cases:
        case = CASES[name]()
        found = study(case)
        rows.append(found.row)
        print(json.dumps(found.row, indent=1))
        if chosen.figures:
            figures.draw(case, found.paths, chosen.figures)
    harness.write("real_data", rows, machine)


if __name__ == "__main__":
    main()
