"""What steps are judged by: rounding, sizes, and how far is good enough."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.linalg.small import raised
from elk_ssm.nssm.posed import Posed

_ROUNDING_UNITS = 8


def entries(posed: Posed) -> Array | int:
    """Return the number of entries of the states of all devices."""
    steps, size = posed.shape
    if posed.exists is None:
        return posed.axis.size * steps * size
    return posed.axis.total(jnp.sum(posed.exists)) * size


def slack_of(posed: Posed, merit: Array) -> Array:
    """Return the rounding error of the merit, -log p."""
    eps = jnp.finfo(merit.dtype).eps
    return _ROUNDING_UNITS * eps * magnitude_of(posed, merit)


def magnitude_of(posed: Posed, merit: Array) -> Array:
    """Return what the merit is made of, as far as that is known."""
    return jnp.abs(merit) + entries(posed)


def size_of_states(posed: Posed, states: Array, variances: Array) -> Array:
    """Return the size of each dimension `(D,)`, at least a deviation `(T, D)`."""
    spread = jnp.sqrt(jnp.max(variances, axis=0))
    here = jnp.maximum(jnp.max(jnp.abs(states), axis=0), spread)
    return posed.axis.largest(here)[0]


def largest_increment(
    posed: Posed, increments: Array, scale: Array, tolerance: Array
) -> tuple[Array, Array]:
    """Return the largest increment in units of `scale`, and whether all are small."""
    scale = raised(scale, increments.ndim)
    small = posed.axis.all(jnp.abs(increments) <= tolerance * scale)
    return posed.axis.largest(jnp.max(jnp.abs(increments) / scale))[0], small


def search(
    trial: Callable[[Array], tuple[Array, Array]], longest: Array, most: int
) -> tuple[Array, Array, Array]:
    """Halve a step length until a trial of it succeeds, `most` times at most.

    `trial` returns the merit at a step length, and whether it is good enough. So do the
    last two of the result, after the step length that was tried last.
    """

    def searching(state: tuple) -> Array:
        *_, enough, tries = state
        return ~enough & (tries < most)

    def halve(state: tuple) -> tuple:
        length, _, _, tries = state
        return length / 2, *trial(length / 2), tries + 1

    # From twice the step, of infinite merit, so that the merit is compiled once.
    begin = 2 * longest, jnp.full_like(longest, jnp.inf), jnp.asarray(False), 0
    length, merit, enough, _ = jax.lax.while_loop(searching, halve, begin)
    return length, merit, enough
