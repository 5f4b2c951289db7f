"""A step away from a saddle or a minimum, along negative curvature of -log p.

See `newton` for what it is part of.
"""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.nssm.densities import log_joint, log_joint_along
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.second_order import Around, dot, rounding_of, solve_shifted
from elk_ssm.nssm.stopping import search

_ENOUGH = 0.1
_INVERSE_ITERATIONS = 20
_KICK, _MOST_HALVINGS = 4.0, 24


def leave_saddle(
    posed: Posed, states: Array, before: Array, around: Around, definite: Array
) -> tuple[Array, Array, Array]:
    """Step along negative curvature, if there is any.

    Args:
        posed: The model with its data.
        states: `(T, D)`.
        before: -log p there.
        around: Log p to second order there.
        definite: Whether -H is; then there is no such step.

    Returns:
        The step `(T, D)`; its merit, infinite if none was good enough; and whether the
        log posterior bends upwards along it.
    """
    none = jnp.full_like(before, jnp.inf)

    def leave() -> tuple[Array, Array, Array]:
        direction = _lowest_curvature(posed, around)
        slope = dot(posed, around.gradient, direction)
        direction = jnp.where(slope < 0, -direction, direction)
        bend = _second_derivative(posed, states, direction)
        # W weighs the direction as one, so this is a fraction of what -H consists of.
        bends = bend > rounding_of(states)

        def trial(length: Array) -> tuple[Array, Array]:
            merit = -log_joint(posed, states + length * direction)
            rise = length * jnp.abs(slope) + length**2 * bend / 2
            return merit, merit <= before - _ENOUGH * rise

        longest = jnp.full_like(before, _KICK)
        length, merit, enough = search(trial, longest, _MOST_HALVINGS)
        merit = jnp.where(enough & bends, merit, jnp.inf)
        return length * direction, merit, bends

    def stay() -> tuple[Array, Array, Array]:
        return jnp.zeros_like(states), none, jnp.asarray(False)

    return jax.lax.cond(definite, stay, leave)


def _lowest_curvature(posed: Posed, around: Around) -> Array:
    """Return a direction of low curvature, v' W v = 1, by inverse iteration."""

    def unit(v: Array) -> Array:
        return v / jnp.sqrt(dot(posed, around.metric * v, v))

    def iterate(_: Any, state: tuple) -> tuple:
        low, high, v = state
        middle = jnp.sqrt(low * high)
        following, definite = solve_shifted(
            posed, around, middle, around.metric * v, False
        )
        low, high = jnp.where(definite, low, middle), jnp.where(definite, middle, high)
        return low, high, jnp.where(definite, unit(following), v)

    steps, size = around.metric.shape
    place = posed.axis.index(steps)[:, None] * size + jnp.arange(size)[None, :]
    place = place.astype(around.metric.dtype)
    # Smooth in time, as the lowest curvature mostly is, so that a series does not leave
    # here to one side and there to the other; and of no symmetry that a model may have.
    start = unit((1 + 0.5 * jnp.cos(2.4 * place + 0.7)) / jnp.sqrt(around.metric))
    least = jnp.asarray(rounding_of(start), start.dtype)
    shifts = least, 1 / least
    return jax.lax.fori_loop(0, _INVERSE_ITERATIONS, iterate, (*shifts, start))[2]


def _second_derivative(posed: Posed, states: Array, direction: Array) -> Array:
    """Return d^2 log p(x + a v) / da^2, which no assembled matrix has rounded."""

    def slope(x: Array) -> Array:
        return log_joint_along(posed, x, direction)[1]

    return jax.jvp(slope, (states,), (direction,))[1]
