"""A random search for solutions that say more than is true.

    python -m benchmarks.search --cases 5000 --seed 0
    python -m benchmarks.search --small            # some 80 cases
    python -m benchmarks.search --kinds floor latch --methods deer jacobi

Programs (a recurrence, a method, T, D, a dtype, which states are kept) are drawn so
that every recurrence meets every method before a pair comes again; each program runs
some draws of numbers. `converged` must mean what `search_truth` says, `nonfinite` is
never said of a trajectory that the scan finds finite, returned states are finite, and
the first non-finite step is named. Every failure is printed with a script that shows
it; the exit code is 1 when there is one.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks.search_cases import KINDS, METHODS, NOISES, SLOPES, lengths
from benchmarks.search_draws import Draw, series
from benchmarks.search_truth import Failure, Found, find_truth, flat, judge

# Nearly all of the time is compilation.
FLAGS = "--xla_backend_optimization_level=0"
DRAWS, SMALL_DRAWS, SMALL = 16, 4, 80
MAX_ITERS = 100
_AT_ONCE = 400


class Program(NamedTuple):
    """What is compiled once."""

    f: Callable
    method: str
    length: int
    dimension: int
    dtype: str
    keep: str


class Case(NamedTuple):
    """One run: a program and its numbers."""

    program: Program
    kind: str
    draw: Draw
    tol: float
    noise: float
    slope: float
    seed: int


class Outcome(NamedTuple):
    """What a case came to."""

    case: Case
    status: elk.Status
    ratio: float
    failures: list[Failure]


def kinds_of(f: Callable, names: Any) -> list[str]:
    """Names of the kinds that run f."""
    return [name for name in names if KINDS[name].f is f]


def plan(
    rng: np.random.Generator, kinds: list[str], methods: list[str]
) -> Iterator[Program]:
    """Draw programs without end; an f with many kinds comes more often."""
    functions = list(dict.fromkeys(KINDS[name].f for name in kinds))
    weights = [-(-len(kinds_of(f, kinds)) // 3) for f in functions]
    repeated = np.repeat(np.arange(len(functions)), weights)
    pairs = [(i, method) for i in repeated for method in methods]
    while True:
        for place in rng.permutation(len(pairs)):
            number, method = pairs[place]
            yield _program(rng, functions[number], method, kinds)


def _program(rng: Any, f: Callable, method: str, kinds: list[str]) -> Program:
    dimensions = KINDS[kinds_of(f, kinds)[0]].dimensions
    return Program(
        f,
        method,
        int(rng.choice(lengths(method))),
        int(rng.choice(dimensions)),
        str(rng.choice(["float32", "float32", "float64"])),
        str(rng.choice(["all", "all", "all", "all", "last", "boundaries"])),
    )


def draw_case(program: Program, kinds: list[str], seed: int) -> Case:
    """Draw the numbers of one run."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(kinds_of(program.f, kinds)))
    draw = KINDS[kind].draw(rng, program.dimension, program.length)
    default = 1e-5 if program.dtype == "float32" else 1e-12
    tol = float(rng.choice([default, default, 1e-2, 1e-3]))
    noise, slope = float(rng.choice(NOISES)), float(rng.choice(SLOPES))
    return Case(program, kind, draw, tol, noise, slope, seed)


def arrays(case: Case) -> tuple[Any, Any, np.ndarray]:
    """Parameters, x_0 and inputs in the dtype of the run."""
    values = case.draw.p, case.draw.x0, series(**case.draw.recipe)
    return jax.tree.map(lambda x: np.asarray(x, case.program.dtype), values)


@cache
def solver(program: Program) -> Callable:
    """Compile `(p, x0, inputs, tol, noise, slope) -> states, status, step, C`."""

    @jax.jit
    def run(p: Any, x0: Any, inputs: Any, tol: Any, noise: Any, slope: Any) -> tuple:
        names = {"elk": elk, "jax": jax, "jnp": jnp, "noise": noise, "slope": slope}
        method = eval(METHODS[program.method], names)
        sol = elk.evaluate(
            lambda x, u: program.f(p, x, u),
            x0,
            inputs,
            method=method,
            tol=tol,
            max_iters=MAX_ITERS,
            keep=program.keep,
        )
        states = sol.states
        if program.keep == "last":
            states = jax.tree.map(lambda x: x[None], states)
        rows = jax.vmap(lambda x: flat(program.f, p, x)[1])(states)
        size = method.block_size if sol.plan is None else sol.plan.block_size
        return rows, sol.status, sol.failed_step, size

    return run


def solve(case: Case) -> Found:
    """Run a case."""
    program = case.program
    p, x0, inputs = arrays(case)
    with jax.enable_x64(program.dtype == "float64"):
        numbers = np.asarray([case.tol, case.noise, case.slope], program.dtype)
        rows, status, failed, size = solver(program)(p, x0, inputs, *numbers)
    states, times = np.asarray(rows), np.arange(program.length)
    if program.keep == "last":
        times = times[-1:]
    elif program.keep == "boundaries":
        times = times[int(size) - 1 :: int(size)]
    return Found(states, times, int(status), int(failed))


