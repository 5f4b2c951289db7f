r"""How the mode moves with the model: differentiate the equation, not the loop.

At the mode g(x, theta) = d/dx log p(x, y; theta) = 0, so along a change of theta

    -H x' = (dg/dtheta) theta',        H the Hessian of log p in x

H is block tridiagonal, because a term of log p couples at most two neighbouring states.
Its blocks come from autodiff of single terms, exact ones also where the iteration used
Gauss-Newton or sigma points, and the system is solved by block elimination over time:
for blocks B_t and couplings C_t of steps t - 1 and t,

    S_t = B_t - C_t S_{t-1}^-1 C_t'      y_t = v_t - C_t S_{t-1}^-1 y_{t-1}
    x_t = S_t^-1 (y_t - C_{t+1}' x_{t+1})

First derivatives, forward and reverse, are exact at a converged mode.
"""

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._types import Array
from elk_ssm.kalman.small_linalg import matmul, matvec, solve, transpose
from elk_ssm.nssm.densities import (
    dynamics_factor,
    emission_term,
    initial_term,
    log_joint_here,
    time_axis,
    transition_term,
)
from elk_ssm.nssm.posed import Posed


@jax.custom_jvp
def attach(posed: Posed, states: Array) -> Array:
    """Return the mode `(T, D)` as a function of the model; its value is `states`."""
    return states


@attach.defjvp
def _attach_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (posed, states), (change, _) = primals, tangents
    if posed.axis.is_spread:
        raise NotImplementedError(
            "smooth has no derivatives with a mesh: its block tridiagonal solve goes "
            "through time on one device. Differentiate without one."
        )

    def gradient(posed: Posed) -> Array:
        return jax.grad(lambda x: log_joint_here(posed, x))(states)

    push = jax.jvp(gradient, (posed,), (change,))[1]
    blocks, couplings = lax.stop_gradient(precision_blocks(posed, states))
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
        states[:-1], states[1:], posed.inputs_into, factor
    )
    R = posed.emission_covariance
    blocks = jax.vmap(emission, in_axes=(0, 0, time_axis(R), 0, 0))(
        states, posed.inputs, R, posed.values, posed.observed
    )
    first = -jax.hessian(lambda x: initial_term(posed, x))(states[0])
    blocks = blocks.at[0].add(first)
    blocks = blocks.at[:-1].add(pairs[:, :size, :size])
    blocks = blocks.at[1:].add(pairs[:, size:, size:])
    return blocks, jnp.zeros_like(blocks).at[1:].set(pairs[:, size:, :size])


def block_solve(blocks: Array, couplings: Array, rhs: Array) -> Array:
    """Solve a symmetric block tridiagonal system, `(T, D, D)` and `(T, D)`."""

    def forward(carry, entry):
        previous, y = carry
        B, C, v = entry
        gain = transpose(solve(transpose(previous), transpose(C)))
        S = B - matmul(gain, transpose(C))
        y = v - matvec(gain, y)
        return (S, y), (S, y)

    eye = jnp.eye(rhs.shape[1], dtype=rhs.dtype)
    start = (eye, jnp.zeros_like(rhs[0]))
    _, (pivots, reduced) = lax.scan(forward, start, (blocks, couplings, rhs))

    def backward(carry, entry):
        S, y, C_next = entry
        x = solve(S, (y - matvec(transpose(C_next), carry))[:, None])[:, 0]
        return x, x

    following = jnp.concatenate([couplings[1:], jnp.zeros_like(couplings[:1])])
    zero = jnp.zeros_like(rhs[0])
    return lax.scan(backward, zero, (pivots, reduced, following), reverse=True)[1]
