r"""Conditioning a dense Gaussian on one coordinate after the other.

For a covariance C and coordinate i seen as zero with variance r_i, with c = C e_i and
s = c_i + r_i,

    C <- C - c c' / s,      table <- table - c (table_i / s)

which needs no factorisation. The table, `(..., D, K)`, holds in its K columns whatever
is linear in the state: its mean, or its mean and the map from an earlier state.
"""

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.small import inverse_of

_UNROLL_UP_TO = 16


def observe_coordinates(
    covariance: Array, noise: Array, table: Array
) -> tuple[Array, Array, Array, Array]:
    """Condition on every coordinate.

    Args:
        covariance: `(..., D, D)`.
        noise: Variances, `(..., D)`.
        table: `(..., D, K)`.

    Returns:
        The covariance and the table, the rows of the table when their turn came,
        `(..., D, K)`, and their total variances, `(..., D)`.
    """
    if noise.shape[-1] > _UNROLL_UP_TO:
        return _in_a_loop(covariance, noise, table)
    rows, totals = [], []
    for i in range(noise.shape[-1]):
        covariance, table, row, total = _take_in(covariance, noise, table, i)
        rows.append(row)
        totals.append(total)
    return covariance, table, jnp.stack(rows, -2), jnp.stack(totals, -1)


def _take_in(covariance: Array, noise: Array, table: Array, i: int | Array) -> tuple:
    column = covariance[..., :, i]
    row, total = table[..., i, :], column[..., i] + noise[..., i]
    inverse = inverse_of(total)[..., None]
    outer = column[..., :, None] * column[..., None, :]
    return (
        covariance - outer * inverse[..., None],
        table - column[..., :, None] * (row * inverse)[..., None, :],
        row,
        total,
    )


def _in_a_loop(covariance: Array, noise: Array, table: Array) -> tuple:
    """The same for many dimensions, where unrolling would take the compiler long."""

    def body(i: Array, carry: tuple) -> tuple:
        *moved, rows, totals = carry
        covariance, table = moved
        *moved, row, total = _take_in(covariance, noise, table, i)
        return *moved, rows.at[..., i, :].set(row), totals.at[..., i].set(total)

    nothing = jnp.zeros_like(table), jnp.zeros_like(table[..., 0])
    start = covariance, table, *nothing
    return jax.lax.fori_loop(0, noise.shape[-1], body, start)
