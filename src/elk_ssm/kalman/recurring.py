r"""Filters and smoothers that do not compute again what they have computed before.

Covariances and gains depend on the model and on which emissions are missing, not on
what the others are. Where some are missing now and then, or matrices change but recur,
and a filter forgets, few of them differ (see `parallel/recurring.py`). A table holds

    P, K, S^{-1}    of a filter, with m = m^p + K e and the term
                    -1/2 (e' S^{-1} e + log |2 pi S|)
    E               of a smoother, with d_t = E_t (d_{t+1} + m_{t+1} - m^p_{t+1})
    P^s             of a smoother

so that a step is a few products of matrices and vectors. Gains are found by one factor,
covariances in Joseph's form (see `vector_updates`). Where there is too little noise for
that, and in a batch, every step is computed.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.gains import gain_by_factor
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.repetition import difference_of, rounding_of
from elk_ssm.kalman.steps import entry_at, transition_into
from elk_ssm.kalman.vector_updates import alone_on_cpu
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.parallel.kinds import Distinct, kinds_of
from elk_ssm.parallel.recurring import Recurring, Table, tabulate

# How many states a smoother's table holds at most.
_CAPACITY = 16384


class Spread(NamedTuple):
    """A smoother's P^s_t and E_t P^s_{t+1}; `which` says which E_t."""

    cov: Array
    lagged: Array | None
    which: Array


class Spreads(NamedTuple):
    """The smoother's tables: of E, `(n, D, D)`, of which each step has, and of P^s."""

    back: Array
    which: Array
    table: Table


def spreads_of(problem: Problem, filtered: tuple, gains: Table, cross: bool) -> Spreads:
    """Return the tables of a smoother.

    Args:
        problem: The model and its data.
        filtered: Filtered means and covariances.
        gains: What they came from.
        cross: Whether E_t P^s_{t+1} are asked for.
    """
    tables = partial(_spreads, cross=cross), partial(_no_spreads, cross=cross)
    return alone_on_cpu(*tables)(problem, filtered[:2], gains)


def smooth_by_table(
    problem: Problem, means: Array, spreads: Spreads, distances: Array
) -> Array:
    """Write how far smoothed means are from filtered ones, if the tables hold.

    Args:
        problem: The model and its data.
        means: Filtered ones, `(T, D)`.
        spreads: The tables.
        distances: `(T, D)`, those of the last step known.
    """
    back, which, table = spreads

    def step(carry: tuple) -> tuple:
        t, later, distances = carry
        into = transition_into(problem, entry_at(problem, t + 1))
        gap = means[t + 1] - (matvec(into.weights, means[t]) + into.offset)
        here = matvec(back[which[t]], later + gap)
        return t - 1, here, distances.at[t].set(here)

    first = jnp.where(table.holds, problem.num_steps - 2, -1)
    start = first, jnp.zeros_like(means[0]), distances
    return lax.while_loop(lambda c: c[0] >= 0, step, start)[2]


def taken_from(spreads: Spreads) -> tuple[Array, Array | None]:
    """Return P^s of every step, and E_{t-1} P^s_t at entry t, if the tables hold."""
    states, slots = spreads.table.states, spreads.table.slots[::-1]
    lagged = states.lagged
    return states.cov[slots], None if lagged is None else lagged[jnp.roll(slots, 1)]


# --------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class _Smoother(Recurring):
    """Position i is the step before the last less i; at i = 0 it is the last."""

    end: Array
    back: Array
    left: Array
    which: Array
    kinds: Array
    rounding: float
    cross: bool

    def step(self, before: Spread, i: Array) -> tuple[Spread, Array]:
        # Behind the transitions is one of zeros.
        which = jnp.where(i == 0, len(self.back) - 1, self.which[-1 - i])
        E, L = self.back[which], self.left[which]
        lagged = matmul(E, before.cov)
        cov = symmetrize(matmul(lagged, transpose(E))) + L
        cov = jnp.where(i == 0, self.end, cov)
        state = Spread(cov, lagged if self.cross else None, which)
        return state, jnp.ones((), bool)

    def difference(self, one: Spread, other: Spread) -> Array:
        return difference_of(one.cov, other.cov)

    def scales(self, state: Spread) -> Array:
        return jnp.sqrt(jnp.diagonal(state.cov))

    def adjoint(self, state: Spread, i: Array, direction: Array) -> Array:
        return matvec(transpose(self.back[state.which]), direction)


def _spreads(problem: Problem, filtered: tuple, gains: Table, cross: bool) -> Spreads:
    """Find E and L of all that differ, and from them the table."""
    covs = filtered[1]
    back, _, table = _no_spreads(problem, filtered, gains, cross)
    varying = {k: problem.varying.get(k) for k in ("weights", "covariance")}
    into = jnp.roll(kinds_of(varying, problem.num_steps), -1)
    # From the last step there is no transition; any stands in.
    pairs = (x.at[-1].set(x[0]) for x in (gains.slots, into))
    distinct = Distinct.of(tuple(pairs), len(back) - 1)

    def transition(carry: tuple) -> tuple:
        k, back, left, _ = carry
        t = distinct.first[k]
        entry = entry_at(problem, t + 1)
        F = transition_into(problem, entry).weights
        Q = problem._replace(**entry.varying).covariance
        E, L, good = gain_by_factor(covs[t], F, Q, jnp.ones(F.shape[:1], bool))
        return k + 1, back.at[k].set(E), left.at[k].set(L), good

    start = jnp.zeros((), jnp.int32), back, back, gains.holds
    total = jnp.where(distinct.total < len(back), distinct.total, 0)
    _, back, left, good = lax.while_loop(
        lambda c: c[3] & (c[0] < total), transition, start
    )
    wanted = good & (total > 0)
    kinds = distinct.which[::-1]
    end = filtered[1][-1]
    rounding = rounding_of(end)
    how = _Smoother(end, back, left, distinct.which, kinds, rounding, cross)
    return Spreads(back, distinct.which, tabulate(how, table.states, wanted))


def _no_spreads(
    problem: Problem, filtered: tuple, gains: Table, cross: bool
) -> Spreads:
    covs, steps = filtered[1], problem.num_steps
    rows = jnp.zeros((min(_CAPACITY, steps // 6), *covs.shape[1:]), covs.dtype)
    which = jnp.zeros(steps, jnp.int32)
    states = Spread(rows, rows if cross else None, which[: len(rows)])
    table = Table(states, which, jnp.zeros((), bool))
    back = jnp.zeros((len(gains.states.cov) + 1, *covs.shape[1:]), covs.dtype)
    return Spreads(back, which, table)
