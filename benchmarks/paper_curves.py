"""The errors of every iterate, published and ours, from one guess.

What was published is iterated by `benchmarks.published` from a guess of zero in
float32, with the resets of the authors' code, and ours from the same guess. Iterate 0
is the guess. Ours have one more than `elk.iterates` counts: rolling blocks out from the
guess is a pass too.

The measures are those of arXiv 2407.19115: the mean absolute deviation (MAD) from the
trajectory of `lax.scan`, which is taken in float64, and the iterations until it is
below 0.1. Beside it the largest error anywhere, which a mean hides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import published
from benchmarks.problems import Problem

THRESHOLD = 0.1


class Case(NamedTuple):
    """A problem, and its trajectory by `lax.scan`, `(T, D)`."""

    problem: Problem
    reference: jax.Array


def case(problem: Problem) -> Case:
    """Evaluate the trajectory once."""
    return Case(problem, jnp.asarray(problem.reference(), jnp.float32))


class Curve(NamedTuple):
    """What the iterates 0, ..., n of one run were off by.

    Attributes:
        mad: mean absolute deviation of each, `(n + 1,)`, not finite where it is not.
        largest: largest absolute error of each, infinite for one that is not finite.
        states: the last iterate, `(T, D)`.
    """

    mad: np.ndarray
    largest: np.ndarray
    states: Any


def errors(states: jax.Array, reference: jax.Array, observe: int | None) -> tuple:
    """MAD of what the paper looks at, and the largest error anywhere."""
    error = jnp.abs(states - reference)
    seen = error if observe is None else error[:, observe]
    # A sum: jitted max can drop NaNs on CPU.
    finite = jnp.isfinite(jnp.sum(error))
    return jnp.sum(seen) / seen.size, jnp.where(finite, jnp.max(error), jnp.inf)


def step_of(problem: Problem, method: str, reset: str) -> Callable:
    """One published iteration on a problem, by sequential scans."""
    options = published.Options(method, "sequential", reset)
    return published.make_step(
        options, problem.f, problem.initial_state, problem.inputs
    )


def follow(
    case: Case,
    method: str,
    noise: float = jnp.inf,
    *,
    limit: int | None = None,
    until: float = 1e-4,
    reset: str = "none",
) -> Curve:
    """Iterate what was published until the MAD is below `until`, T times at most."""
    problem, reference = case
    step, most = step_of(problem, method, reset), limit or problem.length

    # The reference is an argument: XLA would fold what depends on a constant.
    @jax.jit
    def run(reference: jax.Array) -> tuple:
        def unfinished(carry: tuple) -> jax.Array:
            _, count, mads, _ = carry
            return ~(mads[count] < until) & (count < most)

        def body(carry: tuple) -> tuple:
            states, count, mads, larges = carry
            states, count = step(states, noise), count + 1
            mad, large = errors(states, reference, problem.observe)
            return states, count, mads.at[count].set(mad), larges.at[count].set(large)

        guess = jnp.zeros_like(reference)
        mad, large = errors(guess, reference, problem.observe)
        none = jnp.full(most + 1, jnp.nan, jnp.float32)
        start = (guess, 0, none.at[0].set(mad), none.at[0].set(large))
        return jax.lax.while_loop(unfinished, body, start)

    states, count, mads, larges = run(reference)
    last = int(count) + 1
    return Curve(np.asarray(mads[:last]), np.asarray(larges[:last]), states)


def follow_ours(case: Case, method: Any, passes: int) -> Curve:
    """The same of our iterates, from the same guess."""
    problem, reference = case

    @jax.jit
    def run(reference: jax.Array) -> tuple:
        guess = jnp.zeros_like(reference)
        found = elk.iterates(
            problem.f,
            problem.initial_state,
            problem.inputs,
            length=problem.length,
            num_iters=passes,
            method=method,
            guess=guess,
        )
        every = jnp.concatenate([guess[None], found])
        measure = partial(errors, reference=reference, observe=problem.observe)
        return *jax.lax.map(measure, every), found[-1]

    mads, larges, last = run(reference)
    return Curve(np.asarray(mads), np.asarray(larges), last)


def reached(curve: Curve, threshold: float = THRESHOLD) -> int | None:
    """Iterations until the MAD is below a threshold, None where it was not."""
    below = np.flatnonzero(curve.mad < threshold)
    return int(below[0]) if below.size else None


def counts(case: Case, method: str, noises: jax.Array, limit: int) -> np.ndarray:
    """`reached` for many constant noises side by side, -1 where it was not."""
    problem, reference = case
    step = step_of(problem, method, "none")

    def count(reference: jax.Array, noise: jax.Array) -> jax.Array:
        return published.iterations_to_mad(
            step,
            jnp.zeros_like(reference),
            reference,
            noise,
            threshold=THRESHOLD,
            max_iters=limit,
            observe=problem.observe,
        )

    return np.asarray(jax.jit(jax.vmap(count, (None, 0)))(reference, noises))


def depth(passes: int, length: int, block: int = 1) -> float:
    """Depth of so many passes, in steps of a sequential evaluation, over T."""
    return float(passes * (block + 2 * np.log2(length / block)) / length)
