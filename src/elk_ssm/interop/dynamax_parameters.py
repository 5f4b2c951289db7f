"""dynamax's types, once they are known to be recent enough, and how its arrays read."""

import functools
import importlib
import importlib.metadata
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.structure import Dense, Diagonal

_OLDEST = (1, 0, 3)


@functools.cache
def dynamax_types() -> Any:
    """Import dynamax's types, once its version is known to be recent enough."""
    try:
        version = importlib.metadata.version("dynamax")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("elk_ssm.interop.dynamax needs dynamax >= 1.0.3.") from error
    check_version(version)
    return importlib.import_module("dynamax.linear_gaussian_ssm")


def check_version(version: str) -> None:
    """Raise `ImportError` if this version of dynamax has the old index convention.

    Args:
        version: Such as `"1.0.3"`.

    Example:
        >>> from elk_ssm.interop.dynamax import check_version
        >>> check_version("1.0.3")
    """
    found = tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
    if found < _OLDEST:
        raise ImportError(
            f"elk_ssm.interop.dynamax needs dynamax >= 1.0.3; found {version}. Until "
            "1.0.2, entry t of time-varying dynamics mapped z_t to z_{t+1}; since "
            "1.0.3 it maps z_{t-1} to z_t, so the same arrays mean different models. "
            "Upgrade dynamax and shift such arrays by one step."
        )


def as_float(array: Any) -> Array:
    """Return an array of floating-point numbers."""
    array = jnp.asarray(array)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array if floating else array.astype(jnp.result_type(float))


def materialise(name: str, parameter: Any, num_timesteps: int | None) -> Any:
    """Turn a function of the step into an array; leave arrays and `None` alone."""
    if parameter is None:
        return None
    if not callable(parameter):
        return as_float(parameter)
    if num_timesteps is None:
        raise TypeError(f"{name} is a function of the step: give num_timesteps.")
    return as_float(jax.vmap(parameter)(jnp.arange(num_timesteps)))


def emission_covariance(covariance: Any, width: int) -> Dense | Diagonal:
    """Read a covariance by its shape, as dynamax does; see `from_dynamax`."""
    covariance = as_float(covariance)
    static = covariance.shape == (width, width)
    if covariance.ndim == 1 or (covariance.ndim == 2 and not static):
        return Diagonal(covariance)
    return Dense(covariance)
