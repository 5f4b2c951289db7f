"""The programs of the count table: ours, `lax.scan`, the published iteration, others.

A cell is a program at one size. Whole solves end at their tolerance; on a machine
without a GPU the number of passes is what a CPU takes for the same plan, which is
`elk.auto(strategy="short_blocks")` with associative scans: what `auto` does on
accelerators.

Of the loops of a solve, which bear the scopes of the engine, a good solve runs
`short_blocks`, `passes` and `sweeps` as often as it has passes of that kind, and
`rounds` and `trial` once; the branch `newton` is taken where there are passes of
Newton's method, and `failure`, `fall_back`, `repair` and `long_sweeps` look whether
they are needed and are not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import kalman, problems, published, speed
from benchmarks.gpu_program import Branches
from elk_ssm.parallel.time_axis import LOCAL
from elk_ssm.solve.path import Path
from elk_ssm.solve.sweeps import fit_sweeps

ONCE = ("trial", "rounds", "covariances")
NEVER = (
    "failure",
    "hold",
    "fall_back",
    "repair",
    "long_sweeps",
    "general",
    "doublings",
)
LONG, SHORT = 100_000, 10_000
METHODS: dict[str, Callable] = {
    "default": partial(elk.auto, strategy="short_blocks"),
    "quasi_deer": elk.quasi_deer,
    "deer": elk.deer,
    "quasi_elk": partial(elk.quasi_elk, speed.NOISE),
    "elk": partial(elk.elk, speed.NOISE),
}
Program = tuple[Callable, tuple]


class Passes(NamedTuple):
    """Passes of a run: over short blocks, of an iteration, of a derivative's sweeps."""

    short: int = 0
    iterated: int = 0
    sweeps: int = 0

    @property
    def total(self) -> int:
        """Passes of the solve."""
        return self.short + self.iterated


