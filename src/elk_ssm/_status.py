"""How a solve ended, and what to try then."""

import enum

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._memory import explained
from elk_ssm._types import Array


class Status(enum.IntEnum):
    """How a solve ended. The members are integers, so they live inside `jit`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Status(1).name
        'max_iters_reached'
        >>> "max_iters" in elk.Status(1).message
        True
    """

    converged = 0
    max_iters_reached = 1
    nonfinite = 2
    precision_limit = 3
    saddle = 4
    unbounded = 5

    @property
    def message(self) -> str:
        """What the status means and what to try."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.converged: (
        "Residuals, undamped steps and the error that they add up to are below "
        "tolerance, or every state is provably exact."
    ),
    Status.max_iters_reached: (
        "The iteration was cut off before it converged. The states are the last "
        "iterate. Raise max_iters, or try another method or noise."
    ),
    Status.nonfinite: (
        "f itself returned a non-finite value on the true trajectory, at the step "
        "given by failed_step; the states after it repeat the last finite one. No "
        "method can go past it; check f, its parameters and "
        "the inputs there."
    ),
    Status.precision_limit: (
        "The residual is at the rounding floor but the trajectory amplifies rounding "
        "by more than the tolerance allows, as chaotic recurrences do. The states are "
        "a trajectory of f up to rounding; step_norm estimates the error. Use float64 "
        "or a larger tol."
    ),
    Status.saddle: (
        "The log posterior has no slope at the states but bends upwards along some "
        "direction, and no step along it raised it by more than rounding: they are no "
        "mode. Try another guess, or float64."
    ),
    Status.unbounded: (
        "The log posterior grows without bound, so there is no mode. The states are "
        "the last iterate. Look for a log density that grows faster than the Gaussian "
        "terms fall, or for a covariance that a state can drive to zero."
    ),
}


def int_status(status: Status) -> Array:
    """A status as the int32 array that solutions carry."""
    return jnp.asarray(int(status), jnp.int32)


def concrete(status: Array) -> np.ndarray:
    """Return statuses as numbers, which waits for the computation that they end.

    Raises:
        TypeError: They are traced.
        jax.errors.JaxRuntimeError: The computation failed.
    """
    try:
        with explained():
            return np.asarray(status)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # jax raises its own tracer errors, by version
        raise TypeError(
            "raise_if_failed needs concrete values; call it outside jit, vmap and "
            "grad. Inside, branch on solution.status == elk.Status.converged."
        ) from error
