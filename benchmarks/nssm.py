"""Iterated smoothing on four hard problems, and its time per pass at T = 1e5.

    python -m benchmarks.nssm seeds [problem ...]    50 seeds from a zero start
    python -m benchmarks.nssm time                   a pass against dynamax's EKS

All in float64 on the CPU. *Lost* means an RMSE against the truth of more than twice
that of the best mode found for the seed, or a non-finite mean.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm.kalman.structure import Diagonal, ScaledIdentity
from elk_ssm.nssm.draws import draw_emissions, draw_states
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.posed import pose
from elk_ssm.smooth import extended_smoother, log_prob, smooth


class Problem(NamedTuple):
    """A model, its length, and which emissions are seen, `(T, E)` boolean or `None`."""

    model: NonlinearSSM
    length: int
    seen: Any = None


def pendulum(length: int = 200, step: float = 0.05) -> Problem:
    """Angle and velocity; the sine of the angle is observed to 0.3."""
    Q = 0.05 * jnp.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])

    def dynamics(z, _):
        velocity = z[1] - 9.8 * step * jnp.sin(z[0])
        return jnp.array([z[0] + step * velocity, velocity])

    model = NonlinearSSM(
        initial_mean=jnp.array([1.2, 0.0]),
        initial_covariance=ScaledIdentity(0.1),
        dynamics=dynamics,
        dynamics_covariance=Q,
        emission=lambda z, _: jnp.sin(z[:1]),
        emission_covariance=ScaledIdentity(0.09),
    )
    return Problem(model, length)


SENSORS = np.array([[-20.0, -25.0], [20.0, -25.0]])


def _bearings(z: Any) -> Any:
    east, north = z[0] - SENSORS[:, 0], z[1] - SENSORS[:, 1]
    distance = jnp.hypot(east, north)
    # Directions, not angles: an angle jumps where a target passes behind a sensor.
    return jnp.concatenate([east / distance, north / distance])


def bearings(length: int = 100, step: float = 1.0) -> Problem:
    """A target with nearly constant velocity, seen by its bearings from two sensors."""
    one = np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
    Q = jnp.asarray(np.kron(one, np.eye(2)) * 1e-3)

    def dynamics(z, _):
        return jnp.concatenate([z[:2] + step * z[2:], z[2:]])

    model = NonlinearSSM(
        initial_mean=jnp.array([-10.0, -5.0, 0.3, 0.3]),
        initial_covariance=Diagonal(jnp.array([25.0, 25.0, 0.1, 0.1])),
        dynamics=dynamics,
        dynamics_covariance=Q,
        emission=lambda z, _: _bearings(z),
        emission_covariance=ScaledIdentity(0.05**2),
    )
    return Problem(model, length)


def turn(length: int = 150, step: float = 0.5) -> Problem:
    """A coordinated turn with unknown rate: place, velocity, turn rate; bearings."""
    q, rate = 0.05, 0.02
    one = np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
    Q = np.zeros((5, 5))
    Q[:4, :4] = np.kron(one, np.eye(2)) * q
    Q[4, 4] = step * rate**2

    def dynamics(z, _):
        w = jnp.where(jnp.abs(z[4]) < 1e-6, 1e-6, z[4])
        s, c = jnp.sin(w * step), jnp.cos(w * step)
        x, y, vx, vy = z[:4]
        return jnp.array(
            [
                x + vx * s / w - vy * (1 - c) / w,
                y + vx * (1 - c) / w + vy * s / w,
                vx * c - vy * s,
                vx * s + vy * c,
                z[4],
            ]
        )

    model = NonlinearSSM(
        initial_mean=jnp.array([0.0, -5.0, 1.0, 0.0, 0.1]),
        initial_covariance=Diagonal(jnp.array([9.0, 9.0, 0.25, 0.25, 0.01])),
        dynamics=dynamics,
        dynamics_covariance=jnp.asarray(Q),
        emission=lambda z, _: _bearings(z),
        emission_covariance=ScaledIdentity(0.05**2),
    )
    return Problem(model, length)


def lorenz96(length: int = 100, step: float = 0.05, size: int = 8) -> Problem:
    """Lorenz-96, F = 8, Runge-Kutta; every other entry seen at every second step."""

    def slope(z):
        return (jnp.roll(z, -1) - jnp.roll(z, 2)) * jnp.roll(z, 1) - z + 8.0

    def dynamics(z, _):
        a = slope(z)
        b = slope(z + step / 2 * a)
        c = slope(z + step / 2 * b)
        d = slope(z + step * c)
        return z + step / 6 * (a + 2 * b + 2 * c + d)

    model = NonlinearSSM(
        initial_mean=jnp.full(size, 2.0),
        initial_covariance=ScaledIdentity(9.0),
        dynamics=dynamics,
        dynamics_covariance=ScaledIdentity(0.05),
        emission=lambda z, _: z[::2],
        emission_covariance=ScaledIdentity(0.25),
    )
    seen = np.zeros((length, (size + 1) // 2), bool)
    seen[::2] = True
    return Problem(model, length, seen)


PROBLEMS = {f.__name__: f for f in (pendulum, bearings, turn, lorenz96)}


def draw(problem: Problem, seed: Any) -> tuple[Any, Any]:
    """Return a true trajectory and its emissions, NaN where not seen."""
    model, length, seen = problem
    keys = jax.random.split(jax.random.key(seed))
    width = jax.eval_shape(model.emission, model.initial_mean, None).shape[0]
    posed = pose(model, jnp.zeros((length, width)))
    states, _ = draw_states(posed, jax.random.normal(keys[0], posed.shape))
    emissions = draw_emissions(model, posed, keys[1], states)
    return states, emissions if seen is None else jnp.where(seen, emissions, jnp.nan)


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
        lambda z: model.dynamics(z, None),
        dense(posed.dynamics_covariance),
        lambda z: model.emission(z, None),
        dense(posed.emission_covariance),
    )
    return jax.jit(lambda y: extended_kalman_smoother(params, y).smoothed_means)


def _width(model: NonlinearSSM) -> int:
    return jax.eval_shape(model.emission, model.initial_mean, None).shape[0]


def seeds(name: str, count: int = 50, max_iters: int = 200) -> dict[str, Any]:
    """Smooth `count` series from zeros, and compare with the two baselines."""
    problem = PROBLEMS[name]()
    model = problem.model
    truth, emissions = jax.vmap(lambda seed: draw(problem, seed))(jnp.arange(count))
    zeros = jnp.zeros(truth.shape[1:])

    def run(guess: Any, **options: Any) -> Any:
        def one(y, x):
            return smooth(model, y, guess=x, max_iters=max_iters, **options)

        return jax.jit(jax.vmap(one))(emissions, guess)

    everywhere = jnp.broadcast_to(zeros, truth.shape)
    ours = run(everywhere)
    aided = run(truth)
    plain = run(everywhere, noise=None, safeguard=False)
    if problem.seen is None:
        smoother = dynamax_smoother(model)
        extended = np.stack([np.asarray(smoother(y)) for y in emissions])
    else:  # dynamax's extended smoother does not take missing emissions
        extended = jax.vmap(lambda y: extended_smoother(model, y).means)(emissions)
    best = np.minimum(rmse(ours.means, truth), rmse(aided.means, truth))
    density = jax.vmap(lambda x, y: log_prob(model, x, y))
    start = density(everywhere, emissions)
    gap = np.asarray(aided.log_posterior - ours.log_posterior)

    def lost(means: Any) -> int:
        return int(np.sum(~(rmse(means, truth) <= 2 * best)))

    return {
        "problem": name,
        "T": problem.length,
        "seeds": count,
        "converged": int(np.sum(np.asarray(ours.status) == 0)),
        "median passes": float(np.median(ours.num_iters)),
        "most passes": int(np.max(ours.num_iters)),
        "never below start": bool(np.all(ours.log_posterior >= start)),
        "mode as high as from the truth": int(np.sum(gap < 1e-3)),
        "lost": lost(ours.means),
        "undamped converged": int(np.sum(np.asarray(plain.status) == 0)),
        "undamped lost": lost(plain.means),
        "extended smoother lost": lost(extended),
        "extended smoother above our mode": int(
            np.sum(np.asarray(density(extended, emissions) > ours.log_posterior + 1e-6))
        ),
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


def main(arguments: list[str]) -> None:
    """Print one line a figure."""
    jax.config.update("jax_enable_x64", True)
    task, *names = arguments or ["seeds"]
    results = [time_pass()] if task == "time" else map(seeds, names or PROBLEMS)
    for result in results:
        print("\n".join(f"{key:34s} {value}" for key, value in result.items()), "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
