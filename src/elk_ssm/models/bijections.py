r"""Constrained parameters from unconstrained ones, and back.

    positive      v = exp(x)
    fraction      v = 1 / (1 + exp(-x))
    between       v = low + (high - low) / (1 + exp(-x))
    stationary    partial autocorrelations r = x / sqrt(1 + x^2), from which the
                  recursion of Durbin and Levinson makes coefficients (Monahan, 1984,
                  A note on enforcing stationarity in autoregressive-moving average
                  models)
    invertible    the same with the signs of a moving average
    real          v = x

A variance of zero is at x = -inf: it can be a fixed parameter, not a start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array


@dataclass(frozen=True)
class Bijection:
    """A map from all real numbers onto the values that a parameter may take.

    Attributes:
        forward: From unconstrained to constrained.
        inverse: From constrained to unconstrained.
        holds: Whether values, as a NumPy array, are allowed; the boundary is.
        domain: The values that are, in words.
    """

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    holds: Callable[[np.ndarray], bool]
    domain: str


def levinson(partial: Array) -> Array:
    """Return the coefficients `(p,)` that partial autocorrelations `(p,)` belong to.

    Example:
        >>> levinson(jnp.array([0.5, 0.2])).tolist()
        [0.4000000059604645, 0.20000000298023224]
    """
    found = partial[:1]
    for k in range(1, partial.shape[0]):
        last = partial[k]
        found = jnp.append(found - last * found[::-1], last)
    return found


def partials(coefficients: Array) -> Array:
    """Return the partial autocorrelations of coefficients, the inverse of `levinson`.

    Example:
        >>> partials(jnp.array([0.4, 0.2])).tolist()
        [0.5, 0.20000000298023224]
    """
    rest, found = coefficients, []
    for _ in range(coefficients.shape[0]):
        last = rest[-1]
        found.append(last)
        rest = (rest[:-1] + last * rest[:-1][::-1]) / (1 - last**2)
    return jnp.stack(found[::-1]) if found else coefficients


def _is_stationary(coefficients: np.ndarray) -> bool:
    roots = np.roots(np.append(1.0, -coefficients))
    return bool(np.all(np.abs(roots) <= 1))


def _to_partials(x: Array) -> Array:
    return x / jnp.sqrt(1 + x**2)


def _from_partials(r: Array) -> Array:
    return r / jnp.sqrt(1 - r**2)


def _any(value: Any) -> bool:
    return bool(np.all(np.isfinite(value)))


positive = Bijection(jnp.exp, jnp.log, lambda v: bool(np.all(v >= 0)), "at least 0")
fraction = Bijection(
    jax.nn.sigmoid,
    lambda v: jnp.log(v) - jnp.log1p(-v),
    lambda v: bool(np.all((v >= 0) & (v <= 1))),
    "between 0 and 1",
)
real = Bijection(lambda x: x, lambda v: v, _any, "a finite number")
stationary = Bijection(
    lambda x: levinson(_to_partials(x)),
    lambda v: _from_partials(partials(v)),
    _is_stationary,
    "stationary: the roots of the characteristic polynomial lie inside the unit circle",
)
invertible = Bijection(
    lambda x: -levinson(_to_partials(x)),
    lambda v: _from_partials(partials(-v)),
    lambda v: _is_stationary(-v),
    "invertible: the roots of the characteristic polynomial lie inside the unit circle",
)


def between(low: float, high: float) -> Bijection:
    """Return the bijection onto the numbers from `low` to `high`.

    Example:
        >>> round(float(between(1.0, 3.0).forward(0.0)), 6)
        2.0
    """
    width = high - low
    return Bijection(
        lambda x: low + width * jax.nn.sigmoid(x),
        lambda v: jnp.log(v - low) - jnp.log(high - v),
        lambda v: bool(np.all((v >= low) & (v <= high))),
        f"between {low:g} and {high:g}",
    )
