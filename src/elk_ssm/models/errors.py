r"""Standard errors from the observed information.

With H the second derivatives of -log p(y) by the unconstrained parameters x at the
optimum, their covariance is H^-1, and that of the constrained v(x), J H^-1 J' to first
order (the delta method). A prior is not in H.

An interval is symmetric in x, where the likelihood is more nearly quadratic, so that a
variance's is of positive numbers: v(x +- c s / v'(x)) with s the standard error of v.

A parameter that the likelihood does not feel, H_ii below 0.01 (a standard error of ten
in log v), has gone to a boundary: it has none, and the others are those given it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.linalg.small import matmul, solve
from elk_ssm.models.bijections import Bijection

_FELT = 1e-2


class Errors(NamedTuple):
    """Standard errors `(m,)` of constrained parameters, and who has none, `(n,)`."""

    standard: Array
    at_boundary: Array


def errors_at(
    information: Array, constrained: Callable[[Array], Array], x: Array
) -> Errors:
    """Return the standard errors of constrained parameters, NaN for those without.

    Args:
        information: H, `(n, n)`.
        constrained: From unconstrained to constrained parameters, `(m,)`.
        x: The optimum.
    """
    felt = jnp.diagonal(information) > _FELT
    eye = jnp.eye(x.shape[0], dtype=x.dtype)
    kept = felt[:, None] & felt
    covariance = jnp.where(kept, solve(jnp.where(kept, information, eye), eye), 0)
    J = jax.jacfwd(constrained)(x)
    # In units of its slopes, or the square of a variance of 1e20 is inf in float32.
    units = jnp.max(jnp.abs(J), axis=1)
    units = jnp.where(units > 0, units, 1)
    slopes = J / units[:, None]
    variances = jnp.sum(matmul(slopes, covariance) * slopes, axis=1)
    # Of a vector of coefficients all depend on all of its unconstrained entries.
    lost = jnp.any((J != 0) & ~felt, axis=1) | ~(variances > 0)
    standard = jnp.where(lost, jnp.nan, units * jnp.sqrt(jnp.where(lost, 1, variances)))
    return Errors(standard, ~felt)


def interval(
    bijection: Bijection, value: Array, error: Array, reach: float
) -> tuple[Array, Array]:
    """Return the ends of intervals that are symmetric in what is unconstrained.

    Coefficients that hang together, as those of an autoregression, are not a number
    each there: theirs are symmetric in themselves.

    Args:
        bijection: Onto the values of the parameter.
        value: The parameter, any shape.
        error: Its standard errors; NaN gives NaN.
        reach: How many of them an end is away.
    """
    value, error = jnp.asarray(value), jnp.asarray(error)
    x = bijection.inverse(value)
    slopes = jax.jacfwd(bijection.forward)(x).reshape(value.size, value.size)
    slope = jnp.diagonal(slopes)
    if bool(jnp.any(slopes != jnp.diag(slope))):
        return value - reach * error, value + reach * error
    step = reach * error / slope.reshape(value.shape)
    return bijection.forward(x - step), bijection.forward(x + step)
