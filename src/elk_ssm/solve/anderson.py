r"""Anderson acceleration over time: the steps of earlier passes improve the next one.

A pass takes the nodes X to X + g, with g the undamped step. Of the last m passes it is
remembered how the nodes and their steps changed,

    dX_i = X^(i) - X^(i-1),      dG_i = g^(i) - g^(i-1),

and if steps were linear in the nodes, X - sum_i c_i dX_i would have the step
g - sum_i c_i dG_i. So the c that makes this smallest gives the next nodes

    X + g - sum_i c_i (dX_i + dG_i).

One c for all of time would mix what is nearly right at the start with what is far off
at the end, and let the future change the past: on long problems it is slower than not
to mix. Here node k has a c of its own, that of the least squares over nodes 1, ..., k

    (sum_{j<=k} dG_j^T dG_j + ridge) c_k = sum_{j<=k} dG_j^T g_j,

m x m systems from one cumulative sum. Nodes depend on earlier nodes only, as before,
and what is exact stays exact (there dX, dG and g are zero). The triangular form of Tang
et al. (2024), arXiv 2402.09970. Squares are in the units of the state: weights by the
size of each dimension were tried and are worse where iterates run away.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from elk_ssm._trees import static
from elk_ssm._types import Array, ArrayLike
from elk_ssm._values import Value, check_number, register_part
from elk_ssm.linalg.small import solve
from elk_ssm.parallel.time_axis import TimeAxis


@register_part
@dataclass(frozen=True, eq=False)
class Anderson(Value):
    """Mixes the steps of the last passes: for long, smooth problems without damping.

    Memory is 2 m (T, D) arrays and a (T, m, m) one besides. Dimensions count by their
    squares: scale states whose dimensions have very different sizes.

    Attributes:
        memory: How many passes m are remembered.
        ridge: Added to the diagonal of the least squares, relative to its trace.

    Raises:
        TypeError: A ridge that is no number.
        ValueError: A memory that is not a positive integer, or a ridge not positive.

    Example:
        >>> import elk_ssm as elk
        >>> elk.picard(anderson=elk.Anderson(4, ridge=1e-8)).anderson.memory
        4
    """

    memory: int = static(default=4)
    ridge: ArrayLike = 1e-6

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge, "must be a positive number")
        whole = isinstance(self.memory, int) and not isinstance(self.memory, bool)
        if not whole or self.memory < 1:
            raise ValueError(
                f"anderson must remember a positive number of passes; got "
                f"{self.memory!r}."
            )


class Remembered(NamedTuple):
    """The last nodes and their step, `(n, D)`, and m changes of both, `(m, n, D)`.

    Before the first pass all are zero, and count for nothing.
    """

    nodes: Array
    step: Array
    node_changes: Array
    step_changes: Array
    begun: Array


def remember_nothing(anderson: Anderson | None, nodes: Array) -> Remembered | None:
    """Return the memory before the first pass."""
    if anderson is None:
        return None
    zero = jnp.zeros_like(nodes)
    changes = jnp.zeros((anderson.memory, *nodes.shape), nodes.dtype)
    return Remembered(zero, zero, changes, changes, jnp.asarray(False))


def mix(
    anderson: Anderson, last: Remembered, nodes: Array, step: Array, axis: TimeAxis
) -> tuple[Array, Remembered]:
    """Return the accelerated step, and the memory with this pass in it.

    Where something is not finite the step is the plain one.
    """
    known = _remember(last, nodes, step)
    changes = known.step_changes
    products = [jnp.sum(changes * row[None], axis=-1) for row in (*changes, step)]
    gram = jnp.stack(products, axis=-1)
    gram = _so_far(jnp.moveaxis(gram, 0, 1), axis)
    matrix, right = gram[..., :-1], gram[..., -1:]
    trace = jnp.trace(matrix, axis1=1, axis2=2)[:, None, None]
    trace = jnp.where(trace > 0, trace, 1)
    eye = jnp.eye(anderson.memory, dtype=step.dtype)
    shares = solve(matrix / trace + anderson.ridge * eye[None], right / trace)[..., 0]
    both = known.node_changes + known.step_changes
    mixed = step
    for share, change in zip(shares.T, both, strict=True):
        mixed = mixed - share[:, None] * change
    usable = jnp.all(jnp.isfinite(mixed), axis=1, keepdims=True)
    return jnp.where(usable, mixed, step), known


def _remember(last: Remembered, nodes: Array, step: Array) -> Remembered:
    """Put the latest changes first and forget the oldest."""

    def push(changes: Array, new: Array, old: Array) -> Array:
        change = new - old
        clean = last.begun & jnp.all(jnp.isfinite(change), axis=1, keepdims=True)
        change = jnp.where(clean, change, 0)
        return jnp.concatenate([change[None], changes[:-1]])

    node_changes = push(last.node_changes, nodes, last.nodes)
    step_changes = push(last.step_changes, step, last.step)
    return Remembered(nodes, step, node_changes, step_changes, jnp.asarray(True))


def _so_far(x: Array, axis: TimeAxis) -> Array:
    """Sum of each entry and all before it, over devices too."""
    found = jnp.cumsum(x, axis=0)
    if not axis.is_sharded:
        return found
    totals = axis.gather(found[-1])
    earlier = jnp.arange(axis.size) < axis.axis_index
    return found + jnp.sum(jnp.where(earlier[:, None, None], totals, 0), axis=0)