class Cell(NamedTuple):
    """A program of the table.

    Attributes:
        problem: What is computed: "GRU", "AR-GRU", ...
        program: Which way.
        size: D.
        length: T.
        build: Makes the function and its arguments.
        build_passes: Makes the function that returns the numbers of `Passes`, and its
            arguments; None where nothing is iterated.
        needs: A package that must be there.
        branches: Which branches of conditionals a good run takes.
        gaps: Whether the data have some, so that steps are not all alike.
    """

    problem: str
    program: str
    size: int
    length: int
    build: Callable[[], Program]
    build_passes: Callable[[], Program] | None = None
    needs: str = "jax"
    branches: Branches = "dear"
    gaps: bool = False

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What a row of the table is found by."""
        return self.problem, self.program, self.size, self.length

    @property
    def is_here(self) -> bool:
        """Whether its package is."""
        return find_spec(self.needs) is not None

    def rounds(self, passes: Passes) -> dict[str, int]:
        """How often the named loops run in a good solve."""
        if self.program.startswith("published"):
            return {}
        named = dict.fromkeys(ONCE, 1) | dict.fromkeys(NEVER, 0)
        if self.gaps:
            named |= {"covariances": 0, "general": 1}
        named |= {"short_blocks": passes.short, "passes": passes.iterated}
        return named | {"newton": min(passes.iterated, 1), "sweeps": passes.sweeps}

    def passes_here(self) -> Passes | None:
        """Run the same plan on this machine and return its number of passes."""
        if self.build_passes is None:
            return None
        function, arguments = self.build_passes()
        return Passes(*map(int, jax.jit(function)(*arguments)))


def gru(size: int, length: int) -> tuple[Callable, tuple]:
    """The GRU with fused gates, and its weights, x_0 and inputs."""
    return speed.fused, speed.case(size, length)


def autoregressive(size: int, length: int) -> tuple[Callable, tuple]:
    """The trained autoregressive GRU; its weights are constants."""
    problem = problems.make("argru_seed0", length=length, seed=0, dtype="float32")
    assert problem.state_dim == size
    return lambda _: problem.f, (jnp.zeros(0), problem.initial_state, problem.inputs)


RECURRENCES = {"GRU": gru, "AR-GRU": autoregressive}


def by_scan(problem: str, size: int, length: int) -> Cell:
    """`lax.scan` of a recurrence."""

    def build() -> Program:
        make, arguments = RECURRENCES[problem](size, length)
        return speed.scan_with(make, 1), arguments

    return Cell(problem, "lax.scan", size, length, build)


def ours(problem: str, name: str, size: int, length: int) -> Cell:
    """One of our methods."""

    def build() -> Program:
        make, arguments = RECURRENCES[problem](size, length)
        return speed.evaluated_by(METHODS[name](), make), arguments

    def build_passes() -> Program:
        make, arguments = RECURRENCES[problem](size, length)

        def passes(weights: Any, start: Any, inputs: Any) -> tuple:
            how: Any = {"method": METHODS[name](), "backend": "associative"}
            sol = elk.evaluate(make(weights), start, inputs, **how)
            iterates = sol.plan.kind >= elk.PlanKind.newton_blocks
            iterated = jnp.where(iterates, sol.plan.passes, 0)
            return sol.num_iters - iterated, iterated

        return passes, arguments

    return Cell(problem, name, size, length, build, build_passes)


def in_kernel(name: str, size: int, length: int) -> Cell:
    """The default, or one step after the other, with its rollouts as one kernel."""
    plain = ours("GRU", "default", size, length)

    def build() -> Program:
        def run(weights: Any, start: Any, inputs: Any) -> jax.Array:
            evaluate = elk.evaluate if name == "default" else elk.sequential
            how: Any = {"kernel": "pallas"}
            return evaluate(speed.fused(weights), start, inputs, **how).states

        return run, speed.case(size, length)

    passes = plain.build_passes if name == "default" else None
    return plain._replace(program=f"{name}, kernel", build=build, build_passes=passes)


def as_published(name: str, size: int, length: int) -> Cell:
    """The published iteration to its tolerance, from zeros."""

    def solve(backend: str, weights: Any, start: Any, inputs: Any) -> tuple:
        options = published.Options(method=name, backend=backend)
        step = published.make_step(options, speed.fused(weights), start, inputs)
        guess = jnp.zeros((inputs.shape[0], start.shape[0]), start.dtype)
        return published.evaluate_until(step, guess, speed.NOISE)

    def build() -> Program:
        return lambda *args: solve("associative", *args)[0], speed.case(size, length)

    def build_passes() -> Program:
        # The same mathematics, in the order that the device is quick at.
        on_cpu = jax.default_backend() == "cpu"
        backend = "sequential" if on_cpu else "associative"
        return lambda *args: (0, solve(backend, *args)[1]), speed.case(size, length)

    return Cell("GRU", f"published {name}", size, length, build, build_passes)


def gradient_of(cell: Cell) -> Cell:
    """The gradient of a sum of squared states to the weights; forward pass included."""

    def build() -> Program:
        run, arguments = cell.build()

        def loss(weights: Any, start: Any, inputs: Any) -> jax.Array:
            return jnp.sum(run(weights, start, inputs) ** 2)

        return jax.grad(loss), arguments

    def build_passes() -> Program:
        assert cell.build_passes is not None
        forward, arguments = cell.build_passes()
        return lambda *args: (*forward(*args), sweeps_of(*args)), arguments

    def sweeps_of(weights: Any, start: Any, inputs: Any) -> jax.Array:
        """Passes of the backward sweeps, of this loss along the true trajectory."""
        step = speed.fused(weights)
        states = elk.sequential(step, start, inputs).states
        before = jnp.concatenate([start[None], states[:-1]])

        def function(weights: Any, x: Any, u: Any) -> Any:
            return speed.fused(weights[0])(x, u)

        path = Path(function, [weights], before, inputs, LOCAL, chunk=512)
        fitted, _ = fit_sweeps(path, 2 * states, reverse=True)
        return fitted.passes

    counted = build_passes if cell.build_passes is not None else None
    name = f"{cell.problem}, gradient"
    return cell._replace(problem=name, build=build, build_passes=counted)


def smoother(
    name: str,
    size: int,
    seen: int,
    length: int,
    needs: str = "jax",
    *,
    gaps: bool = False,
) -> Cell:
    """A Kalman smoother of D dimensions seen by E emissions."""

    def build() -> Program:
        arrays = kalman.case(size, 2)
        rng = np.random.default_rng(seen)
        arrays["H"] = np.float32(rng.normal(size=(seen, size)))
        arrays["y"] = np.float32(rng.normal(size=(length, seen)))
        return SMOOTHERS[name](arrays)

    # The dearer branch is for delicate models: it takes one step after the other.
    how: Any = {"needs": needs, "branches": "cheap", "gaps": gaps}
    problem = f"smoother, E = {seen}" + ", gaps" * gaps
    return Cell(problem, name, size, length, build, **how)


SMOOTHERS = {
    "lgssm_smoother": kalman.ours("auto"),
    "dynamax, parallel": kalman.dynamax(parallel=True),
    "cuthbert, parallel": kalman.cuthbert(parallel=True),
}


def linen(size: int, length: int) -> Cell:
    """The RNN layer of flax."""

    def build() -> Program:
        return speed.linen_rnn, speed.case(size, length)

    return Cell("GRU", "flax.linen.RNN", size, length, build, needs="flax")


def recurrences(size: int, length: int) -> list[Cell]:
    """Everything that evaluates the GRU at one size."""
    names = "quasi_deer", "deer", "quasi_elk"
    cells = [by_scan("GRU", size, length)]
    cells += [ours("GRU", name, size, length) for name in ("default", *names)]
    return cells + [as_published(name, size, length) for name in names]


CELLS = (
    *recurrences(32, LONG),
    *recurrences(8, LONG),
    ours("GRU", "elk", 4, SHORT),
    as_published("elk", 4, SHORT),
    by_scan("AR-GRU", 4, SHORT),
    ours("AR-GRU", "default", 4, SHORT),
    in_kernel("default", 32, LONG),
    in_kernel("sequential", 32, LONG),
    gradient_of(by_scan("GRU", 32, LONG)),
    gradient_of(ours("GRU", "default", 32, LONG)),
    smoother("lgssm_smoother", 4, 4, LONG),
    smoother("lgssm_smoother", 10, 50, SHORT),
    smoother("lgssm_smoother", 4, 4, LONG, gaps=True),
    smoother("lgssm_smoother", 10, 50, SHORT, gaps=True),
    linen(32, LONG),
    # Importing dynamax changes the global precision of products, so these come last.
    smoother("cuthbert, parallel", 4, 4, LONG, needs="cuthbert"),
    smoother("dynamax, parallel", 4, 4, LONG, needs="dynamax"),
)
