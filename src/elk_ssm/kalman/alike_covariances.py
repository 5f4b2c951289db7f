r"""What filters and smoothers of steps that are all alike need besides the data.

Of the first n steps and of the last n; between them nothing moves. Of filtered
covariances P_t = L L' and what is said later, J_t (see `doubling`),

    P^s_t = L (I + L' J_t L)^{-1} L'

so that no covariance is a difference. Every answer comes with whether digits are left:
I + L' J L is wrong by as many roundings as one of its diagonal is larger than what the
rows before leave of it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm.kalman.doubling import Step, doubled, update
from elk_ssm.kalman.factors import root_of, solve_lower, solve_upper, sound_root_of
from elk_ssm.kalman.repetition import tables_of_powers
from elk_ssm.linalg.small import diagonal, matmul, product, transpose

# The least share of a filtered variance that the dimensions before it leave, as a power
# of the rounding, and the largest loss of a smoothed one, of eps^{-1/2}.
_LEAST, _LOSS = 0.75, 1 / 8


class Covariances(NamedTuple):
    """Matrices of the first n steps, leading axis n, and of the last.

    Attributes:
        filtered: P_t.
        gains: K_t.
        halves: W_t with W_t S_t W_t' = I, S_t the variance of what is not predicted.
        maps: A_t = F (I - K_t H), from one predicted mean to the next.
        powers: Powers of the last of them, if there are more steps.
        smoothed: P^s_t of the first n steps and, of a longer series, of the last n.
        lagged: Cov(z_{t-1}, z_t | y) of the same, if asked for.
        sound: Whether digits are left and what comes between rests, `()`.
    """

    filtered: Array
    gains: Array
    halves: Array
    maps: Array
    powers: tuple[Array, ...] | None
    smoothed: Array | None = None
    lagged: Array | None = None
    sound: Array | bool = True


def covariances(
    prior: Array, step: Step, steps: int, length: int, *, smooth: bool, cross: bool
) -> Covariances:
    """Return the covariances of a series.

    Args:
        prior: What is known before the first emission, `(D, D)`.
        step: The step.
        steps: T.
        length: n, no more than T.
        smooth: Whether to smooth.
        cross: Whether lagged covariances are asked for.
    """
    tables = doubled(prior, step, length, both=smooth)
    F, Q, H = step
    covs = tables.covs
    into = product(covs[:-1], transpose(F)[None])
    ahead = jnp.concatenate([prior[None], product(F[None], into) + Q[None]])
    updates = update(ahead, H[None])
    gains, halves = updates.refined(H[None])
    maps = F[None] - product(product(F[None], gains), H[None])
    powers = None
    sound = jnp.all(jnp.isfinite(diagonal(maps) + diagonal(covs)))
    if steps > length:
        sound, powers = sound & tables.rests, tables_of_powers(maps[-1], steps - length)
    found = Covariances(covs, gains, halves, maps, powers, sound=sound)
    if tables.later is None:
        return found

    which = rows_of(steps, length)
    eps = float(jnp.finfo(covs.dtype).eps)
    L = sound_root_of(covs, eps**-_LEAST)
    L = L[np.minimum(which, length - 1)]
    later = tables.later[np.minimum(steps - 1 - which, length - 1)]
    total = matmul(transpose(L), matmul(later, L)) + jnp.eye(len(Q), dtype=Q.dtype)
    half = solve_lower(sound_root_of(total, _LOSS * eps**-0.5), transpose(L))
    smoothed = product(transpose(half), half)
    sound = sound & jnp.all(jnp.isfinite(diagonal(smoothed)))
    found = found._replace(smoothed=smoothed, sound=sound)
    if not cross:
        return found

    # P_{t-1} F' (P^p_t)^{-1} P^s_t
    root = root_of(ahead)
    into = jnp.concatenate([jnp.zeros_like(into[:1]), into])
    back = transpose(solve_upper(root, solve_lower(root, transpose(into))))
    lagged = matmul(back[np.minimum(which, length - 1)], smoothed)
    return found._replace(lagged=lagged)


def rows_of(steps: int, length: int) -> np.ndarray:
    """Return the first n of T steps and, of a longer series, the last n."""
    first = np.arange(length)
    return first if steps == length else np.append(first, first + steps - length)


def over_series(rows: Array, steps: int, length: int) -> Array:
    """Return T matrices of those of the first steps and, if given, of the last."""
    place = np.arange(steps)
    between = np.minimum(place, length - 1)
    ends = len(rows) > length
    late = ends & (place >= max(length, steps - length))
    return rows[np.where(late, place - steps + 2 * length, between)]
