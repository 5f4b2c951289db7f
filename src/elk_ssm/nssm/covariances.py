r"""Covariances as they are declared: read, checked, and told singular from regular.

Where noise is missing in some direction, a covariance C = G G' has a zero eigenvalue
and the state no density on all of R^D. Whether that may be is a static choice, made
where numbers are known (an elimination in NumPy meets a pivot that is zero but for
rounding) or said by the model, because a program cannot depend on traced numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.checks import check_covariance
from elk_ssm.kalman.lgssm import expect_matrix
from elk_ssm.kalman.roundings import safe_sqrt
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.structure import LowRank, Operator, as_operator, to_dense

_ROUNDING_UNITS = 8
_REGULAR = "{} must be positive definite, or the log density does not exist; got"
_ADVICE = (
    "Give a noise-free emission a small variance; a model whose P or Q is singular has "
    "singular=True."
)


def is_function(given: Any) -> bool:
    """Whether a covariance is given as a function of state and input."""
    return callable(given) and not isinstance(given, jax.Array)


def read_covariance(
    name: str, given: Any, size: int, steps: int, dtype: Any, *, singular: bool = False
) -> Operator | None:
    """Return a covariance that is static or has `steps` entries, `None` for functions.

    Raises:
        ValueError: Its shape does not fit, or a number that is known is none of a
            covariance, or of a regular one if not `singular`.
    """
    if given is None or is_function(given):
        return None
    operator = as_operator(given, size, name)
    expect_matrix(name, operator, size, size, (steps,) if steps else ())
    if singular:
        check_covariance(name, operator)
    else:
        _check_variances(name, operator.variances())
        # The others are looked at where a model is made.
        if name == "emission_covariance" and is_singular(given, dtype):
            raise ValueError(f"{_REGULAR.format(name)} a zero eigenvalue. {_ADVICE}")
    return operator.like(operator.array.astype(dtype))


def dense_function(name: str, function: Callable, size: int, dtype: Any) -> Callable:
    """Return a state-dependent covariance as a function that gives `(D, D)`."""

    def dense(state: Array, entry: PyTree) -> Array:
        matrix = to_dense(as_operator(function(state, entry), size, name))
        if matrix.shape != (size, size):
            raise ValueError(f"expected shape {(size, size)}; got {matrix.shape}.")
        return matrix.astype(dtype)

    return dense


def noise_root(given: Any, size: int, name: str, dtype: Any) -> Array:
    """Return G with G G' = a covariance, `(..., D, r)`, of a zero column where r < D.

    A pivot of rounding counts as zero, so that what has no noise gets none at all.
    """
    if isinstance(given, LowRank) and given.factor.shape[-1] <= size:
        return jnp.asarray(given.factor).astype(dtype)
    operator = as_operator(given, size, name)
    array = operator.array.astype(dtype)
    operator = operator.like(array)
    if not operator.mixes:
        deviations = safe_sqrt(operator.variances())
        return deviations[..., None] * jnp.eye(size, dtype=dtype)
    matrices = to_dense(operator)
    flat = jax.vmap(_careful_root)(matrices.reshape(-1, size, size))
    return flat.reshape(matrices.shape)


def _careful_root(matrix: Array) -> Array:
    # Twice what detection allows, so that no pivot is zero there and not here.
    least = 2 * _rounding(matrix.dtype, len(matrix)) * jnp.diagonal(matrix)
    return square_root(matrix, jax.lax.stop_gradient(least))


def _rounding(dtype: Any, size: int) -> float:
    """Return what elimination may leave of a diagonal entry where nothing is left."""
    return _ROUNDING_UNITS * size * float(jnp.finfo(dtype).eps)


def is_singular(given: Any, dtype: Any) -> bool:
    """Whether a covariance is known to have a zero eigenvalue, and no negative one.

    False where numbers are traced, but for a `LowRank`; and for what is no covariance,
    which is told when the model meets data.
    """
    if isinstance(given, LowRank):
        return True
    if given is None or is_function(given):
        return False
    leaves = jax.tree.leaves(given)
    if not all(isinstance(x, (jax.Array, np.ndarray, float, int)) for x in leaves):
        return False
    if any(is_traced(x) for x in leaves):
        return False
    with jax.ensure_compile_time_eval():
        try:
            operator = as_operator(given, 1, "covariance")
            if not operator.mixes:
                pivots = variances = np.asarray(operator.variances())
            else:
                matrices = np.asarray(to_dense(operator), float)
                variances = np.diagonal(matrices, axis1=-2, axis2=-1)
                pivots = _pivots(matrices, _rounding(dtype, matrices.shape[-1]))
        except (ValueError, TypeError):
            return False
    if not np.isfinite(pivots).all():
        return False
    floor = _rounding(dtype, variances.shape[-1]) * np.abs(variances)
    return bool(np.any(np.abs(pivots) <= floor) and not np.any(pivots < -floor))


def _pivots(matrices: np.ndarray, rounding: float) -> np.ndarray:
    """Return the pivots of symmetric elimination, `(..., D)`."""
    rest = matrices.copy()
    size = rest.shape[-1]
    variances = np.diagonal(matrices, axis1=-2, axis2=-1)
    least = rounding * np.abs(variances)
    for k in range(size - 1):
        pivot = rest[..., k, k]
        usable = np.abs(pivot) > least[..., k]
        factor = np.where(usable, 1 / np.where(usable, pivot, 1), 0)[..., None]
        column = rest[..., k + 1 :, k]
        outer = column[..., :, None] * rest[..., k, None, k + 1 :]
        rest[..., k + 1 :, k + 1 :] -= factor[..., None] * outer
    return np.diagonal(rest, axis1=-2, axis2=-1)


def _check_variances(name: str, variances: Array) -> None:
    if is_traced(variances):
        return
    # NumPy, because under jit JAX would trace a comparison of known numbers as well.
    smallest = np.min(np.asarray(variances))
    if smallest > 0:
        return
    raise ValueError(f"{_REGULAR.format(name)} a variance of {smallest}. {_ADVICE}")
