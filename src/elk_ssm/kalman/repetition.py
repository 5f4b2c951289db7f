"""Steps that repeat: which ones do, whether they rest, and many of them at once."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.roundings import safe_sqrt
from elk_ssm.linalg.small import matmul, matvec, transpose

_LEAP, _SHORT_LEAP, _LONG = 256, 64, 4096
# How many roundings a covariance at rest may go to and fro.
_ROUNDINGS = 16


def powers_of(matrix: Array, length: int) -> Array:
    """Return A, A^2, A^4, ..., the last one less than `length`, `(log2(length), D, D)`.

    In loops, here and below: written out, a doubling takes the compiler longer than
    all the rest.
    """

    def square(power: Array, _: None) -> tuple[Array, Array]:
        return matmul(power, power), power

    return lax.scan(square, matrix, length=length.bit_length() - 1)[1]


def affine_by_powers(powers: Array, drive: Array, start: Array) -> Array:
    """Return x_t = A x_{t-1} + b_t for many t, given A, A^2, A^4, ... and x_{-1}."""
    length = drive.shape[0]
    index = jnp.arange(length)[:, None]

    def double(x: Array, level: tuple) -> tuple[Array, None]:
        power, lag = level
        padded = jnp.concatenate([jnp.zeros_like(x), x])
        earlier = lax.dynamic_slice_in_dim(padded, length - lag, length)
        return x + jnp.where(index >= lag, matmul(earlier, transpose(power)), 0), None

    lags = 2 ** jnp.arange(powers.shape[0])
    first = drive.at[0].add(matvec(powers[0], start))
    return lax.scan(double, first, (powers, lags))[0]


def are_close(one: Array, other: Array) -> Array:
    """Whether two covariances differ by their roundings only."""
    scale = safe_sqrt(jnp.diagonal(one))
    least = _ROUNDINGS * jnp.finfo(one.dtype).eps * scale[:, None] * scale
    return jnp.all(jnp.abs(one - other) <= least)


def is_stable(powers: Array) -> Array:
    """Whether A^n does not grow with n, given A, A^2, A^4, ..."""
    most, before = (jnp.max(jnp.abs(power)) for power in (powers[-1], powers[-2]))
    return most <= before * (1 + 1e-3)


def repeats(problem: Problem) -> Array:
    """Return whether a step is like the one before, but for its data and offset."""
    same = jnp.ones(problem.num_steps, bool).at[:2].set(False)
    for name, array in problem.varying.items():
        if name in ("offsets", "values"):
            continue
        for leaf in jax.tree.leaves(array):
            axes = tuple(range(1, leaf.ndim))
            equal = jnp.all(leaf[1:] == leaf[:-1], axis=axes)
            same = same.at[1:].set(same[1:] & equal)
    return same


def leap_length(steps: int) -> int:
    """Return how many steps are taken at once in a series of so many."""
    return _LEAP if steps >= _LONG else _SHORT_LEAP
