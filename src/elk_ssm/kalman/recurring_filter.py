r"""The filter of steps that recur, by a table of gains; equations in `recurring`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.forward import filter_of
from elk_ssm.kalman.gains import refined_gains
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.repetition import difference_of, repeats, rounding_of
from elk_ssm.kalman.roundings import LOG_TWO_PI
from elk_ssm.kalman.steps import Steps, entry_at, propagate, transition_into
from elk_ssm.kalman.vector_updates import alone_on_cpu, has_factors
from elk_ssm.kalman.whitening import isolated
from elk_ssm.linalg.small import matvec, transpose
from elk_ssm.linalg.structure import to_dense
from elk_ssm.parallel.kinds import kinds_of
from elk_ssm.parallel.recurring import Recurring, Table, tabulate

# From so many steps on, if more than one of so many is not like the one before.
_STEPS, _BREAKS = 4096, 64
# How many states a table holds at most.
_CAPACITY = 1024


class Gain(NamedTuple):
    """What a filter's step is but for its data."""

    cov: Array
    gain: Array
    precision: Array
    constant: Array


def gains_of(problem: Problem) -> Table | None:
    """Return the table of a filter's gains; none if there can be none."""
    if not _may_recur(problem):
        return None
    return alone_on_cpu(_gains, _no_gains)(problem)


def filter_by_table(
    recursion: Steps, gains: Table, means: Array, terms: Array
) -> tuple[Array, Array]:
    """Write means and terms of all steps, if the table holds."""

    def step(carry: tuple) -> tuple:
        t, mean, outputs = carry
        entry = entry_at(recursion.problem, t)
        known = row_of(gains.states, gains.slots[t])
        into = transition_into(recursion.problem, entry)
        emission = recursion.emission(entry)
        mean = matvec(into.weights, mean) + into.offset
        error = emission.values - matvec(to_dense(emission.weights), mean)
        error = jnp.where(emission.observed, error, 0.0)
        term = known.constant - 0.5 * jnp.sum(error * matvec(known.precision, error))
        mean = mean + matvec(known.gain, error)
        return t + 1, mean, _written(outputs, (mean, term), t)

    total = jnp.where(gains.holds, recursion.problem.num_steps, 0)
    start = jnp.zeros((), jnp.int32), jnp.zeros_like(means[0]), (means, terms)
    return lax.while_loop(lambda c: c[0] < total, step, start)[2]


@dataclass(frozen=True)
class _Filter(Recurring):
    recursion: Steps
    kinds: Array
    rounding: float

    def step(self, before: Gain, i: Array) -> tuple[Gain, Array]:
        recursion = self.recursion
        entry = entry_at(recursion.problem, i)
        into = transition_into(recursion.problem, entry)
        emission = recursion.emission(entry)
        H, seen = to_dense(emission.weights), emission.observed
        noise = isolated(emission.covariance, seen)
        _, cov = propagate(into, into.offset, before.cov)
        gain, cov, good, beside = refined_gains(cov, H, noise, seen)
        precision, scales = beside
        terms = jnp.where(seen, 0.5 * LOG_TWO_PI + jnp.log(scales), 0.0)
        return Gain(cov, gain, precision, -jnp.sum(terms)), good

    def difference(self, one: Gain, other: Gain) -> Array:
        return difference_of(one.cov, other.cov)

    def scales(self, state: Gain) -> Array:
        return jnp.sqrt(jnp.diagonal(state.cov))

    def adjoint(self, state: Gain, i: Array, direction: Array) -> Array:
        # Of (I - K H) F.
        entry = entry_at(self.recursion.problem, i)
        H = to_dense(self.recursion.emission(entry).weights)
        F = transition_into(self.recursion.problem, entry).weights
        seen = matvec(transpose(state.gain), direction)
        return matvec(transpose(F), direction - matvec(transpose(H), seen))


def _gains(problem: Problem) -> Table:
    same = repeats(problem)
    breaks = jnp.sum(~same[2:])
    varying = {
        name: array
        for name, array in problem.varying.items()
        if name not in ("offsets", "values")
    }
    kinds = kinds_of(varying, problem.num_steps)
    empty = _no_gains(problem).states
    how = _Filter(filter_of(problem), kinds, rounding_of(empty.cov))
    return tabulate(how, empty, breaks * _BREAKS > same.shape[0])


def _no_gains(problem: Problem) -> Table:
    none, steps = jnp.zeros_like(problem.initial_mean), problem.num_steps
    size, seen = none.shape[0], problem.values.shape[1]
    shapes = (size, size), (size, seen), (seen, seen), ()
    capacity = min(_CAPACITY, steps // 16)
    rows = Gain(*(jnp.zeros((capacity, *shape), none.dtype) for shape in shapes))
    return Table(rows, jnp.zeros(steps, jnp.int32), jnp.zeros((), bool))


def _may_recur(problem: Problem) -> bool:
    return problem.num_steps >= _STEPS and has_factors(problem.initial_mean)


def row_of(tree: Any, t: Array) -> Any:
    """Return entry t of arrays with a leading axis."""
    return jax.tree.map(lambda x: x[t], tree)


def _written(outputs: tuple, rows: tuple, t: Array) -> tuple:
    return tuple(x.at[t].set(row) for x, row in zip(outputs, rows, strict=True))
