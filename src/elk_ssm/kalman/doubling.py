r"""Covariances of steps that are all alike, 2^n steps at once.

From one filtered state to the next, and from what later emissions say of one, J, to
what they say of the one before, n steps are

    P' = A (P^{-1} + U'U)^{-1} A' + C
    J' = A' (J^{-1} + C)^{-1} A + U'U                       C = N N'

with A, C and U of n. Both are one map of X,

    X' = A X+ A' + M M',    X+ = B X B' + K K',    B = I - K U,
    K = X U' S^{-1},        S = I + U X U'

of (P; A, U, M = N) and of (J; A', N', M = U'), so they are run side by side. Twice as
many steps are the map of the map's own M M' (the doubling algorithm of Anderson and
Moore, Optimal Filtering, chapter 6), with

    A <- A B A,    U <- the triangle of [U; S^{-1/2} U A]

and a table of the first n matrices becomes one of 2 n by one map of all. One step is
x' = F x + N(0, Q), seen as H x' + N(0, I): with S = I + H Q H', K and B of it,

    A = B F,    C = Q+,    U = S^{-1/2} H F

S is at least the unit matrix. K is wrong by as many roundings as an S_ii is larger than
what the rows before leave of it, and X+ (Joseph's form) by the square of that.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from elk_ssm.kalman.factors import (
    root_of,
    solve_lower,
    solve_upper,
    sound_root_of,
    triangle,
)
from elk_ssm.kalman.repetition import are_close
from elk_ssm.kalman.roundings import safe_sqrt
from elk_ssm.linalg.small import (
    diagonal,
    matmul,
    product,
    symmetrize,
    transpose,
    unit_like,
)
from elk_ssm.parallel.anywhere import anywhere

# Most covariances are at rest after so many doublings: 64 steps.
_FIRST = 6
# The largest S that is borne, in units of 1 / eps, and the largest loss, of eps^{-1/2}.
_LARGEST, _LOSS = 1 / 64, 4.0


class Tables(NamedTuple):
    """What the steps come to.

    Attributes:
        covs: Filtered covariances of the first n steps, `(n, D, D)`.
        later: What the last 0, ..., n - 1 steps say of the state before them, as
            precisions, `(n, D, D)`, if asked for.
        rests: Whether later covariances, and earlier precisions, are the n-th, `()`.

    Everything after an update that leaves no digits is NaN.
    """

    covs: Array
    later: Array | None
    rests: Array


class Update(NamedTuple):
    """An emission U x + N(0, I) of states of covariances X, `(..., D, D)`.

    Attributes:
        gain: K.
        root: L L' = S, NaN where no digits would be left.
    """

    gain: Array
    root: Array

    def refined(self, rows: Array) -> tuple[Array, Array]:
        """Return K, and W with W S W' = I.

        U K + S^{-1} = I is applied once to what K misses of it.
        """
        eye = jnp.broadcast_to(unit_like(self.gain), self.gain.shape)
        half = solve_lower(self.root, eye)
        inverse = product(transpose(half), half)
        left = eye - product(rows, self.gain) - inverse
        return self.gain + product(self.gain, left), half


def update(cov: Array, rows: Array) -> Update:
    """Take in rows U, `(..., D, D)` as `cov`, or with axes of length one."""
    seen = product(rows, cov)
    total = product(seen, transpose(rows)) + unit_like(cov)
    eps = float(jnp.finfo(cov.dtype).eps)
    root = sound_root_of(total, _LOSS * eps**-0.5, _LARGEST / eps)
    return Update(transpose(solve_upper(root, solve_lower(root, seen))), root)


def moved(
    maps: Array | None, found: Update, cov: Array, rows: Array
) -> tuple[Array, Array]:
    """Return A B, and A X+ A', for updates of X by `rows`; `maps` are A, or I."""
    gain = found.gain if maps is None else product(maps, found.gain)
    kept = (unit_like(cov) if maps is None else maps) - product(gain, rows)
    spread = product(product(kept, cov), transpose(kept))
    return kept, spread + product(gain, transpose(gain))


class Step(NamedTuple):
    """F, Q and H, `(D, D)` each, the noise of an emission I."""

    weights: Array
    noise: Array
    rows: Array


def doubled(prior: Array, step: Step, length: int, *, both: bool) -> Tables:
    """Return the tables of n = `length` steps.

    Args:
        prior: What is known before the first emission, `(D, D)`.
        step: The step; for precisions Q has to be positive definite.
        length: At least two.
        both: Whether precisions are asked for, too.
    """
    F, Q, H = step
    covs = jnp.stack([prior, Q])
    first = update(covs, H[None])
    kept, left = moved(None, first, covs, H[None])
    A, U = matmul(kept[1], F), solve_lower(first.root[1], matmul(H, F))
    rows, maps, added, begin = U[None], A[None], left[1:], left[:1]
    if both:
        rows = jnp.stack([U, transpose(root_of(left[1]))])
        maps = jnp.stack([A, transpose(A)])
        added = jnp.stack([left[1], matmul(transpose(U), U)])
        begin = jnp.stack([left[0], jnp.zeros_like(Q)])
    table = jnp.broadcast_to(begin[:, None], (len(begin), length, *prior.shape))
    # The map's own M M' is the last entry of the table.
    table = jnp.concatenate([table, added[:, None]], axis=1)
    place = np.arange(length + 1)

    def double(level: Array, carry: tuple) -> tuple:
        maps, rows, table = carry
        reach = 2**level
        found = update(table, rows[:, None])
        kept, further = moved(maps[:, None], found, table, rows[:, None])
        further = further + table[:, -1:]
        source = jnp.where(place == length, length, place - reach)
        shifted = jnp.take(further, jnp.maximum(source, 0), axis=1, mode="clip")
        stays = ((place < reach) & (place < length))[None, :, None, None]
        seen = solve_lower(found.root[:, -1], matmul(rows, maps))
        return (
            matmul(kept[:, -1], maps),
            triangle(jnp.concatenate([rows, seen], axis=1)),
            jnp.where(stays, table, shifted),
        )

    def rests(carry: tuple, levels: int) -> Array:
        maps, _, table = carry
        return _rests(maps, table, table[:, min(2**levels, length) - 2])

    def more(carry: tuple, rest: Array) -> tuple[tuple, Array]:
        del rest
        carry = lax.fori_loop(few, levels, double, carry)
        return carry, rests(carry, levels)

    # After n doublings the entries from 2^n - 1 on are all that of so many steps.
    levels = (length - 1).bit_length()
    few = min(_FIRST, levels)
    carry = lax.fori_loop(0, few, double, (maps, rows, table))
    rest = rests(carry, few)
    if few < levels:
        resting = lambda carry, rest: (carry, rest)  # noqa: E731
        with jax.named_scope("doublings"):
            carry, rest = lax.cond(anywhere(~rest), more, resting, carry, rest)
    table = symmetrize(carry[2])
    covs, later = table[0, :length], table[1, :length] if both else None
    return Tables(covs, later, rest)


def _rests(maps: Array, table: Array, before: Array) -> Array:
    """Whether a table ends at a fixed point, and so do others that begin elsewhere.

    Args:
        maps: A of all steps that are in the table.
        table: As in `doubled`.
        before: Its entries of a step less.
    """
    last = table[:, -2]
    scales, eps = safe_sqrt(diagonal(last)), float(jnp.finfo(table.dtype).eps)
    # What is left of the start, in deviations.
    bound = scales[:, :, None] * (eps / table.shape[-1]) ** 0.5
    forgets = jnp.abs(maps) * scales[:, None, :] <= bound
    return are_close(last, before) & jnp.all(forgets)
