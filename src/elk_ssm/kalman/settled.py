r"""Filters and smoothers that stop computing covariances that have come to rest.

Where steps repeat, P_t goes to the fixed point of its recursion, and from then on

    m_t   = A m_{t-1} + M c_t + K z_t          A = M F,  M = I - K H
    e_t   = G (F m_{t-1} + c_t) + W z_t        the innovations, one scalar at a time
    d_t   = E (d_{t+1} + m_{t+1} - F m_t - c_{t+1})

with constant matrices: many steps at once, in lanes that a power of A joins (see
`settling` for who decides when). The fixed point is the one of the recursion in
its own arithmetic: it moved by no more than its roundings for a while, and A is stable.

Derivatives are those of the recursion that is run to its end.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm._jax import batched_alike
from elk_ssm.kalman.backward import Marginals
from elk_ssm.kalman.forward import Filtered, filter_by_steps
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.places import num_groups
from elk_ssm.kalman.rauch_tung_striebel import rauch_tung_striebel
from elk_ssm.kalman.recurring import smooth_by_table, spreads_of, taken_from
from elk_ssm.kalman.repetition import (
    affine_by_powers,
    are_close,
    is_stable,
    leap_length,
    powers_of,
    repeats,
)
from elk_ssm.kalman.settled_filter import filter_settling
from elk_ssm.kalman.steps import Entry, transition_into
from elk_ssm.kalman.vector_updates import by_scalars
from elk_ssm.linalg.small import matmul, transpose
from elk_ssm.linalg.structure import Dense
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.recurring import Table
from elk_ssm.parallel.settling import (
    BLOCK,
    Settling,
    rows_at,
    run_settling,
    write_rows,
)

# Up to so many dimensions, of one model or of all of its groups, XLA compiles the scan
# on a CPU in one piece, and below so many steps there is nothing to leap.
_DENSE, _GROUPED, _SHORTEST = 2, 4, 128

# Means, covariances, and Cov(z_{t-1}, z_t | y) at entry t if asked for.
Smoothed: TypeAlias = tuple[Array, Array, Array | None]


def filter_quickly(problem: Problem) -> Filtered:
    """Filter step by step, or faster where the covariances settle."""
    return _filter(problem) if _may_settle(problem) else _filter_all(problem)


def smooth_quickly(problem: Problem, cross: bool) -> tuple[Filtered, Smoothed]:
    """Filter and smooth step by step, or faster where the covariances settle.

    Returns:
        What `filter_quickly` does; smoothed means, covariances and, if `cross`,
        Cov(z_{t-1}, z_t | y) at entry t.
    """
    if _may_settle(problem):
        return _smooth(problem, cross)
    return _smooth_all(problem, cross)


def look_back_all(
    problem: Problem, filtered: Filtered, cross: bool, backend: Any = "sequential"
) -> Smoothed:
    """Smooth by every step of the Rauch-Tung-Striebel recursion."""
    at_once = backend == "associative"
    how: Any = "at once" if at_once else "in turn"
    back = rauch_tung_striebel(problem, filtered, cross, how)
    # The transitions are found once for all that a prefix scan does with them.
    back = back.prepared() if at_once else back
    (steps, spreads), lagged = run(back, reverse=True, backend=backend)
    crosses = lagged.to_dense() if cross else None
    return filtered[0] + steps, spreads.to_dense(), crosses


def _may_settle(problem: Problem) -> bool:
    size, steps = problem.initial_mean.shape[0], problem.num_steps
    many = size > _DENSE or size * num_groups() > _GROUPED
    return many and steps >= _SHORTEST


def _filter_all(problem: Problem) -> Filtered:
    return filter_by_steps(problem, by_scalars)


def _smooth_all(problem: Problem, cross: bool) -> tuple[Filtered, Smoothed]:
    filtered = _filter_all(problem)
    return filtered, look_back_all(problem, filtered, cross)


@jax.custom_jvp
def _filter(problem: Problem) -> Filtered:
    return batched_alike(filter_settling(problem)[0], problem)


@_filter.defjvp
def _filter_jvp(primals: tuple, tangents: tuple) -> tuple:
    found, moved = jax.jvp(_filter_all, primals, tangents)
    return batched_alike(found, primals), moved


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _smooth(problem: Problem, cross: bool) -> tuple[Filtered, Smoothed]:
    smoothed_from = filter_settling(problem)
    filtered = smoothed_from[0]
    smoothed = _smooth_settling(problem, *smoothed_from, cross)
    return batched_alike((filtered, smoothed), problem)


@_smooth.defjvp
def _smooth_jvp(cross: bool, primals: tuple, tangents: tuple) -> tuple:
    found, moved = jax.jvp(partial(_smooth_all, cross=cross), primals, tangents)
    return batched_alike(found, primals), moved


@dataclass(frozen=True)
class _Smoothing(Settling):
    """Position j of the run is the step before the last less j.

    The outputs are distances from the filtered means, covariances, and those with the
    step before, kept with the later of both, if asked for.
    """

    problem: Problem
    means: Array
    recursion: Any
    cross: bool
    same: Array
    length: int

    @property
    def last(self) -> int:
        """The last step."""
        return self.problem.num_steps - 1

    def block(self, outputs: tuple, i: Array) -> tuple:
        low = self.last - i - BLOCK

        def step(state: Marginals, entry: Entry) -> tuple[Marginals, Any]:
            before, (_, lagged) = self.recursion.step(state, entry)
            return before, (before.means, before.covariances.array, lagged)

        entries = rows_at(self.recursion.entries, low + 1, BLOCK)
        start = _after(outputs, low + BLOCK)
        *found, lagged = lax.scan(step, start, entries, reverse=True)[1]
        return _write(outputs, (*found, lagged.array if self.cross else None), low)

    def still(self, outputs: tuple, i: Array, j: Array) -> Array:
        covs = outputs[1]
        return are_close(covs[self.last - 1 - i], covs[self.last - 1 - j])

    def rest(self, outputs: tuple, i: Array) -> tuple[tuple, Array]:
        step = self.last - i
        entry = jax.tree.map(lambda x: x[step], self.recursion.entries)
        E, _, _ = self.recursion.transition(entry)
        weights = transition_into(self.problem, entry).weights
        powers, cov = powers_of(E.array, self.length), _after(outputs, step).covariances
        return (powers, weights, cov.array), is_stable(powers)

    def leap(self, constant: tuple, outputs: tuple, i: Array) -> tuple:
        (powers, weights, cov), length = constant, self.length
        low = self.last - i - length
        here, later = (rows_at(self.means, low + k, length) for k in (0, 1))
        offsets = rows_at(self.problem.offsets, low + 1, length)
        gaps = later - (matmul(here, transpose(weights)) + offsets)
        drive = matmul(gaps, transpose(powers[0]))[::-1]
        start = _after(outputs, low + length).means
        steps = affine_by_powers(powers, drive, start)[:0:-1]
        spread = jnp.broadcast_to(cov, (length, *cov.shape))
        lagged = jnp.broadcast_to(matmul(powers[0], cov), spread.shape)
        return _write(outputs, (steps, spread, lagged if self.cross else None), low)


def _after(outputs: tuple, step: Array) -> Marginals:
    return Marginals(outputs[0][step], Dense(outputs[1][step]))


def _write(outputs: tuple, rows: tuple, low: Array) -> tuple:
    *moments, lagged = rows
    moved = write_rows(outputs[:2], tuple(moments), low)
    return *moved, write_rows(outputs[2], lagged, low + 1)


def _smooth_settling(
    problem: Problem,
    filtered: Filtered,
    held: Array,
    gains: Table | None,
    cross: bool,
) -> Smoothed:
    """Smooth, given of each step whether its filtered covariance is a copy.

    Also from which table it is.
    """
    recursion: Any = rauch_tung_striebel(problem, filtered, cross, "quickly")
    means, covs, _ = filtered
    # The same if the covariance of the step after is its own, and so are the entries.
    same = jnp.append(held[1:-1] & repeats(problem)[2:], False)[::-1]
    length = leap_length(problem.num_steps)
    how = _Smoothing(problem, means, recursion, cross, same, length)
    end = recursion.initial
    steps, begun = jnp.zeros_like(means).at[-1].set(end.means), jnp.zeros((), jnp.int32)
    spreads, crosses = jnp.zeros_like(covs), jnp.zeros_like(covs) if cross else None
    if gains is not None:
        tables = spreads_of(problem, filtered, gains, cross)
        steps = smooth_by_table(problem, means, tables, steps)
        spreads, crosses = taken_from(tables)
        begun = jnp.where(tables.table.holds, how.last, 0)
    # Not `at`, which copies what was taken from a table.
    is_last = jnp.arange(len(covs))[:, None, None] == how.last
    spreads = jnp.where(is_last, end.covariances.array, spreads)
    outputs = steps, spreads, crosses
    steps, spreads, crosses = run_settling(how, outputs, begun)
    return means + steps, spreads, crosses
