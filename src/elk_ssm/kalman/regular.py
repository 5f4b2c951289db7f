r"""Which models need care, or none, as far as that is known before any data.

A model that surely needs none is one program: neither the careful ways beside the quick
ones nor the question between them. What a filter knows of a state is no less than what
is known without data,

    C_t = F C_{t-1} F' + Q  <=  c S,        S = F S F' + Q,   c the least with P <= c S,

of a model that is static and stable, so an emission's noise that is above the roundings
of c H S H' is above those of whatever variance is left, and likewise for the dynamics
(see `delicate`, which asks the filtered moments themselves).
"""

from typing import Any, Literal, TypeAlias

import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.linalg.structure import Operator

# Beyond so many dimensions the question takes longer than is worth it.
_LARGEST = 64
# Of what `delicate` calls enough noise, for the roundings of the answer.
_SAFE = 2.0
# S adds up 2^n steps.
_DOUBLINGS = 24
Need: TypeAlias = Literal["none", "care", "unknown"]


def need_of(problem: Problem, *, smooth: bool) -> Need:
    """Return what a model needs whatever its data are; unknown where it is traced.

    Args:
        problem: The model with its data.
        smooth: Whether it is to be smoothed, or filtered only.
    """
    Q, R = problem.covariance, problem.emission_covariance
    if is_singular(R) or (smooth and is_singular(Q)):
        return "care"
    if any(is_traced(x.array) or x.varies for x in problem.operators):
        return "unknown"
    if problem.initial_mean.shape[0] > _LARGEST:
        return "unknown"
    P, F, noise, H, _ = map(_matrix, problem.operators)
    variances = _most(P, F, noise)
    if variances is None:
        return "unknown"
    eps = float(np.finfo(problem.values.dtype).eps)
    enough = _share(R, H, variances) > _SAFE * 4 * eps
    if smooth:
        enough = enough and _share(Q, F, variances) > _SAFE * 3 * eps**0.5
    return "none" if enough else "unknown"


def is_singular(covariance: Operator) -> bool:
    """Whether some direction surely has no noise; not where values are traced."""
    if is_traced(covariance.array):
        return False
    array = np.asarray(covariance.array)
    variances = np.diagonal(array, 0, -2, -1) if covariance.mixes else array
    if np.any(variances <= 0) or not covariance.mixes or covariance.varies:
        return bool(np.any(variances <= 0))
    return bool(np.any(least_share(covariance) <= np.finfo(array.dtype).eps))


def least_share(covariance: Operator) -> np.ndarray:
    """Return the least eigenvalue of the correlations, whatever the units, `(...)`."""
    array = np.asarray(covariance.array, float)
    variances = np.diagonal(array, 0, -2, -1)
    deviations = np.sqrt(variances)
    with np.errstate(all="ignore"):
        array = array / (deviations[..., :, None] * deviations[..., None, :])
    # What is infinite is never asked.
    array = np.where(np.isfinite(array), array, np.eye(array.shape[-1]))
    known = np.any(variances <= 0, axis=-1)
    return np.where(known, 0, np.linalg.eigvalsh(array)[..., 0])


def _matrix(operator: Operator) -> np.ndarray:
    array = np.asarray(operator.array, float)
    if not operator.mixes:
        return np.diag(array)
    if array.ndim == 2:
        return array
    count, rows, columns = array.shape
    blocks = np.zeros((count, rows, count, columns))
    blocks[range(count), :, range(count)] = array
    return blocks.reshape(count * rows, count * columns)


def _most(P: np.ndarray, F: np.ndarray, Q: np.ndarray) -> np.ndarray | None:
    """Return c diag(S), or `None` where there is none that floats tell."""
    with np.errstate(all="ignore"):
        A, S = F, Q
        for _ in range(_DOUBLINGS):
            A, S = A @ A, S + A @ S @ A.T
        if not np.all(np.isfinite(S)) or np.max(np.abs(A)) > 1e-6:
            return None
        try:
            root = np.linalg.cholesky(S)
            ratio = np.linalg.solve(root, np.linalg.solve(root, P).T)
        except np.linalg.LinAlgError:
            return None
        c = max(1.0, np.linalg.eigvalsh((ratio + ratio.T) / 2)[-1])
        return c * np.diag(S) if np.isfinite(c) else None


def _share(noise: Operator, weights: np.ndarray, variances: np.ndarray) -> Any:
    """Return the least noise of a scalar over the variance that is seen, or less.

    Correlated noise is decorrelated before by some W: in units of the deviations a row
    w of it has noise w C w', at least the least eigenvalue of C times w w', and sees at
    most w w' times all that is seen.
    """
    seen = weights**2 @ variances
    with np.errstate(all="ignore"):
        seen = seen / np.diag(_matrix(noise))
        if not noise.mixes:
            return 1 / np.max(seen)
        return np.min(least_share(noise)) / np.sum(seen)
