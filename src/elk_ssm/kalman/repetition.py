"""Steps that repeat: which ones do, whether they rest, and many of them at once."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.roundings import safe_sqrt
from elk_ssm.linalg.small import diagonal, matmul, matvec, transpose

_LEAP, _SHORT_LEAP, _LONG = 256, 64, 4096
# How many roundings a covariance at rest may go to and fro.
_ROUNDINGS = 16


def powers_of(matrix: Array, length: int) -> Array:
    """Return A, A^2, A^4, ..., the last one less than `length`, `(log2(length), D, D)`.

    In a loop: written out it takes the compiler longer than all the rest.
    """

    def square(power: Array, _: None) -> tuple[Array, Array]:
        return matmul(power, power), power

    return lax.scan(square, matrix, length=length.bit_length() - 1)[1]


def affine_by_powers(powers: Array, drive: Array, start: Array) -> Array:
    """Return x_t = A x_{t-1} + b_t for many t, given A, A^2, A^4, ..., from x_{-1} on.

    In lanes side by side: once for where each ends that begins at zero, which A^n takes
    through those after it, and once from where each begins.

    Args:
        powers: `(k, D, D)`.
        drive: b_t, `(T, D)` of T = 2^k.
        start: x_{-1}, `(D,)`.

    Returns:
        x_{-1}, ..., x_{T-1}, `(T + 1, D)`. Who needs x_{-1} with the others takes it
        from here: XLA reads `start` anew where it is used, and copies the array that
        it is a row of if others of its rows are written meanwhile.
    """
    half = powers.shape[0] // 2
    A, far = transpose(powers[0]), powers[half]
    lanes = drive.reshape(-1, 2**half, drive.shape[1]).swapaxes(0, 1)

    def step(x: Array, offset: Array) -> tuple[Array, Array]:
        x = matmul(x, A) + offset
        return x, x

    def along(x: Array, end: Array) -> tuple[Array, Array]:
        return matvec(far, x) + end, x

    ends, _ = lax.scan(lambda x, b: (step(x, b)[0], None), lanes[0] * 0, lanes)
    starts = lax.scan(along, start, ends)[1]
    states = lax.scan(step, starts, lanes)[1].swapaxes(0, 1).reshape(drive.shape)
    return jnp.concatenate([starts[:1], states])


def tables_of_powers(matrix: Array, steps: int) -> tuple[Array, ...]:
    """Return A^k, A^2k, ..., A^15k of k = 1, 16, 16^2, ... < T, `(15, D, D)` each."""
    levels = max(1, -(-(steps - 1).bit_length() // 4))
    squares = [matrix]
    for _ in range(4 * levels - 1):
        squares.append(matmul(squares[-1], squares[-1]))
    table, *further = (jnp.stack(squares[n::4])[:, None] for n in range(4))
    for more in further:
        table = jnp.concatenate([table, more, matmul(table, more)], axis=1)
    return tuple(table)


def affine_at_once(
    powers: tuple[Array, ...], drive: Array, *, reverse: bool = False
) -> Array:
    """Return x_t = A x_{t-1} + b_t, or A' x_{t+1} + b_t, for all t at once, `(T, D)`.

    Every state reaches back 16^n steps, by fifteen powers at a time.

    Args:
        powers: As of `tables_of_powers`.
        drive: b_t, `(T, D)`.
        reverse: The direction; the state that enters is zero.
    """
    states, steps = drive, len(drive)
    for level, every in enumerate(powers):
        before = []
        for reach in 16**level * np.arange(1, len(every) + 1):
            fill = (0, reach) if reverse else (reach, 0)
            part = jnp.pad(states, [fill, (0, 0)])
            before.append(part[reach:] if reverse else part[:steps])
        table = every if reverse else transpose(every)
        table = table.reshape(-1, drive.shape[1])
        states = states + matmul(jnp.concatenate(before, axis=1), table)
    return states


def are_close(one: Array, other: Array) -> Array:
    """Whether covariances `(..., D, D)` differ by their roundings only, all of them."""
    scale = safe_sqrt(diagonal(one))
    least = rounding_of(one) * scale[..., :, None]
    return jnp.all(jnp.abs(one - other) <= least * scale[..., None, :])


def rounding_of(cov: Array) -> float:
    """Return which part of the entries of a covariance at rest goes to and fro."""
    return _ROUNDINGS * float(jnp.finfo(cov.dtype).eps)


def difference_of(one: Array, other: Array) -> Array:
    """Return by which part of their scales rows of two `(D, D)` differ at most.

    By a product: XLA takes the largest of numbers on a CPU one at a time.
    """
    scale = safe_sqrt(jnp.diagonal(one))
    size, most = one - other, scale[:, None] * scale[None, :]
    parts = jnp.where(size == 0, 0, size / most) ** 2
    return jnp.sqrt(jnp.max(matvec(parts, jnp.ones_like(scale))))


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
