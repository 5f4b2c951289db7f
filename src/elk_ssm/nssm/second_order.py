r"""Log p(z, y) to second order around a trajectory, and systems with its Hessian.

    log p(x + d) = log p(x) + g' d - d' (-H) d / 2 + ...

W, the diagonal of the magnitudes that add up to -H, plus the precision 1 / q of the
process noise, is the unit in which shifts of -H and lengths of steps are measured.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.linalg.structure import variances_of
from elk_ssm.nssm.curvature import Curvature, curvature_of
from elk_ssm.nssm.densities import log_joint_here
from elk_ssm.nssm.expansion import process_covariance
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.tridiagonal import definite_solve
from elk_ssm.nssm.trust import variance_scale

_FLOOR = 0.1


class Around(NamedTuple):
    """Log p to second order around the states.

    `gradient: (T, D)`, `curvature` that of -H, `metric: (T, D)` the diagonal of W.
    """

    gradient: Array
    curvature: Curvature
    metric: Array


def look_around(posed: Posed, states: Array) -> Around:
    """Expand log p(z, y) to second order around states `(T, D)`."""
    gradient = jax.grad(lambda x: log_joint_here(posed, x))(states)
    curvature = curvature_of(posed, states)
    variances = variances_of(process_covariance(posed, states))
    metric = curvature.sizes + 1 / variance_scale(posed, variances)
    if posed.exists is not None:
        metric = jnp.where(posed.exists[:, None], metric, 1)
    return Around(gradient, curvature, metric)


def solve_shifted(
    posed: Posed, around: Around, shift: Array, rhs: Array, repair: bool
) -> tuple[Array, Array]:
    """Solve with -H + mu W, with pivots that are positive if `repair`.

    Returns:
        The solution `(T, D)`, and whether the matrix was positive definite.
    """
    blocks, couplings, _ = around.curvature
    eye = jnp.eye(rhs.shape[1], dtype=rhs.dtype)
    blocks = blocks + shift * around.metric[:, None] * eye[None]
    floors = _FLOOR * around.metric if repair else None
    return definite_solve(posed.axis, blocks, couplings, rhs, floors)


def dot(posed: Posed, left: Array, right: Array) -> Array:
    """Return the sum of products over all steps of all devices."""
    return posed.axis.total(jnp.sum(left * right))


def rounding_of(states: Array) -> float:
    """Return the shift that the rounding of the elimination may hide."""
    return 4.0 * (states.shape[1] + 1) * float(jnp.finfo(states.dtype).eps)
