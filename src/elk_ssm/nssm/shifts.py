"""How a shift of the Hessian grows until a step is good, and shrinks after one."""

import jax.numpy as jnp

from elk_ssm._types import Array

MOST_TRIES = 24
_FIRST, _GROWTH, _GOOD = 1e-4, 8.0, 0.75


def grown(shift: Array) -> Array:
    """Return the shift to try after one whose step was not good enough, `()`."""
    return jnp.maximum(_GROWTH * shift, _FIRST)


def lessened(shift: Array, rise: Array, predicted: Array, slack: Array) -> Array:
    """Return the shift to begin the next pass with, `()`.

    Less where the merit rose by most of what was predicted; none where it is small, or
    where rounding hides what is left to rise.
    """
    less = jnp.where(rise >= _GOOD * predicted, shift / 10, shift)
    return jnp.where((less < _FIRST) | (predicted <= slack), 0, less)
