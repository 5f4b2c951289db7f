r"""The log density of a trajectory with its emissions, term by term.

    log p(z, y) = log N(z_0; m, P) + sum_t log N(z_t; f(z_{t-1}, u_t), Q_t)
                  + sum_t log p(y_t | z_t)

What is missing of y_t is left out; see `observations`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.observations import Factor, Observations, factor_of, log_normal
from elk_ssm.linalg.structure import Dense, Operator
from elk_ssm.nssm.posed import Posed, time_axis


def over_transitions(posed: Posed, function: Callable, states: Array) -> Array:
    """Map `function(before, after, input, factor of Q)` over the transitions."""
    factor, axis = _dynamics_factor(posed)
    pairs = posed.shift(states), posed.into(states)
    found = jax.vmap(function, (0, 0, 0, axis))(*pairs, posed.inputs_into, factor)
    return posed.masked(found)


def _dynamics_factor(posed: Posed) -> tuple[Factor | None, Any]:
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
    seen: Observations,
) -> Array:
    """Return log p(y | state) for what was observed of y."""
    mean = posed.call("emission", state, entry)
    if not posed.is_gaussian:
        return seen.log_density(lambda y: posed.call("log_density", mean, y, entry))
    return seen.log_normal(mean, posed.emission_noise(state, entry, covariance))


def initial_term(posed: Posed, residual: Array) -> Array:
    """Return log N(residual; 0, P), on the device that holds the first step."""
    term = log_normal(residual, factor_of(Dense(posed.initial_covariance)))
    return (
        jnp.where(posed.axis.axis_index == 0, term, 0)
        if posed.axis.is_sharded
        else term
    )


def log_joint(posed: Posed, states: Array) -> Array:
    """Return log p(z, y), `()`, on every device."""
    return posed.axis.total(log_joint_here(posed, states))


def log_joint_along(posed: Posed, states: Array, step: Array) -> tuple[Array, Array]:
    """Return log p(z, y) and its derivative along a step `(T, D)`."""
    return jax.jvp(lambda x: log_joint(posed, x), (states,), (step,))


def log_joint_here(posed: Posed, states: Array) -> Array:
    """Return the terms of log p(z, y) of the steps that this device holds, `()`.

    What is differentiated with respect to the states: every device adds its own terms,
    and the derivative of their sum over devices is the sum of derivatives.
    """
    first = initial_term(posed, states[0] - posed.initial_mean)
    emissions = posed.over_emissions(partial(emission_term, posed), states)
    transitions = over_transitions(posed, partial(transition_term, posed), states)
    return first + jnp.sum(emissions) + jnp.sum(transitions)
