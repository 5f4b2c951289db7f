r"""The trust region as observations: the increments are observed near zero.

    d_ti observed as e_ti / p_ti with variance 1 / p_ti,    p = 1 / (s^2 q)

s^2 is the noise policy's, in units of the process variance q_ti = (Q_t)_ii (of the
initial variance at t = 0), so the rows are the Levenberg-Marquardt damping that the
package uses everywhere. e is the part of the gradient of the log density that a linear-
Gaussian expansion does not have: that of state-dependent covariances,

    e = d/dx [ sum_t log N(r_t; 0, Q(x_{t-1})) + log N(s_t; 0, R(x_t)) ],  r, s held.
"""

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.kalman.observations import factor_of, log_normal
from elk_ssm.linalg.structure import Dense, variances_of
from elk_ssm.nssm.expansion import Expansion
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.rows import Rows, least_precision


def noise_scale(posed: Posed, expansion: Expansion) -> Array:
    """Return q, `(T, D)`, the variances that s^2 is relative to."""
    return variance_scale(posed, variances_of(expansion.covariance))


def variance_scale(posed: Posed, variances: Array) -> Array:
    """Return process variances `(T, D)`, the initial one at the first step of all."""
    q = jnp.broadcast_to(variances, posed.shape)
    return posed.at_start(jnp.diagonal(posed.initial_covariance), q)


def trust_rows(precision: Array, tilt: Array | None) -> Rows:
    """Observe every increment.

    Args:
        precision: 1 / (s^2 q), `(T, D)`; zero observes nothing.
        tilt: e, `(T, D)`, or `None`.
    """
    steps, size = precision.shape
    pull = jnp.zeros_like(precision) if tilt is None else tilt
    if tilt is not None:
        precision = jnp.maximum(precision, least_precision(precision.dtype))
    observed = precision > 0
    variances = 1 / jnp.where(observed, precision, 1)
    weights = jnp.broadcast_to(jnp.eye(size, dtype=pull.dtype), (steps, size, size))
    return Rows(weights, variances, pull * variances, observed)


def covariance_tilt(posed: Posed, states: Array) -> Array | None:
    """Return e, `(T, D)`, or `None` if no covariance depends on the state."""
    if not posed.has_varying_noise:
        return None
    # Each device adds its own terms, so this is the gradient of the sum over devices.
    return jax.grad(lambda moving: _held_residuals(posed, states, moving))(states)


def _held_residuals(posed: Posed, states: Array, moving: Array) -> Array:
    total = jnp.zeros((), states.dtype)
    if posed.program.dynamics_covariance is not None:

        def transition(held, after, at, entry):
            residual = after - posed.call("dynamics", held, entry)
            Q = posed.call("dynamics_covariance", at, entry)
            return log_normal(residual, factor_of(Dense(Q)))

        data = posed.shift(states), posed.into(states), posed.shift(moving)
        terms = jax.vmap(transition)(*data, posed.inputs_into)
        total = total + jnp.sum(posed.masked(terms))
    if posed.program.emission_covariance is not None:

        def emission(held, at, entry, covariance, seen):
            mean = posed.call("emission", held, entry)
            return seen.log_normal(mean, posed.emission_noise(at, entry, covariance))

        total = total + jnp.sum(posed.over_emissions(emission, states, moving))
    return total