def run_case(case: Case) -> Outcome:
    """Run a case and judge it."""
    p, x0, inputs = arrays(case)
    exact = KINDS[case.kind].exact
    truth = find_truth(case.program.f, p, x0, inputs, case.tol, case.seed, exact)
    found = solve(case)
    ratio, failures = judge(truth, found, case.tol)
    return Outcome(case, elk.Status(found.status), ratio, failures)


def search(
    count: int,
    seed: int,
    kinds: list[str] | None = None,
    methods: list[str] | None = None,
    draws: int = DRAWS,
) -> Iterator[Outcome]:
    """Run `count` cases; the same seed gives the same ones."""
    kinds, methods = kinds or list(KINDS), methods or list(METHODS)
    programs = plan(np.random.default_rng(seed), kinds, methods)
    program = next(programs)
    for number in range(count):
        if number and number % draws == 0:
            program = next(programs)
        if number % (_AT_ONCE * draws) == 0:
            _forget_programs()
        yield run_case(draw_case(program, kinds, seed * 10_000_019 + number))


def _forget_programs() -> None:
    """Every compiled program maps memory, of which a process has a limited number."""
    jax.clear_caches()
    solver.cache_clear()


# What is printed ----------------------------------------------------------------------


_SCRIPT = """\
import os
os.environ["XLA_FLAGS"] = "{flags}"
import jax, jax.numpy as jnp, numpy as np, elk_ssm as elk
jax.config.update("jax_enable_x64", {double})
nan, inf = np.nan, np.inf

{series}
{f}
p = {p}
x0 = {x0}
inputs = series(**{recipe})
p, x0, inputs = jax.tree.map(
    lambda x: jnp.asarray(x, "{dtype}"), (p, x0, inputs),
    is_leaf=lambda x: isinstance(x, list))
noise, slope = {noise}, {slope}
step = lambda x, u: {name}(p, x, u)
sol = elk.evaluate(step, x0, inputs, method={method},
    tol={tol}, max_iters={max_iters}, keep="{keep}")
true = jax.lax.scan(lambda x, u: (step(x, u),) * 2, x0, inputs)[1]
print(elk.Status(int(sol.status)).name, "failed_step", sol.failed_step)
print("states", sol.states)
print("scan  ", true)
# {claims}
"""


def _literal(tree: Any) -> str:
    """Numbers as text, arrays as lists."""
    return repr(jax.tree.map(lambda x: np.asarray(x, float).tolist(), tree))


def script(case: Case, failures: list[Failure]) -> str:
    """Return a program that shows a case, with nothing but elk_ssm imported."""
    program, draw = case.program, case.draw
    claims = [f"{failure.claim}: {failure.detail}" for failure in failures]
    return _SCRIPT.format(
        flags=FLAGS,
        double=program.dtype == "float64",
        series=inspect.getsource(series),
        f=inspect.getsource(program.f),
        name=program.f.__name__,
        p=_literal(draw.p),
        x0=_literal(draw.x0),
        recipe=jax.tree.map(lambda x: np.asarray(x).tolist(), draw.recipe),
        dtype=program.dtype,
        noise=case.noise,
        slope=case.slope,
        method=METHODS[program.method],
        tol=case.tol,
        max_iters=MAX_ITERS,
        keep=program.keep,
        claims="\n# ".join(claims),
    )


def _table(title: str, names: list[str], failed: list[bool]) -> str:
    count = Counter(names)
    broken = Counter(name for name, bad in zip(names, failed) if bad)
    rows = [f"  {n:28} {count[n]:6} {broken[n]:6}" for n in sorted(count)]
    return "\n".join([f"{title:30} {'cases':>6} {'failed':>6}", *rows])


def summary(outcomes: list[Outcome], seed: int) -> str:
    """Counts by kind, method and status, the claims that fell, the worst ratio."""
    failed = [bool(outcome.failures) for outcome in outcomes]
    cases = [outcome.case for outcome in outcomes]
    claims = Counter(f.claim for outcome in outcomes for f in outcome.failures)
    statuses = Counter(outcome.status.name for outcome in outcomes)
    worst = max((outcome.ratio for outcome in outcomes), default=0.0)
    return "\n".join(
        [
            _table("kind", [case.kind for case in cases], failed),
            _table("method", [case.program.method for case in cases], failed),
            f"statuses: {dict(statuses)}",
            f"seed {seed}: {len(outcomes)} cases, {sum(failed)} failed; claims that "
            f"fell: {dict(claims)}; largest error over its bound {worst:.3g}",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Search from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} cases")
    parser.add_argument("--kinds", nargs="+", choices=KINDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--scripts", type=int, default=50, help="print at most so many")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("XLA_FLAGS", FLAGS)
    cases, draws = (SMALL, SMALL_DRAWS) if chosen.small else (chosen.cases, DRAWS)
    begin, outcomes, shown = time.time(), [], 0
    for outcome in search(cases, chosen.seed, chosen.kinds, chosen.methods, draws):
        outcomes.append(outcome)
        if outcome.failures and shown < chosen.scripts:
            shown += 1
            case = outcome.case
            heading = f"{case.kind}, {case.program.method}, seed {case.seed}"
            text = script(case, outcome.failures)
            print(f"--- {heading} ---\n{text}", flush=True)
    print(summary(outcomes, chosen.seed))
    print(f"{time.time() - begin:.0f} s")
    return int(any(outcome.failures for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
