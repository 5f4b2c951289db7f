"""Passes on long smooth problems: differential equations and diffusion samplers.

python -m benchmarks.differential_equations           # count, write results/*.json
python -m benchmarks.differential_equations --small   # short problems, no files

Passes are counted, not timed. Picard in a sliding window (Shih et al. 2023, arXiv
2305.16317) is measured here and not in the package: see the page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness
from benchmarks.harness import Row
from elk_ssm.interop.diffrax import Recurrence, from_diffrax

NAME, STEPS, TOLERANCE = "differential_equations", 1000, 1e-8
WINDOWS = (50, 200)
METHODS = {
    "picard": elk.picard(),
    "picard, anderson 2": elk.picard(anderson=2),
    "picard, anderson 4": elk.picard(anderson=4),
    "picard, anderson 8": elk.picard(anderson=8),
    "quasi_deer": elk.quasi_deer(),
    "deer": elk.deer(),
}


def van_der_pol(end: float) -> Callable[[int], Recurrence]:
    """An oscillator with a limit cycle, T midpoint steps."""

    def field(t: Any, y: Any, args: Any) -> Any:
        return jnp.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]])

    start = np.asarray([2.0, 0.0])
    return _ode(field, diffrax.Midpoint(), (0.0, end), start)


def kepler(t: Any, y: Any, args: Any) -> Any:
    """A planet around its sun."""
    return jnp.concatenate([y[2:], -y[:2] / jnp.sum(y[:2] ** 2) ** 1.5])


def _ode(field: Any, solver: Any, span: tuple[float, float], y0: np.ndarray) -> Any:
    def made(steps: int) -> Recurrence:
        ts = diffrax.StepTo(jnp.linspace(*span, steps + 1))
        term = diffrax.ODETerm(field)
        start = jnp.asarray(y0)
        return from_diffrax(term, solver, *span, None, start, stepsize_controller=ts)

    return made


def score(t: Any, x: Any, centres: Any) -> Any:
    """Score of a mixture of three narrow Gaussians, noised up to t (VP schedule)."""
    kept = jnp.exp(-0.05 * t - 4.975 * t**2)
    variance = 1 - kept**2 + (0.1 * kept) ** 2
    away = x - kept * centres
    weights = jax.nn.softmax(-0.5 * jnp.sum(away**2, 1) / variance)
    return -weights @ away / variance


def sampler(dimension: int, *, noisy: bool) -> Callable[[int], Recurrence]:
    """Sample by the reverse SDE with a given Brownian path, or by its ODE; Euler."""
    rng = np.random.default_rng(0)
    centres, y0 = rng.normal(size=(3, dimension)), rng.normal(size=dimension)
    share = 1.0 if noisy else 0.5

    def drift(t: Any, x: Any, centres: Any) -> Any:
        beta = 0.1 + 19.9 * t
        return -beta * (0.5 * x + share * score(t, x, centres))

    def spread(t: Any, x: Any, centres: Any) -> Any:
        return jnp.sqrt(0.1 + 19.9 * t) * jnp.eye(dimension)

    def made(steps: int) -> Recurrence:
        ts = diffrax.StepTo(jnp.linspace(1.0, 1e-3, steps + 1))
        terms: Any = diffrax.ODETerm(drift)
        if noisy:
            key, shape = jax.random.key(0), (dimension,)
            path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-5, shape, key)
            terms = diffrax.MultiTerm(terms, diffrax.ControlTerm(spread, path))
        begin = (1.0, 1e-3, None, jnp.asarray(y0), jnp.asarray(centres))
        return from_diffrax(terms, diffrax.Euler(), *begin, stepsize_controller=ts)

    return made


CIRCLE = np.asarray([1.0, 0.0, 0.0, 1.0])
PROBLEMS: dict[str, Callable[[int], Recurrence]] = {
    "Van der Pol to 2": van_der_pol(2.0),
    "Van der Pol to 10": van_der_pol(10.0),
    "Kepler, one orbit": _ode(kepler, diffrax.Tsit5(), (0.0, 2 * np.pi), CIRCLE),
    "sampler, ODE, D = 16": sampler(16, noisy=False),
    "sampler, SDE, D = 16": sampler(16, noisy=True),
}


def count(steps: int, problems: tuple[str, ...] = tuple(PROBLEMS)) -> list[Row]:
    """Passes of each method on each problem, and its error where it converged."""
    rows = []
    for problem in problems:
        made = PROBLEMS[problem](steps)
        exact = elk.sequential(*made).states
        row: Row = {"problem": problem, "T": steps}
        errors = []
        for name, method in METHODS.items():
            sol = elk.evaluate(*made, method=method, tol=TOLERANCE)
            done = sol.status == elk.Status.converged
            row[name] = int(sol.num_iters) if done else "fails"
            errors.append(harness.largest_error(sol.states, exact) if done else 0.0)
        rows.append(row | {"largest error": max(errors)})
        print(problem, "done", flush=True)
    return rows


def slide(made: Recurrence, window: int) -> tuple[int, int]:
    """Passes, and evaluations of a step, of Picard iteration in a sliding window.

    The window moves on behind the first state whose step is above the tolerance.
    """
    step = jax.jit(jax.vmap(made.f))
    length, last = made.inputs.t1.shape[0], np.asarray(made.initial_state)
    done, passes, work, nodes = 0, 0, 0, np.repeat(last[None], window, axis=0)
    every = np.arange(window)
    while done < length:
        # Behind the end the last step is repeated, so that all windows have one shape.
        index = np.minimum(done + every, length - 1)
        before = np.concatenate([last[None], nodes[:-1]])
        inputs = jax.tree.map(lambda x, index=index: x[index], made.inputs)
        values = np.asarray(step(jnp.asarray(before), inputs))
        change = np.cumsum(values - nodes, axis=0)
        change[done + every >= length] = 0
        passes, work = passes + 1, work + min(window, length - done)
        nodes = np.where(np.isfinite(nodes + change), nodes + change, last)
        nodes[0] = values[0]
        large = np.abs(change).max(axis=1) > TOLERANCE * np.abs(nodes).max()
        settled = max(int(np.argmax(large)) if large.any() else len(nodes), 1)
        last, done = nodes[settled - 1], done + settled
        fresh = np.repeat(nodes[-1:], settled, axis=0)
        nodes = np.concatenate([nodes[settled:], fresh])
    return passes, work


def windows(steps: int, problems: tuple[str, ...] = tuple(PROBLEMS)) -> list[Row]:
    """Passes and evaluations in windows of some sizes, and in one of all steps."""
    rows = []
    for problem in problems:
        made = PROBLEMS[problem](steps)
        row: Row = {"problem": problem}
        for window in (*WINDOWS, steps):
            if "to 10" in problem and window == steps:
                continue  # overflows, and is no measure
            passes, work = slide(made, window)
            name = "all" if window == steps else f"{window}"
            row |= {f"passes, {name}": passes, f"steps / T, {name}": work / steps}
        rows.append(row)
    return rows


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/differential_equations.md` has places for."""
    rows = stored["rows"]
    names = [*map(str, WINDOWS), "all"]
    pairs = [f"{what}, {n}" for n in names for what in ("passes", "steps / T")]
    return {
        "passes": harness.table(
            rows["passes"], ["problem", "T", *METHODS, "largest error"]
        ),
        "windows": harness.table(rows["windows"], ["problem", *pairs]),
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    machine = harness.hardware("float64")
    with jax.enable_x64(True):
        if "--small" in arguments:
            rows = count(60, ("Van der Pol to 2",))
            print(harness.table(rows, ["problem", *METHODS]))
            return 0
        rows = {"passes": count(STEPS), "windows": windows(STEPS)}
    harness.write(NAME, rows, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
