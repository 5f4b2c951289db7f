r"""The gate, and the prefix that is provably exact.

After k passes at least the first k unknowns are exact: the first inexact one takes its
rollout value, which starts from an exact state. That prefix is frozen. It also grows
over every following node that equals its rollout value bit for bit. A prefix that
merely has a small residual is not frozen: a small residual is not a small error.

The gate is a validation gate in the Kalman sense. A state that an update sends far
outside everything seen in the exact prefix, and whose residual is not small, is not
believed: it is rejected for its own rollout value (blocks) or for the last exact state
(C = 1, where one step of f from a wrong state is worth little). States that become
non-finite are always rejected, gate or no gate.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from elk_ssm._trees import static
from elk_ssm._types import Array, ArrayLike
from elk_ssm._values import Value, check_number, register_part
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis
from elk_ssm.solve.nodes import Blocks, linearize_nodes
from elk_ssm.solve.stopping import differs_in_sign_of_zero
from elk_ssm.surrogate.jacobians import ZeroJacobian


@register_part
@dataclass(frozen=True, eq=False)
class Gate(Value):
    """Rejects states that leave the range of the exact prefix.

    Attributes:
        factor: A state passes while its magnitude, per dimension, stays below `factor`
            times the largest magnitude in the exact prefix.
        rollouts: How often, after a pass that was gated, all nodes take their rollout
            values, without Jacobians: passes of zero order, which cost a fraction. A
            state that was sent to a wrong place in range is so brought back to where
            the recurrence itself goes, and the hard cases take a half or a third of the
            passes (docs/convergence.md). Blocks of one step have none.

    Raises:
        TypeError: A factor that is no number.
        ValueError: A factor that is not positive, or a number of rollouts that is not
            an integer of at least 0.

    Example:
        >>> import elk_ssm as elk
        >>> elk.deer(block_size=16, gate=elk.Gate(factor=5.0)).gate.factor
        5.0
    """

    factor: ArrayLike = 3.0
    rollouts: int = static(default=0)

    def __post_init__(self) -> None:
        check_number("factor", self.factor, "must be a positive number")
        number = self.rollouts
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(
                f"rollouts must be an integer of at least 0; got {number!r}."
            )


def beyond_prefix(
    exact: Array, nodes: Array, values: Array, axis: TimeAxis = LOCAL
) -> Array:
    """Where nodes differ from their rollout values, `(n, D)`, none of `exact` ones.

    The first of them is exact once it takes its rollout value.
    """
    equal = (nodes == values) & ~differs_in_sign_of_zero(nodes, values)
    return ~(equal | (axis.index(nodes.shape[0])[:, None] < exact))


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


def rejected(
    gate: Gate | None, blocks: Blocks, nodes: Array, small: Array, exact: Array
) -> Array:
    """Which updated nodes the gate does not believe, `(n,)`.

    Args:
        gate: The gate, or None to reject non-finite states only.
        blocks: The blocks that end at these nodes.
        nodes: Updated nodes with the exact prefix settled, `(n, D)`.
        small: Whether the residual of each node is small, `(n,)`.
        exact: Number of exact nodes after this pass; never rejected.
    """
    axis = blocks.axis
    frozen = axis.index(nodes.shape[0]) < exact
    outside = ~jnp.all(jnp.isfinite(nodes), axis=1)
    if gate is not None:
        seen = jnp.where(frozen[:, None], jnp.abs(nodes), 0)
        (furthest,) = axis.largest(jnp.max(seen, axis=0))
        radius = gate.factor * jnp.maximum(furthest, jnp.abs(blocks.initial))
        # NaN compares false on the inside, so that it is outside.
        inside = jnp.all(jnp.abs(nodes) <= radius[None], axis=1)
        outside = outside | (~inside & ~small)
    return outside & ~frozen


def instead_of_rejected(blocks: Blocks, values: Array, edge: Array) -> Array:
    """What rejected nodes become, `(n, D)`: rollout values, or the last exact state.

    Args:
        blocks: The blocks that end at the nodes.
        values: Rollout values, `(n, D)`.
        edge: The last state of the exact prefix, `(D,)`.
    """
    if blocks.size == 1:
        return jnp.broadcast_to(edge, values.shape)
    usable = jnp.all(jnp.isfinite(values), axis=1, keepdims=True)
    return jnp.where(usable, values, edge)


def even_out(gate: Gate, blocks: Blocks, nodes: Array, exact: Array) -> Array:
    """Let all nodes after the exact ones take their rollout values, several times."""
    first = jnp.asarray(0, jnp.int32)
    frozen = blocks.axis.index(nodes.shape[0])[:, None] < exact
    for _ in range(gate.rollouts):
        values, _ = linearize_nodes(ZeroJacobian(), blocks, nodes, first)
        stay = frozen | ~jnp.all(jnp.isfinite(values), axis=1, keepdims=True)
        if blocks.real is not None:
            stay = stay | ~blocks.real[:, None]
        nodes = jnp.where(stay, nodes, values)
    return nodes
