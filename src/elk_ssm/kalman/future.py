r"""The two-filter smoother: the filtered moments, conditioned on the future.

What y_{t+1:T-1} say about z_t is a likelihood that no prior enters: D scalar
observations for a dense model (see `runs`), eta and J for a diagonal one. Backwards,

    p(z_t | z_{t-1}, y_{t:T-1}) = N(A_t z_{t-1} + b_t, C_t)

comes from conditioning the dynamics into t on y_t and on the future of t, and leaves
the future as seen from z_{t-1}. The smoothed moments are N(m_t, P_t) conditioned on the
future of t, and Cov(z_{t-1}, z_t | y) = P^s_{t-1} A_t'.

Nothing is divided by a predicted covariance, which the smoother of Rauch, Tung and
Striebel inverts: F and Q may be singular, a gap may be long, and a state that forgets
its past exponentially fast is not reconstructed from its successor.
"""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.diagonal_updates import (
    condition_element_diagonal,
    condition_evidence_diagonal,
)
from elk_ssm.kalman.elements import FilterElement
from elk_ssm.kalman.filter_steps import (
    combine_of,
    filter_elements,
    rows_of,
    scale_of,
    static_emission,
    transition_into,
)
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.runs import Run, as_emission, compress, condition_run, no_rows
from elk_ssm.kalman.scalar_updates import WhitenedEmission, condition_carefully
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.prefix import prefix_scan
from elk_ssm.parallel.time_axis import TimeAxis

Evidence: TypeAlias = Any


class Link(NamedTuple):
    """p(z_t | z_{t-1}, y_{t:T-1}) = N(z_t; A z_{t-1} + b, C), diagonal or dense."""

    A: Array
    b: Array
    C: Array


def link(
    problem: Problem,
    whole: WhitenedEmission | None,
    step: Array,
    future: Evidence,
) -> tuple[Link, Evidence]:
    """Return the link into a step, and the future as seen from the step before it.

    Args:
        problem: the model and its data.
        whole: its decorrelated emission, if static.
        step: t.
        future: what y_{t+1:T-1} say about z_t.
    """
    transition, scale = transition_into(problem, step), scale_of(problem, step)
    emission = rows_of(problem, whole, step)
    if problem.is_diagonal:
        here = condition_element_diagonal(*transition, emission, scale)
        return _link_diagonal(here, *future)
    run, own = condition_run(*transition, emission, scale)
    run, later = condition_run(*run, as_emission(future))
    return Link(*run), compress(jnp.concatenate([own, later]))


def _link_diagonal(
    here: FilterElement, eta: Array, J: Array
) -> tuple[Link, tuple[Array, Array]]:
    b, C = condition_evidence_diagonal(here.b, here.C, eta, J)
    gain = here.A / (1.0 + here.C * J)
    before = here.eta + gain * (eta - J * here.b), here.J + gain * J * here.A
    return Link(gain, b, C), before


def see(
    problem: Problem,
    mean: Array,
    cov: Array,
    future: Evidence,
) -> tuple[Array, Array]:
    """Condition filtered moments on the future."""
    if problem.is_diagonal:
        return condition_evidence_diagonal(mean, cov, *future)
    emission = as_emission(future)
    return condition_carefully(mean, cov, emission, unrolled=False)[:2]


def no_future(problem: Problem) -> Evidence:
    """Return what stands after the last step."""
    zero = jnp.zeros_like(problem.initial_mean)
    return (zero, zero) if problem.is_diagonal else no_rows(zero)


def evidence_of(element: Run | FilterElement) -> Evidence:
    """Return what a run of steps says about the state before it."""
    if isinstance(element, Run):
        return element.rows
    return element.eta, element.J


def look_back(
    problem: Problem, means: Array, covs: Array, future: Evidence
) -> tuple[Evidence, tuple[Array, Array, Array]]:
    """Go backwards through all steps, from what comes after the last one.

    Returns:
        What all steps say about the state before the first, and of every step the
        smoothed mean and covariance and A of the link into it.
    """
    whole = static_emission(problem)

    def step(future: Evidence, filtered: tuple) -> tuple[Evidence, tuple]:
        index, mean, cov = filtered
        smoothed = see(problem, mean, cov, future)
        into, before = link(problem, whole, index, future)
        return before, (*smoothed, into.A)

    entries = jnp.arange(problem.num_steps), means, covs
    return lax.scan(step, future, entries, reverse=True)


def futures(problem: Problem, later: Any) -> tuple[Evidence, Evidence]:
    """Return what `look_back` carries, by an associative scan.

    Args:
        problem: the model and its data.
        later: the element of all that comes after the last step, `None` for nothing.

    Returns:
        What all steps say about the state before the first, and the future of each.
    """
    combine = combine_of(problem)
    from_here = prefix_scan(
        lambda later, earlier: combine(earlier, later),
        filter_elements(problem),
        reverse=True,
    )
    last = no_future(problem)
    if later is not None:
        last = evidence_of(later)
        many = jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), later, from_here)
        from_here = combine(from_here, many)
    seen = evidence_of(from_here)
    after = jax.tree.map(lambda x, y: jnp.concatenate([x[1:], y[None]]), seen, last)
    return jax.tree.map(lambda x: x[0], seen), after


def look_back_everywhere(
    problem: Problem, means: Array, covs: Array, later: Any = None
) -> tuple[Evidence, tuple[Array, Array, Array]]:
    """Return what `look_back` does, every step at once from the associative scan."""
    before, after = futures(problem, later)
    whole = static_emission(problem)

    def one(index: Array, mean: Array, cov: Array, future: Evidence) -> tuple:
        into, _ = link(problem, whole, index, future)
        return (*see(problem, mean, cov, future), into.A)

    steps = jnp.arange(problem.num_steps)
    return before, jax.vmap(one)(steps, means, covs, after)


def later_run(problem: Problem, axis: TimeAxis, whole: Any, backend: Backend) -> Any:
    """Combine the runs of all later devices; zeros on the last one."""
    combine = combine_of(problem)
    nothing = jax.tree.map(jnp.zeros_like, whole)
    return axis.reversed().entering(
        lambda later, earlier: combine(earlier, later), whole, nothing, backend
    )


def links_sequential(problem: Problem) -> Link:
    """Return the links into every step by one scan; that into step 0 has A = 0."""
    whole = static_emission(problem)

    def step(future: Evidence, index: Array) -> tuple[Evidence, Link]:
        into, before = link(problem, whole, index, future)
        return before, into

    steps = jnp.arange(problem.num_steps)
    return lax.scan(step, no_future(problem), steps, reverse=True)[1]


def links_associative(problem: Problem) -> Link:
    """Return the same by an associative scan."""
    one = partial(link, problem, static_emission(problem))
    after = futures(problem, None)[1]
    return jax.vmap(lambda *given: one(*given)[0])(jnp.arange(problem.num_steps), after)
