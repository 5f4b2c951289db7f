r"""How the mode moves with the model: differentiate the equation, not the loop.

At the mode g(x, theta) = d/dx log p(x, y; theta) = 0, so along a change of theta

    -H x' = (dg/dtheta) theta',        H the Hessian of log p in x

H is block tridiagonal, because a term of log p couples at most two neighbouring states.
Its blocks come from autodiff of single terms, exact ones also where the iteration used
Gauss-Newton or sigma points, and the system is solved by block elimination over time
(see `tridiagonal`). First derivatives, forward and reverse, are exact at a converged
mode.
"""

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._types import Array
from elk_ssm.nssm.densities import (
    dynamics_factor,
    emission_term,
    initial_term,
    log_joint_here,
    time_axis,
    transition_term,
)
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.tridiagonal import block_solve, spread_block_solve


@jax.custom_jvp
def attach(posed: Posed, states: Array) -> Array:
    """Return the mode `(T, D)` as a function of the model; its value is `states`."""
    return states


@attach.defjvp
def _attach_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (posed, states), (change, _) = primals, tangents

    def gradient(posed: Posed) -> Array:
        return jax.grad(lambda x: log_joint_here(posed, x))(states)

    push = jax.jvp(gradient, (posed,), (change,))[1]
    blocks, couplings = lax.stop_gradient(precision_blocks(posed, states))
    if posed.axis.is_spread:
        return states, spread_block_solve(posed.axis, blocks, couplings, push)
    return states, block_solve(blocks, couplings, push)


def precision_blocks(posed: Posed, states: Array) -> tuple[Array, Array]:
    """Return B and C of -H, each `(T, D, D)`; C_0 is not used."""
    size = states.shape[1]

    def transition(before, after, entry, factor) -> Array:
        def term(pair: Array) -> Array:
            return transition_term(posed, pair[:size], pair[size:], entry, factor)

        return -jax.hessian(term)(jnp.concatenate([before, after]))

    def emission(state, *data) -> Array:
        return -jax.hessian(lambda x: emission_term(posed, x, *data))(state)

    factor, axis = dynamics_factor(posed)
    pairs = jax.vmap(transition, in_axes=(0, 0, 0, axis))(
        posed.before(states), posed.into(states), posed.inputs_into, factor
    )
    pairs = posed.masked(pairs)
    R = posed.emission_covariance
    blocks = jax.vmap(emission, in_axes=(0, 0, time_axis(R), 0, 0))(
        states, posed.inputs, R, posed.values, posed.observed
    )
    first = -jax.hessian(lambda x: initial_term(posed, x))(states[0])
    after, before = pairs[:, size:, size:], pairs[:, :size, :size]
    if posed.axis.is_spread:
        blocks = blocks.at[0].add(jnp.where(posed.axis.place == 0, first, 0))
        later = posed.axis.reversed()
        # A transition counts for the step before it, which may be another device's.
        before = later.before(jnp.zeros_like(first), before[::-1])[::-1]
        blocks = _exists_or_identity(posed, blocks + after + before)
        return blocks, pairs[:, size:, :size]
    blocks = blocks.at[0].add(first)
    blocks = blocks.at[:-1].add(before)
    blocks = blocks.at[1:].add(after)
    return blocks, jnp.zeros_like(blocks).at[1:].set(pairs[:, size:, :size])


def _exists_or_identity(posed: Posed, blocks: Array) -> Array:
    """Leave the steps past the end where they are."""
    if posed.exists is None:
        return blocks
    eye = jnp.eye(blocks.shape[1], dtype=blocks.dtype)
    return jnp.where(posed.exists[:, None, None], blocks, eye)
