r"""Random recurrences under random methods: a status means what it says.

A case of the random search (`search`), whose judge this is, of `fuzz_patchwork`. What
compiles is drawn from a short list, the numbers freely. The gradient of a random
functional is held against the one through `lax.scan`: its bound is what that gradient
itself moves by when every state is struck by 10 tol of its scale.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import elk_ssm as elk
from benchmarks import search
from benchmarks.fuzz_methods import MORE_METHODS
from benchmarks.fuzz_patchwork import OPTIONS, PARTS, compose, patchwork
from benchmarks.search_cases import METHODS, NOISES, SLOPES, Case, Program
from benchmarks.search_report import script
from benchmarks.search_truth import Failure, scan_program

TOLERANCES = {"float32": (1e-5, 1e-3), "float64": (1e-12, 1e-9, 1e-5)}
_LENGTHS, _KEEPS = (7, 64, 200), ("all", "all", "last", "boundaries")
_GRADIENTS = ("auto", "deer", "quasi_deer", "elk", "jacobi, blocks", "picard")


def programs() -> list[Program]:
    """Every method; lengths, sizes, dtypes, options and what is kept go round."""
    found = []
    for turn, method in enumerate([*METHODS, *MORE_METHODS]):
        length = _LENGTHS[turn % 3]
        options: tuple = (("backend", "associative"),) if turn % 6 == 4 else ()
        if turn % 7 == 3:
            options += (("history", 4),)
        dtype = ("float32", "float64")[(turn // 2) % 2]
        keep = _KEEPS[turn % 4] if length > 32 else "all"
        size = (1, 3, 2)[(turn // 3) % 3]
        found.append(Program(patchwork, method, length, size, dtype, keep, options))
    return found


PROGRAMS = programs()


@st.composite
def cases(draw: Any, chosen: list[Program] | None = None) -> Case:
    """Draw a case; simpler parts, units, methods and numbers come first."""
    program = draw(st.sampled_from(chosen or PROGRAMS))
    size = program.dimension
    choices = {name: draw(st.sampled_from(values)) for name, values in OPTIONS.items()}
    part, exponent = st.sampled_from(PARTS), st.integers(-6, 6)
    choices["parts"] = draw(st.lists(part, min_size=size, max_size=size))
    choices["units"] = draw(st.lists(exponent, min_size=size, max_size=size))
    choices["seed"] = draw(st.integers(0, 2**31 - 1))
    return Case(
        program,
        "patchwork",
        compose(size, program.length, choices),
        draw(st.sampled_from(TOLERANCES[program.dtype])),
        draw(st.sampled_from((*NOISES, 1.0))),
        draw(st.sampled_from(SLOPES)),
        choices["seed"],
    )


class Verdict(NamedTuple):
    """The largest error over its bound, what fell, how it ended, what shows it."""

    ratio: float
    failures: list[str]
    ended: str
    script: str


def check(case: Case) -> Verdict:
    """Run a case and judge it."""
    outcome = search.run_case(case)
    failures = [f"{f.claim}: {f.detail}" for f in outcome.failures]
    text = script(outcome) if failures else ""
    return Verdict(outcome.ratio, failures, outcome.status.name, text)


def gradient_cases() -> st.SearchStrategy[Case]:
    """Cases whose gradients are compared."""
    return cases(gradient_programs())


def gradient_programs() -> list[Program]:
    """Short series in float64, one for each way of solving the linear recursion."""
    ways = ("auto", "sequential", "blocks", "short_blocks", "parallel", "auto")
    return [
        Program(patchwork, m, 24, 2, "float64", "all", (("adjoint", way),))
        for m, way in zip(_GRADIENTS, ways)
    ]


@cache
def _through_evaluate(program: Program) -> Any:
    @jax.jit
    def run(p: Any, x0: Any, inputs: Any, weights: Any, noise: Any, tol: Any) -> Any:
        names = {"elk": elk, "jax": jax, "jnp": jnp, "noise": noise}
        method = eval(program.expression, names)

        def loss(p: Any, x0: Any, inputs: Any) -> Any:
            sol = elk.evaluate(
                lambda x, u: patchwork(p, x, u), x0, inputs, method=method, tol=tol,
                **dict(program.options),
            )  # fmt: skip
            return jnp.sum(weights * sol.states), sol.status

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(p, x0, inputs)

    return run


@jax.jit
def _through_scan(p: Any, x0: Any, inputs: Any, weights: Any, moves: Any) -> Any:
    def loss(p: Any, x0: Any, inputs: Any) -> Any:
        def body(x: Any, entry: Any) -> Any:
            x = patchwork(p, x + entry[1], entry[0])
            return x, x

        return jnp.sum(weights * jax.lax.scan(body, x0, (inputs, moves))[1])

    return jax.grad(loss, argnums=(0, 1, 2))(p, x0, inputs)


def _in_units(case: Case, gradient: Any) -> list[np.ndarray]:
    """The leaves of a gradient, times the units of what it is by."""
    p, x0, inputs = jax.tree.map(np.asarray, gradient)
    units = case.draw.p["s"]
    return [
        np.asarray(x)
        for x in (*(p | {"s": p["s"] * units}).values(), x0 * units, inputs)
    ]


def check_gradient(case: Case) -> Verdict:
    """Compare the gradient of sum_t w_t x_t, w in units of the states."""
    program, rng = case.program, np.random.default_rng([case.seed, 2])
    values = search.arrays(case)
    with jax.enable_x64(True):
        states = np.asarray(scan_program(patchwork)(*values))
        if not (np.abs(states) < 1e100).all():
            return Verdict(0.0, [], "not finite", "")
        full = np.maximum(np.abs(np.concatenate([values[1][None], states[:-1]])), 1e-12)
        weights = rng.normal(size=states.shape) / np.maximum(
            np.abs(states).max(0), 1e-12
        )
        found, status = _through_evaluate(program)(
            *values, weights, case.noise, case.tol
        )
        if int(status) != elk.Status.converged:
            return Verdict(0.0, [], elk.Status(int(status)).name, "")
        right = _through_scan(*values, weights, 0 * full)
        signs = rng.choice([-1.0, 1.0], size=(3, *full.shape))
        moved = [
            _through_scan(*values, weights, 10 * case.tol * s * full) for s in signs
        ]
    ratio, failures = 0.0, []
    every = [_in_units(case, gradient) for gradient in (found, right, *moved)]
    # Terms of the size of the largest derivative, and of the functional, may cancel.
    sizes = [np.abs(b).max() for b in every[1] if np.isfinite(b).all()]
    floor = 1e-13 * (states.size + max(sizes, default=0))
    for place, (a, b, *others) in enumerate(zip(*every)):
        if not np.isfinite(b).all():
            continue
        apart = np.max([np.abs(c - b) for c in others])
        bound = 10 * apart + 1e-10 * np.abs(b).max() + floor
        error = np.abs(a - b).max()
        here = float(error / bound) if np.isfinite(error) else np.inf
        ratio = max(ratio, here)
        if here > 1:
            failures.append(
                f"gradient {place}: off by {error:.3g}, allowed {bound:.3g}"
            )
    text = ""
    if failures:
        outcome = search.Outcome(
            case, elk.Status.converged, ratio, [Failure("gradient", ratio, failures[0])]
        )
        text = script(outcome)
    return Verdict(ratio, failures, "converged", text)
