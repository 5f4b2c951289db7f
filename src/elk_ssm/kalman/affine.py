r"""Affine recurrences, forwards and backwards in time.

    forward     x_t = A_t x_{t-1} + b_t,        t = 1, ..., T,  x_0 = 0
    reversed    x_t = A_{t+1}^T x_{t+1} + b_t,  t = T, ..., 1,  x_{T+1} = 0

Entry t of `A` maps state t - 1 to state t, in both directions, so the reversed scan is
the transpose of the forward one: <c, forward(b)> = <reversed(c), b>. An initial state
enters through b_1. A run of steps is the pair (A, b), and two runs are
(A_2, b_2) . (A_1, b_1) = (A_2 A_1, A_2 b_1 + b_2).

The reversed scan runs in p_t = A_t^T x_t, which needs no A but its own, and then
x_t = p_{t+1} + b_t.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.linalg.structure import Operator
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.recursion import Recursion
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis

# So many maps at the top of a tree are joined by doubling; and of those with 64 entries
# or more, as many as have so many together. Smaller ones launch no fewer kernels so.
_FEW, _ENTRIES, _LARGE = 512, 2**18, 64


def affine_scan(
    operator: Operator,
    offsets: Array,
    *,
    reverse: bool = False,
    backend: Backend,
    axis: TimeAxis = LOCAL,
    lanes: int = 1,
) -> Array:
    """Solve the affine recurrence of the module docstring.

    Args:
        operator: A_1, ..., A_T of any structure, such as `Dense` of `(T, D, D)`.
        offsets: b_1, ..., b_T, shape `(T, D)`.
        reverse: Whether to run the transposed recurrence.
        backend: `"auto"`, `"sequential"` or `"associative"`.
        axis: Where time lives; T is then what this device holds.
        lanes: Into how many pieces to cut a sequential run; see `driver`.

    Returns:
        The states x_1, ..., x_T, shape `(T, D)`.
    """
    kind = _Transposed if reverse else _Affine
    start = jnp.zeros_like(offsets[0])
    where: Any = {"backend": backend, "axis": axis, "lanes": lanes}
    recursion = kind(Map(operator, offsets), start)
    if reverse:
        return run(recursion, reverse=True, before=True, **where) + offsets
    return run(recursion, **where)


def affine_exclusive(
    operator: Operator,
    offsets: Array,
    *,
    reverse: bool = False,
    backend: Backend,
    axis: TimeAxis = LOCAL,
) -> Array:
    """Return what enters each of the maps x -> A_t x + b_t, which begin at zero.

    Arguments as for `affine_scan`, but `reverse` only runs through the same maps from
    the last to the first.
    """
    recursion = _Affine(Map(operator, offsets), jnp.zeros_like(offsets[0]))
    return run(recursion, reverse=reverse, before=True, backend=backend, axis=axis)


def apply(operator: Operator, x: Array) -> Array:
    """Multiply states `(..., D)` by an operator with the same leading axes."""
    return operator.mv(x)


class Map(NamedTuple):
    """x -> A x + b."""

    operator: Operator
    offset: Array


@dataclass(frozen=True)
class _Affine(Recursion[Array, Map]):
    entries: Map
    initial: Array

    @property
    def fan_in(self) -> int:
        return self.entries.operator.fan_in

    def step(self, state: Array, entry: Map) -> tuple[Array, Array]:
        state = entry.operator.mv(state) + entry.offset
        return state, state

    def element(self, entry: Map) -> Map:
        return entry

    def combine(self, earlier: Map, later: Map) -> Map:
        # As in `act`; A may be a product.
        A, b = later
        return Map(A.mm(earlier.operator), A.push_onto(earlier.offset, b))

    def join(self, earlier: Map, later: Map, again: Map) -> Map:
        offset = again.operator.push_onto(earlier.offset, again.offset)
        return Map(later.operator.mm(earlier.operator), offset)

    @property
    def few(self) -> int:
        operator = self.entries.operator
        if not operator.mixes:
            return self.fan_in
        of_one = sum(x.size // max(len(x), 1) for x in jax.tree.leaves(operator))
        return max(_ENTRIES // of_one, _FEW) if of_one >= _LARGE else _FEW

    def through(self, elements: Map, start: Array) -> Array:
        if not self.entries.operator.mixes:
            return super().through(elements, start)
        return _by_doubling(elements, start)

    def append(self, run: Map, entry: Map) -> Map:
        A, b = self.element(entry)
        return Map(A.mm(run.operator), A.mv(run.offset) + b)

    def known(self, state: Array) -> Map:
        return Map(self.entries.operator.diag(jnp.zeros_like(state)), state)

    def state(self, element: Map) -> Array:
        return element.offset

    def nothing(self) -> Map:
        zero = jnp.zeros_like(self.initial)
        return Map(self.entries.operator.diag(zero + 1), zero)

    def act(self, run: Map, state: Array) -> Array:
        # The steps themselves would have kept a zero, and an exact prefix is such a
        # zero; a product of theirs may have overflowed.
        return run.operator.push_onto(state, run.offset)

    def outputs(self, before: Array, entries: Map, after: Array) -> Array:
        return after


def _by_doubling(maps: Map, start: Array) -> Array:
    """Let every map reach back 1, 2, 4, ... maps; states that reach the start stay.

    Twice the products of a tree, in half as many kernels: for the few maps at its top.
    """
    operators, states = maps
    count, reach = states.shape[0], 1
    first = jax.tree.map(lambda x: x[0], operators).push_onto(start, states[0])
    states = jnp.concatenate([first[None], states[1:]])
    # Behind the barrier: a slice of what is sliced again would be written out.
    again = _behind(lax.optimization_barrier(operators), 1)
    operators = _behind(operators, 1)
    while reach < count:
        # What lies before `reach` is known, and has no operator any more.
        further = again.push_onto(states[:-reach], states[reach:])
        states = jnp.concatenate([states[:reach], further])
        later = _behind(operators, reach)
        earlier = jax.tree.map(lambda x, j=reach: x[: max(len(x) - j, 0)], operators)
        operators, reach = later.mm(earlier), 2 * reach
        again = lax.optimization_barrier(operators)
    return states


def _behind(operators: Operator, number: int) -> Operator:
    return jax.tree.map(lambda x: x[number:], operators)


class _Transposed(_Affine):
    """p_t = A_t^T (p_{t+1} + b_t)."""

    def step(self, state: Array, entry: Map) -> tuple[Array, Array]:
        state = entry.operator.T.mv(state + entry.offset)
        return state, state

    def element(self, entry: Map) -> Map:
        transposed = entry.operator.T
        return Map(transposed, transposed.mv(entry.offset))
