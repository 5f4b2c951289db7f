"""What a pass finds before it changes anything, and the update that it suggests."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.kalman.affine import affine_scan
from elk_ssm.kalman.damped import damped_filter_means, damped_smoother
from elk_ssm.linalg.structure import Operator
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.solve.nodes import Blocks, linearize_nodes
from elk_ssm.solve.options import Options


class Pass(NamedTuple):
    """What one pass found before it changed anything."""

    values: Array
    operator: Operator
    residual: Array
    undamped: Array


def evaluate_pass(
    blocks: Blocks, options: Options, nodes: Array, iteration: Array
) -> Pass:
    """Evaluate f and its Jacobians at the nodes, and find the undamped step."""
    linearization = options.concrete.linearization
    values, operator = linearize_nodes(linearization, blocks, nodes, iteration)
    if (real := blocks.real) is not None:
        # What does not exist is where it should be and passes nothing on.
        values = jnp.where(real[:, None], values, nodes)
        operator = operator.where(real, 0)
    residual = nodes - values
    how: Any = {"backend": options.backend, "axis": blocks.axis}
    return Pass(values, operator, residual, affine_scan(operator, -residual, **how))


def damped_update(
    blocks: Blocks, options: Options, seen: Pass, noise: Array, unasked: Array
) -> Array:
    """Filter or smoother mean; the undamped step itself where s^2 is inf throughout.

    And where nobody asks for another, which spares the filter if it is so for all
    members of a batch.
    """
    axis = blocks.axis
    how: Any = {"backend": options.backend, "axis": axis}

    def damped(seen: Pass) -> Array:
        problem = seen.operator, -seen.residual, noise
        if options.concrete.estimate == "smoother":
            return damped_smoother(*problem, **how).means
        return damped_filter_means(*problem, **how)

    undamped = jnp.isinf(noise)
    undamped = axis.all(undamped) if _varies(noise) else jnp.all(undamped)
    undamped = undamped | unasked
    found = jax.lax.cond(anywhere(~undamped), damped, lambda s: s.undamped, seen)
    return jnp.where(undamped, seen.undamped, found)


def _varies(noise: Array) -> bool:
    """Whether there is noise for every unknown, which devices then share."""
    return noise.ndim == 2


def mean_noise(blocks: Blocks, noise: Array) -> Array:
    """Geometric mean of s^2."""
    if not (blocks.axis.is_sharded and _varies(noise)):
        return jnp.exp(jnp.mean(jnp.log(noise)))
    logs = jnp.log(noise)
    if blocks.real is not None:
        logs = jnp.where(blocks.real[:, None], logs, 0)
    total = blocks.axis.total(jnp.sum(logs))
    return jnp.exp(total / (blocks.unknowns * noise.shape[1]))
