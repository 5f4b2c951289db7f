"""The filter of steps that repeat, by blocks and leaps; equations in `settled`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.forward import Filtered, filter_of
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.recurring_filter import filter_by_table, gains_of
from elk_ssm.kalman.repetition import (
    affine_by_powers,
    are_close,
    is_stable,
    leap_length,
    powers_of,
    repeats,
)
from elk_ssm.kalman.roundings import regular_log_normal
from elk_ssm.kalman.scalar_updates import (
    Rows,
    condition_row,
    over_rows,
    project,
)
from elk_ssm.kalman.steps import Entry, Steps, propagate, transition_into
from elk_ssm.kalman.vector_updates import in_turn
from elk_ssm.linalg.small import matmul, matvec, transpose
from elk_ssm.parallel.recurring import Table
from elk_ssm.parallel.settling import (
    BLOCK,
    Settling,
    rows_at,
    run_settling,
    write_rows,
)


class _Gains(NamedTuple):
    """What a filter's step is once its covariance P rests.

    `means` `(D, D + E)` and `innovations` `(E, D + E)` act on the predicted mean and
    the values; `powers` are A, A^2, A^4, ...; a step is `entry` but for its data.
    """

    cov: Array
    means: Array
    innovations: Array
    variances: Array
    powers: Array
    entry: Entry


@dataclass(frozen=True)
class _Filtering(Settling):
    """The outputs are means, covariances, terms, and which covariances are copies."""

    recursion: Any
    same: Array
    length: int

    def block(self, outputs: tuple, i: Array) -> tuple:
        start, entries = _state_before(outputs, i), self.recursion.entries
        found = lax.scan(self.recursion.step, start, rows_at(entries, i, BLOCK))[1]
        return write_rows(outputs, (*found, jnp.zeros(BLOCK, bool)), i)

    def still(self, outputs: tuple, i: Array, j: Array) -> Array:
        return are_close(outputs[1][i], outputs[1][j])

    def rest(self, outputs: tuple, i: Array) -> tuple[_Gains, Array]:
        cov = _state_before(outputs, i)[1]
        entry = jax.tree.map(lambda x: x[i], self.recursion.entries)
        gains = _gains(self.recursion, cov, entry, self.length)
        return gains, is_stable(gains.powers)

    def leap(self, constant: _Gains, outputs: tuple, i: Array) -> tuple:
        length, start = self.length, _state_before(outputs, i)[0]
        varying = rows_at(self.recursion.entries.varying, i, length)
        means, terms = _filter_many(self.recursion, constant, varying, start)
        covs = jnp.broadcast_to(constant.cov, (length, *constant.cov.shape))
        return write_rows(outputs, (means, covs, terms, jnp.ones(length, bool)), i)


def filter_settling(problem: Problem) -> tuple[Filtered, Array, Table | None]:
    """Filter, and say of each step whether it has the covariance of the one before.

    Also from which table it has it, if it is from one.
    """
    steps, none = problem.num_steps, jnp.zeros_like(problem.initial_mean)
    how = _Filtering(filter_of(problem, in_turn), repeats(problem), leap_length(steps))
    means = jnp.zeros((steps, *none.shape), none.dtype)
    terms, held, begun = means[:, 0], jnp.zeros(steps, bool), jnp.zeros((), jnp.int32)
    gains = gains_of(problem)
    if gains is None:
        covs = jnp.zeros((*means.shape, *none.shape), none.dtype)
    else:
        means, terms = filter_by_table(how.recursion, gains, means, terms)
        covs, begun = gains.states.cov[gains.slots], jnp.where(gains.holds, steps, 0)
        held = held.at[1:].set(gains.holds & (gains.slots[1:] == gains.slots[:-1]))
    outputs = means, covs, terms, held
    *filtered, held = run_settling(how, outputs, begun)
    return tuple(filtered), held, gains


def _state_before(outputs: tuple, i: Array) -> tuple[Array, Array]:
    """Return the moments before step i; those before step 0 do not matter."""
    before = jnp.maximum(i - 1, 0)
    return outputs[0][before], outputs[1][before]


def _gains(recursion: Steps, cov: Array, entry: Entry, length: int) -> _Gains:
    problem = recursion.problem
    into, rows = transition_into(problem, entry), recursion.rows(entry)
    size, seen = cov.shape[0], rows.values.shape[0]
    basis = jnp.eye(size + seen, dtype=cov.dtype)

    def take_in(carry: tuple, row: tuple) -> tuple[tuple, Array]:
        means, cov = carry
        h, r, unit, ok = row
        g, a = project(cov, h)
        cov, K, _ = condition_row(cov, h, g, a, r, ok)
        error = unit - matvec(transpose(means), h)
        return (means + K[:, None] * error, cov), jnp.append(error, a + r)

    each = Rows(rows.weights, rows.variances, basis[size:], rows.observed)
    start = basis[:size], propagate(into, jnp.zeros_like(cov[0]), cov)[1]
    (means, _), found = over_rows(take_in, start, each, collect=True)
    powers = powers_of(matmul(means[:, :size], into.weights), length)
    return _Gains(cov, means, found[:, :-1], found[:, -1], powers, entry)


def _filter_many(
    recursion: Steps, gains: _Gains, varying: dict[str, Any], start: Array
) -> tuple[Array, Array]:
    """Return the means of many steps, and what they add to the log likelihood."""
    entry, offsets = gains.entry, varying["offsets"]
    rows = recursion.rows(entry)
    values = recursion.values_like(entry, varying["values"])
    weights = transition_into(recursion.problem, entry).weights
    drive = matmul(jnp.append(offsets, values, axis=1), transpose(gains.means))
    states = affine_by_powers(gains.powers, drive, start)
    predicted = matmul(states[:-1], transpose(weights)) + offsets
    both = jnp.append(predicted, values, axis=1)
    errors = matmul(both, transpose(gains.innovations))
    terms = regular_log_normal(errors, gains.variances, rows.observed)
    return states[1:], jnp.sum(terms, axis=-1)
