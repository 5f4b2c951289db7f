r"""The exact curvature of the log posterior of a trajectory, block tridiagonal in time.

A term of log p(z, y) couples at most two neighbouring states, so -H, the negative
Hessian in the states, has blocks B_t and couplings C_t of steps t - 1 and t. They come
from autodiff of single terms, with the second derivatives of dynamics and emissions
that a Gauss-Newton expansion leaves out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.nssm.densities import (
    emission_term,
    initial_term,
    over_transitions,
    transition_term,
)
from elk_ssm.nssm.posed import Posed


class Curvature(NamedTuple):
    """The blocks of -H, and how large they are.

    Attributes:
        blocks: B, `(T, D, D)`.
        couplings: C, `(T, D, D)`; C_0 is zero.
        sizes: Sum of the magnitudes of what adds up to the diagonal of B, `(T, D)`.
    """

    blocks: Array
    couplings: Array
    sizes: Array


def curvature_of(posed: Posed, states: Array) -> Curvature:
    """Return -H of log p(z, y) at states `(T, D)`."""
    size = states.shape[1]
    pairs, emissions = _transitions(posed, states), emission_curvature(posed, states)
    residual = states[0] - posed.initial_mean
    first = -jax.hessian(lambda x: initial_term(posed, x))(residual)
    after, before = pairs[:, size:, size:], pairs[:, :size, :size]
    if posed.axis.is_sharded:
        later = posed.axis.reversed()
        # A transition counts for the step before it, which may be another device's.
        before = later.shift(jnp.zeros_like(first), before[::-1])[::-1]
        couplings = pairs[:, size:, :size]
    else:
        nothing = jnp.zeros((1, size, size), states.dtype)
        after = jnp.concatenate([nothing, after])
        before = jnp.concatenate([before, nothing])
        couplings = jnp.concatenate([nothing, pairs[:, size:, :size]])
    initial = jnp.zeros_like(emissions).at[0].set(first)
    parts = jnp.stack([initial, after, before, emissions])
    sizes = jnp.sum(jnp.abs(jnp.diagonal(parts, axis1=2, axis2=3)), axis=0)
    blocks = _exists_or_identity(posed, jnp.sum(parts, axis=0))
    return Curvature(blocks, couplings, sizes)


def _transitions(posed: Posed, states: Array) -> Array:
    """Return -H of the transition terms in pairs of states, `(..., 2 D, 2 D)`."""
    size = states.shape[1]

    def one(before, after, entry, factor) -> Array:
        def term(pair: Array) -> Array:
            return transition_term(posed, pair[:size], pair[size:], entry, factor)

        return -jax.hessian(term)(jnp.concatenate([before, after]))

    return over_transitions(posed, one, states)


def emission_curvature(posed: Posed, states: Array) -> Array:
    """Return -H of the emission terms, `(T, D, D)`."""

    def one(state, *data) -> Array:
        return -jax.hessian(lambda x: emission_term(posed, x, *data))(state)

    return posed.over_emissions(one, states)


def _exists_or_identity(posed: Posed, blocks: Array) -> Array:
    """Leave the steps past the end where they are."""
    if posed.exists is None:
        return blocks
    eye = jnp.eye(blocks.shape[1], dtype=blocks.dtype)
    return jnp.where(posed.exists[:, None, None], blocks, eye)
