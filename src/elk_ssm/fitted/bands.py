r"""Bands of normal variables: mean +- z sd, z = Phi^-1((1 + level) / 2)."""

from typing import Any

import jax.numpy as jnp
from jax.scipy.special import ndtri

from elk_ssm._jax import is_traced
from elk_ssm._types import Array


def check_level(level: Any) -> None:
    """Raise unless a level is a probability between zero and one.

    Raises:
        ValueError: It is not.
    """
    if not is_traced(level) and not 0 < float(level) < 1:
        raise ValueError(
            f"level must be a probability between 0 and 1, as 0.95; got {level}."
        )


def edges(mean: Array, variance: Array, level: Any) -> tuple[Array, Array]:
    """Return the lower and upper edge of bands of a level."""
    reach = ndtri(0.5 + 0.5 * jnp.asarray(level, mean.dtype)) * jnp.sqrt(variance)
    return mean - reach, mean + reach
