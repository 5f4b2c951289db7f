r"""The gate, and the prefix that is provably exact.

After k passes at least the first k unknowns are exact: the first inexact one takes its
rollout value, which starts from an exact state. That prefix is frozen. It also grows
over every following node that equals its rollout value bit for bit. A prefix that
merely has a small residual is not frozen: a small residual is not a small error.

The gate is a validation gate in the Kalman sense. A state that an update sends far
outside everything seen in the exact prefix, and whose residual is not small, is not
believed: it is set back to its own rollout value (blocks) or to the last exact state
(C = 1, where one step of f from a wrong state is worth little). States that become
non-finite are always set back, gate or no gate.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, ArrayLike
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.solve.stopping import differs_in_sign_of_zero


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gate:
    """Rejects states that leave the range of the exact prefix.

    Attributes:
        factor: A state passes while its magnitude, per dimension, stays below `factor`
            times the largest magnitude in the exact prefix.

    Example:
        >>> import elk_ssm as elk
        >>> elk.deer(block_size=16, gate=elk.Gate(factor=5.0)).gate.factor
        5.0
    """

    factor: ArrayLike = 3.0


def extend_prefix(
    exact: Array, nodes: Array, values: Array, axis: TimeAxis = LOCAL
) -> Array:
    """Number of exact nodes after this pass, given `exact` before it."""
    count = nodes.shape[0]
    equal = (nodes == values) & ~differs_in_sign_of_zero(nodes, values)
    same = jnp.all(equal, axis=1) | (axis.index(count) < exact)
    # First node that differs from its rollout value; it is exact once it takes it.
    (first,) = axis.first_true(~same)
    return jnp.minimum(first + 1, axis.size * count).astype(exact.dtype)


def settle_prefix(
    candidate: Array,
    nodes: Array,
    values: Array,
    exact: Array,
    axis: TimeAxis = LOCAL,
) -> Array:
    """Keep the exact nodes and let the next one take its rollout value.

    Args:
        candidate: Updated nodes, `(n, D)`.
        nodes: Nodes before the update.
        values: Their rollout values.
        exact: Number of exact nodes after this pass.
        axis: Where time lives.
    """
    index = axis.index(nodes.shape[0])[:, None]
    settled = jnp.where(index < exact - 1, nodes, candidate)
    return jnp.where(index == exact - 1, values, settled)


def set_back(
    gate: Gate | None,
    candidate: Array,
    values: Array,
    small: Array,
    initial: Array,
    exact: Array,
    *,
    to_rollout: bool,
    last_exact: Array | None = None,
    axis: TimeAxis = LOCAL,
) -> Array:
    """Apply the gate to updated nodes.

    Args:
        gate: The gate, or None to set back non-finite states only.
        candidate: Updated nodes with the exact prefix settled, `(n, D)`.
        values: Rollout values, `(n, D)`.
        small: Whether the residual of each node is small, `(n,)`.
        initial: x_0, `(D,)`.
        exact: Number of exact nodes after this pass; never set back.
        to_rollout: Whether rollout values, where finite, are what to set back to.
        last_exact: The last state of the exact prefix, if the caller has it at hand.
        axis: Where time lives.

    Returns:
        The gated nodes, `(n, D)`.
    """
    frozen = axis.index(candidate.shape[0]) < exact
    refused = ~jnp.all(jnp.isfinite(candidate), axis=1)
    if gate is not None:
        seen = jnp.where(frozen[:, None], jnp.abs(candidate), 0)
        (furthest,) = axis.largest(jnp.max(seen, axis=0))
        radius = gate.factor * jnp.maximum(furthest, jnp.abs(initial))
        # NaN compares false on the inside, so that it is outside.
        inside = jnp.all(jnp.abs(candidate) <= radius, axis=1)
        refused = refused | (~inside & ~small)
    refused = refused & ~frozen
    if last_exact is None:
        edge = axis.row(candidate, jnp.maximum(exact - 1, 0))
        last_exact = jnp.where(exact > 0, edge, initial)
    if to_rollout:
        usable = jnp.all(jnp.isfinite(values), axis=1, keepdims=True)
        fallback = jnp.where(usable, values, last_exact)
    else:
        fallback = jnp.broadcast_to(last_exact, values.shape)
    return jnp.where(refused[:, None], fallback, candidate)
