r"""The log density of a trajectory with its emissions, term by term.

    log p(z, y) = log N(z_0; m, P) + sum_t log N(z_t; f(z_{t-1}, u_t), Q_t)
                  + sum_t log p(y_t | z_t)

A Gaussian term is a sum over scalars, after its covariance has been decorrelated by
elimination (no LAPACK call): with V C V' = diag(v) and w = V r,

    log N(r; 0, C) = -1/2 sum_i (w_i^2 / v_i + log 2 pi v_i).

A missing emission entry is made independent of the others and left out of the sum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.scalar_updates import whiten
from elk_ssm.linalg.small import matmul, matvec
from elk_ssm.linalg.structure import Dense, Operator
from elk_ssm.nssm.posed import Posed


class Factor(NamedTuple):
    """`inverse @ C @ inverse.T = diag(variances)`; no `inverse` for diagonals."""

    inverse: Array | None
    variances: Array

    def turn(self, vector: Array) -> Array:
        """Decorrelate a vector `(E,)`."""
        return vector if self.inverse is None else matvec(self.inverse, vector)

    def turn_rows(self, matrix: Array) -> Array:
        """Decorrelate the rows of a matrix `(E, D)`."""
        return matrix if self.inverse is None else matmul(self.inverse, matrix)


def factor_of(covariance: Operator) -> Factor:
    """Decorrelate one covariance."""
    if not covariance.mixes:
        return Factor(None, covariance.variances())
    return Factor(*whiten(covariance.to_dense()))


def observed_factor(covariance: Operator, observed: Array) -> Factor:
    """Decorrelate what was observed; missing entries get variance one."""
    if not covariance.mixes:
        return Factor(None, jnp.where(observed, covariance.variances(), 1))
    matrix = covariance.to_dense()
    identity = jnp.eye(observed.shape[0], dtype=matrix.dtype)
    kept = observed[:, None] & observed
    return factor_of(Dense(jnp.where(kept, matrix, identity)))


def log_normal(residual: Array, factor: Factor, observed: Any = True) -> Array:
    """Return log N(residual; 0, C), over the observed entries."""
    terms = factor.turn(residual) ** 2 / factor.variances
    terms = terms + jnp.log(2 * jnp.pi * factor.variances)
    return -0.5 * jnp.sum(jnp.where(observed, terms, 0))


def time_axis(covariance: Operator | None) -> int | None:
    """Return the axis over which `jax.vmap` maps a covariance."""
    return 0 if covariance is not None and covariance.varies else None


def dynamics_factor(posed: Posed) -> tuple[Factor | None, Any]:
    """Decorrelate Q for steps 1, ..., T-1, and say how to map it over time."""
    covariance = posed.dynamics_covariance
    if covariance is None:
        return None, None
    if time_axis(covariance) is None:
        return factor_of(covariance), None
    one = covariance.at(0).zeros().shift(1)
    into = covariance.like(posed.masked(posed.into(covariance.array), one.array))
    return jax.vmap(factor_of)(into), 0


def transition_term(
    posed: Posed, before: Array, after: Array, entry: PyTree, factor: Factor | None
) -> Array:
    """Return log N(after; f(before, u), Q)."""
    if factor is None:
        covariance = posed.call("dynamics_covariance", before, entry)
        factor = factor_of(Dense(covariance))
    return log_normal(after - posed.call("dynamics", before, entry), factor)


def emission_term(
    posed: Posed,
    state: Array,
    entry: PyTree,
    covariance: Operator | None,
    value: Array,
    observed: Array,
) -> Array:
    """Return log p(y | state) for the observed entries of y."""
    mean = posed.call("emission", state, entry)
    if not posed.is_gaussian:
        term = posed.call("log_density", mean, value, entry)
        return jnp.where(observed[0], term, 0)
    if covariance is None:
        covariance = Dense(posed.call("emission_covariance", state, entry))
    residual = jnp.where(observed, value - mean, 0)
    return log_normal(residual, observed_factor(covariance, observed), observed)


def transition_terms(posed: Posed, states: Array) -> Array:
    """Return the transition terms, T - 1 of them."""
    factor, axis = dynamics_factor(posed)
    terms = jax.vmap(
        lambda *args: transition_term(posed, *args), in_axes=(0, 0, 0, axis)
    )(posed.before(states), posed.into(states), posed.inputs_into, factor)
    return posed.masked(terms)


def emission_terms(posed: Posed, states: Array) -> Array:
    """Return the T emission terms."""
    covariance = posed.emission_covariance
    return jax.vmap(
        lambda *args: emission_term(posed, *args),
        in_axes=(0, 0, time_axis(covariance), 0, 0),
    )(states, posed.inputs, covariance, posed.values, posed.observed)


def initial_term(posed: Posed, state: Array) -> Array:
    """Return log N(z_0; m, P)."""
    factor = factor_of(Dense(posed.initial_covariance))
    return log_normal(state - posed.initial_mean, factor)


def log_joint(posed: Posed, states: Array) -> Array:
    """Return log p(z, y), `()`, on every device."""
    return posed.axis.total(log_joint_here(posed, states))


def log_joint_here(posed: Posed, states: Array) -> Array:
    """Return the terms of log p(z, y) of the steps that this device holds, `()`.

    What is differentiated with respect to the states: every device adds its own terms,
    and the derivative of their sum over devices is the sum of derivatives.
    """
    first = initial_term(posed, states[0])
    if posed.axis.is_spread:
        first = jnp.where(posed.axis.place == 0, first, 0)
    total = first + jnp.sum(emission_terms(posed, states))
    return total + jnp.sum(transition_terms(posed, states))
