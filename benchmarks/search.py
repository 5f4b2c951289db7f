"""A random search for solutions that say more than is true.

    python -m benchmarks.search --cases 5000 --seed 0
    python -m benchmarks.search --small            # some 20 cases
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
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks.search_cases import (
    KINDS,
    MAX_ITERS,
    METHODS,
    Case,
    Program,
    arrays,
    draw_case,
    plan,
)
from benchmarks.search_report import FLAGS, Outcome, script, summary
from benchmarks.search_truth import Found, find_truth, flat, judge

DRAWS, SMALL_DRAWS, SMALL = 16, 4, 20
_AT_ONCE = 60


@cache
def solver(program: Program) -> Callable:
    """Compile `(p, x0, inputs, tol, noise, slope) -> states, status, step, C`."""

    @jax.jit
    def run(p: Any, x0: Any, inputs: Any, tol: Any, noise: Any, slope: Any) -> tuple:
        names = {"elk": elk, "jax": jax, "jnp": jnp, "noise": noise, "slope": slope}
        method = eval(program.expression, names)
        sol = elk.evaluate(
            lambda x, u: program.f(p, x, u),
            x0,
            inputs,
            method=method,
            tol=tol,
            max_iters=MAX_ITERS,
            keep=program.keep,
            **dict(program.options),
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


def options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} cases")
    parser.add_argument("--kinds", nargs="+", choices=KINDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--scripts", type=int, default=50, help="print at most so many")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Search from the command line; an interrupt ends it with what was found."""
    chosen = options(arguments)
    os.environ.setdefault("XLA_FLAGS", FLAGS)
    cases, draws = (SMALL, SMALL_DRAWS) if chosen.small else (chosen.cases, DRAWS)
    outcomes: list[Outcome] = []
    left = chosen.scripts
    try:
        for found in search(cases, chosen.seed, chosen.kinds, chosen.methods, draws):
            outcomes.append(found)
            if len(outcomes) % 500 == 0:
                print(f"{len(outcomes)} cases", file=sys.stderr, flush=True)
            if found.failures and left > 0:
                left -= 1
                print(script(found), flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    print(summary(outcomes, chosen.seed))
    print(f"{time.process_time():.0f} s of CPU")
    return int(any(outcome.failures for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
