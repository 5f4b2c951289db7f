"""What a linear-Gaussian model must not hold, said by name where values are known.

Inside `jit`, `vmap` or `grad` values are traced and nothing is checked: NaN in a model
then gives NaN, and a matrix that is no covariance is read as its symmetric part.
"""

from typing import Any

import jax
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm.linalg.structure import Operator

# Eigenvalues of more matrices than this are not looked at.
_MOST = 2_000
_MAY_BE_INFINITE = ("initial_covariance", "emission_covariance")


def check_numbers(name: str, array: Any) -> None:
    """Raise where an array has a NaN or an infinity, and say where.

    An infinite variance of an emission says that it is missing, one of the first
    state that nothing is known of it.

    Raises:
        ValueError: it has.
    """
    if array is None or is_traced(array):
        return
    numbers = np.asarray(array)
    bad = np.isnan(numbers)
    if bad.any():
        raise ValueError(f"{name} is NaN at {_place(bad)}.")
    bad = np.isinf(numbers)
    if bad.any() and name not in _MAY_BE_INFINITE:
        raise ValueError(f"{name} is infinite at {_place(bad)}.")


def check_emissions(emissions: Any, observed: Any) -> None:
    """Raise where an observed emission is infinite, and say where.

    Raises:
        ValueError: one is.
    """
    if is_traced(emissions) or is_traced(observed):
        return
    if not emissions.is_fully_addressable:
        return  # No process sees all of them.
    with jax.ensure_compile_time_eval():
        bad = np.isinf(np.asarray(emissions)) & np.asarray(observed)
    if bad.any():
        raise ValueError(
            f"emissions are infinite at {_place(bad)}; NaN stands for a gap."
        )


def check_covariance(name: str, covariance: Operator) -> None:
    """Raise unless a matrix, or each of many, is symmetric and PSD up to rounding.

    Raises:
        ValueError: it is not.
    """
    check_numbers(name, covariance.array)
    if is_traced(covariance.array):
        return
    with jax.ensure_compile_time_eval():
        variances = np.asarray(covariance.variances())
    if (variances < 0).any():
        at = _place(variances < 0)
        value = variances[variances < 0][0]
        raise ValueError(f"{name} has a negative variance, {value:.6g}, at {at}.")
    if not covariance.mixes:
        return
    matrices = np.asarray(covariance.array)
    bad = np.isinf(matrices) & ~np.eye(matrices.shape[-1], dtype=bool)
    if bad.any():
        raise ValueError(f"{name} is infinite at {_place(bad)}.")
    if not np.isfinite(variances).all():
        return
    slack = np.finfo(matrices.dtype).eps ** 0.5
    size = np.max(np.abs(matrices), axis=(-2, -1), keepdims=True)
    apart = np.abs(matrices - matrices.swapaxes(-1, -2)) > slack * size
    if apart.any():
        raise ValueError(f"{name} is not symmetric: its entry {_place(apart)} differs.")
    if matrices.size > _MOST * matrices.shape[-1] ** 2:
        return
    least = np.linalg.eigvalsh(matrices.astype(float))[..., 0]
    if (least < -slack * size[..., 0, 0]).any():
        value = np.min(least)
        raise ValueError(
            f"{name} is not positive semi-definite: it has the eigenvalue {value:.6g}."
        )


def expect_shape(
    name: str,
    shape: tuple[int, ...],
    static: tuple[int, ...],
    times: tuple[int, ...] = (),
) -> None:
    """Raise `ValueError` unless a shape is the static one, or that with time first."""
    allowed = {static, (*times, *static)}
    if tuple(shape) not in allowed:
        wanted = " or ".join(map(str, sorted(allowed, key=len)))
        raise ValueError(f"{name} must have shape {wanted}; got {tuple(shape)}.")


def _place(bad: np.ndarray) -> str:
    return str(tuple(map(int, np.argwhere(bad)[0])))
