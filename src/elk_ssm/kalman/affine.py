r"""Affine recurrences, forwards and backwards in time.

    forward     x_t = A_t x_{t-1} + b_t,        t = 1, ..., T,  x_0 = 0
    reversed    x_t = A_{t+1}^T x_{t+1} + b_t,  t = T, ..., 1,  x_{T+1} = 0

Entry t of `A` maps state t - 1 to state t, in both directions, so the reversed scan is
the transpose of the forward one: <c, forward(b)> = <reversed(c), b>. An initial state
enters through b_1. The associative element is the pair (A, b) with
(A_2, b_2) . (A_1, b_1) = (A_2 A_1, A_2 b_1 + b_2).

Spread over devices (`axis`), each composes its own steps into one pair, all pairs are
gathered, and each device starts from the state in which the earlier ones end.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.small import matmul, matvec
from elk_ssm.linalg.structure import Dense, Diagonal, Operator
from elk_ssm.parallel.backend import Backend, by_backend
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis


def affine_scan(
    operator: Operator,
    offsets: Array,
    *,
    reverse: bool = False,
    backend: Backend,
    axis: TimeAxis = LOCAL,
) -> Array:
    """Solve the affine recurrence of the module docstring.

    Args:
        operator: A_1, ..., A_T, `Dense` of `(T, D, D)` or `Diagonal` of `(T, D)`.
        offsets: b_1, ..., b_T, shape `(T, D)`.
        reverse: Whether to run the transposed recurrence.
        backend: `"auto"`, `"sequential"` or `"associative"`.
        axis: Where time lives; T is then what this device holds. Only forwards.

    Returns:
        The states x_1, ..., x_T, shape `(T, D)`.
    """
    if axis.is_spread:
        assert not reverse
        spread = partial(_spread_sequential, axis), partial(_spread_associative, axis)
        return by_backend(backend, *spread, operator, offsets)
    if reverse:
        flipped = jax.tree.map(_shift_back, _transpose(operator))
        return affine_scan(flipped, offsets[::-1], backend=backend)[::-1]
    return by_backend(backend, _sequential, _associative, operator, offsets)


def _transpose(operator: Operator) -> Operator:
    if isinstance(operator, Dense):
        return Dense(jnp.swapaxes(operator.matrix, -1, -2))
    return operator


def _shift_back(x: Array) -> Array:
    """Reverse time and let entry t hold what was entry t + 1."""
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:0:-1]])


def apply(operator: Operator, x: Array) -> Array:
    """Multiply states `(..., D)` by an operator with the same leading axes."""
    if isinstance(operator, Diagonal):
        return operator.diagonal * x
    return matvec(operator.matrix, x)


def _sequential(
    operator: Operator, offsets: Array, start: Array | None = None
) -> Array:
    def step(x: Array, entry: tuple[Operator, Array]) -> tuple[Array, Array]:
        x = apply(entry[0], x) + entry[1]
        return x, x

    start = jnp.zeros_like(offsets[0]) if start is None else start
    return jax.lax.scan(step, start, (operator, offsets))[1]


def _associative(operator: Operator, offsets: Array) -> Array:
    combine = _combine_diagonal if isinstance(operator, Diagonal) else _combine_dense
    return jax.lax.associative_scan(combine, (operator[0], offsets))[1]


def _combine_diagonal(
    first: tuple[Array, Array], second: tuple[Array, Array]
) -> tuple[Array, Array]:
    return second[0] * first[0], second[0] * first[1] + second[1]


def _combine_dense(
    first: tuple[Array, Array], second: tuple[Array, Array]
) -> tuple[Array, Array]:
    return matmul(second[0], first[0]), matvec(second[0], first[1]) + second[1]


def _spread_sequential(axis: TimeAxis, operator: Operator, offsets: Array) -> Array:
    """Compose the local steps, then run them from where the earlier devices end."""
    combine = _combine_diagonal if isinstance(operator, Diagonal) else _combine_dense

    def compose(pair: tuple, entry: tuple) -> tuple[tuple, None]:
        return combine(pair, entry), None

    def carry_on(earlier: tuple, later: tuple) -> tuple:
        # Only the state is asked for, and it needs no product of operators.
        return later[0], _push(type(operator)(later[0]), earlier[1]) + later[1]

    nowhere = jnp.zeros_like(offsets[0])
    one = jnp.ones_like(nowhere)
    one = one if isinstance(operator, Diagonal) else jnp.diag(one)
    whole = jax.lax.scan(compose, (one, nowhere), (operator[0], offsets))[0]
    nothing = jax.tree.map(jnp.zeros_like, whole)
    start = axis.entering(carry_on, whole, nothing, "sequential")[1]
    return _sequential(operator, offsets, start)


def _spread_associative(axis: TimeAxis, operator: Operator, offsets: Array) -> Array:
    """Compose all local prefixes, then apply them to where the earlier devices end."""
    combine = _combine_diagonal if isinstance(operator, Diagonal) else _combine_dense
    products, own = jax.lax.associative_scan(combine, (operator[0], offsets))
    whole = (products[-1], own[-1])
    nothing = jax.tree.map(jnp.zeros_like, whole)
    start = axis.entering(combine, whole, nothing, "associative")[1]
    return _push(type(operator)(products), start) + own


def _push(operator: Operator, x: Array) -> Array:
    """Return A x; a state that is zero stays so, also where a product overflowed.

    The steps themselves would have kept the zero, and an exact prefix is such a zero.
    """
    if isinstance(operator, Diagonal):
        return jnp.where(x == 0, 0, operator.diagonal * x)
    row = x[..., None, :]
    return jnp.sum(jnp.where(row == 0, 0, operator.matrix * row), axis=-1)
