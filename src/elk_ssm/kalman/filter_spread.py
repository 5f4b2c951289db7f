r"""The Kalman filter with time spread over the devices of a mesh axis.

Every device reduces its steps to one element, takes what enters from the others, and
filters its own steps from there; see `spread`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.filter_steps import (
    combine_of,
    filter_element,
    filter_elements,
    filter_sequential,
    refine,
    static_emission,
)
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.runs import no_run
from elk_ssm.kalman.spread import enter, join, no_steps, prefixes, previous
from elk_ssm.linalg.structure import Operator
from elk_ssm.parallel.backend import Backend, by_backend
from elk_ssm.parallel.mesh import Spread, on_mesh
from elk_ssm.parallel.time_axis import TimeAxis

Moments = tuple[Array, Array]


def filter_on_mesh(
    problem: Problem, backend: Backend, spread: Spread
) -> tuple[Array, Array, Array]:
    """Return the log likelihood, and the filtered means and covariances."""

    def piece(problem: Problem) -> tuple[Any, Array]:
        *_, (means, covs, terms) = filter_piece(spread.axis, problem, backend)
        return (means, covs), spread.axis.total(jnp.sum(terms))

    (means, covs), evidence = run_pieces(spread, piece, problem)
    return evidence, means, covs


def run_pieces(
    spread: Spread, body: Callable[[Problem], tuple[Any, Any]], problem: Problem
) -> tuple[Any, Any]:
    """Run a program on every device's piece of a problem; results as `on_mesh`."""
    axis, length = spread.axis, problem.num_steps
    every = dict(zip(problem._fields[:9], problem))
    timed = {name: x for name, x in every.items() if _varies(name, x)}
    common = {name: x for name, x in every.items() if name not in timed}

    def on_device(timed: dict, common: dict) -> tuple[Any, Any]:
        return body(piece_of(axis, Problem(**timed, **common), axis.exists(length)))

    return on_mesh(spread, on_device, timed, common, length)


def piece_of(axis: TimeAxis, problem: Problem, exists: Array | None) -> Problem:
    """Say of a problem that it is this device's piece of a longer one."""
    observed = problem.observed
    if exists is not None:
        observed = observed & exists[:, None]
    begins = axis.place == 0
    return problem._replace(observed=observed, begins=begins, exists=exists)


def _varies(name: str, x: Any) -> bool:
    if isinstance(x, Operator):
        return x.varies
    return name in ("offsets", "values", "observed")


def filter_piece(
    axis: TimeAxis, problem: Problem, backend: Backend
) -> tuple[Any, Moments, tuple[Array, Array, Array]]:
    """Filter this device's piece of a series.

    Returns:
        Its steps as one element; the moments before its first step; its means,
        covariances and likelihood terms.
    """

    def sequential(problem: Problem) -> tuple:
        whole = _compose(problem)
        entered = enter(axis, whole, "sequential")
        start = entered.b, entered.C
        return whole, start, filter_sequential(problem, start)

    def associative(problem: Problem) -> tuple:
        elements: Any = filter_elements(problem)
        up_to = prefixes(elements)
        whole = jax.tree.map(lambda x: x[-1], up_to)
        entered = enter(axis, whole, "associative")
        joined, start = join(entered, up_to), (entered.b, entered.C)
        before = previous(start, (joined.b, joined.C))
        return whole, start, refine(problem, *before)

    return by_backend(backend, sequential, associative, problem)


def _compose(problem: Problem) -> Any:
    """Reduce all steps of this device to one element."""
    combine, whole = combine_of(problem), static_emission(problem)

    def append(run: Any, index: Array) -> tuple[Any, None]:
        return combine(run, filter_element(problem, whole, index)), None

    like = problem.initial_mean
    empty = no_steps(like, diagonal=True) if problem.is_diagonal else no_run(like)
    return lax.scan(append, empty, jnp.arange(problem.num_steps))[0]
