"""Ratios of gamma functions that are not differences of large numbers."""

import jax.numpy as jnp
from jax.scipy.special import gammaln

from elk_ssm._types import Array

# Beyond it differences of log gamma functions are roundings sooner than Stirling errs.
_LARGE = 30.0


def log_rising(size: Array, y: Array) -> Array:
    """Return log Gamma(r + y) / (Gamma(r) r^y), by Stirling's series for large r."""
    few, many = jnp.minimum(size, _LARGE), jnp.maximum(size, _LARGE)
    plain = gammaln(y + few) - gammaln(few) - y * jnp.log(few)
    tail = 1 / (many + y) - 1 / many
    cubes = 1 / (many + y) ** 3 - 1 / many**3
    series = (many + y - 0.5) * jnp.log1p(y / many) - y + tail / 12 - cubes / 360
    return jnp.where(size < _LARGE, plain, series)
