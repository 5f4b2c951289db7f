r"""How the mode moves with the model: differentiate the equation, not the loop.

At the mode g(x, theta) = d/dx log p(x, y; theta) = 0, so along a change of theta

    -H x' = (dg/dtheta) theta',        H the Hessian of log p in x

H is block tridiagonal (see `curvature`), exact also where the iteration used
Gauss-Newton or sigma points, and the system is solved by block elimination over time
(see `tridiagonal`). The rule is written in the mode as a function of the model, H
included, so it may be differentiated again: derivatives of every order are those of the
equation, exact at a converged mode.
"""

import jax

from elk_ssm._types import Array
from elk_ssm.nssm.curvature import curvature_of
from elk_ssm.nssm.densities import log_joint_here
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.tridiagonal import block_solve, sharded_block_solve


@jax.custom_jvp
def attach(posed: Posed, states: Array) -> Array:
    """Return the mode `(T, D)` as a function of the model; its value is `states`."""
    return states


@attach.defjvp
def _attach_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (posed, states), (change, _) = primals, tangents
    # Attached again: what follows moves with the model when it is differentiated.
    mode = attach(posed, states)

    def gradient(posed: Posed) -> Array:
        return jax.grad(lambda x: log_joint_here(posed, x))(mode)

    push = jax.jvp(gradient, (posed,), (change,))[1]
    blocks, couplings, _ = curvature_of(posed, mode)
    if posed.axis.is_sharded:
        return mode, sharded_block_solve(posed.axis, blocks, couplings, push)
    return mode, block_solve(blocks, couplings, push)
