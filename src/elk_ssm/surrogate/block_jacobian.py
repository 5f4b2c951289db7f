r"""The blocks of the Jacobian between entries that belong together.

An LSTM has (c_i, h_i), a Hamiltonian system (q_i, p_i), a sampler its position and its
gradient, a layer its heads: a unit of a few numbers that act on each other strongly,
and on other units weakly or not at all. The stand-in keeps what happens inside of each
unit, n blocks of b x b, in `(T, D, b)` memory. Where f has no other Jacobian than that,
the method is Newton's; ParaRNN (Danieli et al. 2025, arXiv 2510.21450) trains such
cells.
"""

from dataclasses import dataclass, replace
from operator import index
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._recurrence import Recurrence
from elk_ssm._trees import StateLayout, static
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm._values import Value, register_part
from elk_ssm.linalg.grouped import NOBODY, Grouped, is_strided
from elk_ssm.linalg.structure import Operator
from elk_ssm.surrogate.chunks import Chunked
from elk_ssm.surrogate.dependence import keeps_apart
from elk_ssm.surrogate.linearization import Where

Members = tuple[tuple[int, ...], ...]


@register_part
@dataclass(frozen=True, eq=False)
class BlockDiagonalJacobian(Value, Chunked):
    """The exact diagonal blocks of the Jacobian, `(D, b)` numbers a step.

    Where no entry of f's result depends on another group than its own, which is read
    off f's program, b tangents give all blocks at once, as many as Newton's method
    needs for one unit. Otherwise they are the blocks of the full Jacobian, by D
    tangents, whose `(D, D)` intermediate exists for `chunk` time steps at once.

    Attributes:
        groups: Which entries belong together. None: the i-th ones of all leaves of
            equal shape. An integer n: n groups, every leaf cut into n equal parts in
            the order of its entries, and the k-th parts of all leaves together, such as
            the heads of a layer with leaves `(n, ...)`. Or the groups themselves, a
            sequence of sequences of indices into the flattened state (leaves in pytree
            order).
        chunk: Time steps linearised side by side where the blocks are those of the full
            Jacobian; None as for `DiagonalJacobian`.
        members: The groups as indices; filled in by `bind`, as is the next one.
        exact: Whether there is nothing outside of the blocks.

    Raises:
        TypeError: The groups are none of these, or chunk is no integer.
        ValueError: When used: a leaf cannot be cut into n parts, or the groups are not
            a partition of the entries.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> def swing(x, u):  # n pendulums
        ...     momentum = x["p"] - 0.1 * jnp.sin(x["q"]) + u
        ...     return {"q": x["q"] + 0.1 * momentum, "p": momentum}
        >>> start = {"q": jnp.ones(5), "p": jnp.zeros(5)}
        >>> blocks = elk.BlockDiagonalJacobian()
        >>> sol = elk.evaluate(
        ...     swing, start, jnp.zeros(50), method=elk.quasi_deer(linearization=blocks)
        ... )
        >>> elk.Status(int(sol.status)).name
        'converged'
    """

    groups: int | Members | None = static(default=None)
    chunk: int | None = static(default=None)
    members: Members | None = static(default=None)
    exact: bool = static(default=False)

    def __post_init__(self) -> None:
        self.check_chunk()
        groups = self.groups
        if groups is None or type(groups) is int:
            return
        try:
            found = tuple(tuple(index(i) for i in group) for group in groups)  # type: ignore[union-attr]
        except TypeError as error:
            raise TypeError(
                "groups must be None, a number of groups, or a sequence of sequences "
                f"of indices; got {groups!r}."
            ) from error
        object.__setattr__(self, "groups", found)

    def bind(self, recurrence: Recurrence) -> "BlockDiagonalJacobian":
        """Find the groups in the state's layout, and whether f keeps to them."""
        members = members_of(self.groups, recurrence.layout)
        exact = keeps_apart(recurrence, _labels(members, recurrence.layout.size))
        return replace(self, members=members, exact=exact)

    def start(self, size: int, dtype: Any) -> Operator:
        """Return the identity in blocks."""
        members = self._members
        eye = jnp.eye(len(members[0]), dtype=dtype)
        blocks = jnp.broadcast_to(eye, (len(members), *eye.shape))
        return Grouped(blocks, None if is_strided(members) else members)

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Multiply the blocks."""
        value, tangent = jax.linearize(lambda x: step(x, inputs), state)
        operator = before.like(self._blocks(tangent, state))
        return value, operator.mm(before)

    @property
    def _members(self) -> Members:
        assert self.members is not None, "bind comes before use"
        return self.members

    def _blocks(self, tangent: Any, state: Array) -> Array:
        members, size = np.array(self._members), state.shape[0]
        there = members != NOBODY
        # Rows and columns of nobody are those of a dimension of zeros at the end.
        row = np.where(there, members, size)
        if self.exact:
            probes = np.zeros((members.shape[1], size + 1))
            probes[np.arange(members.shape[1])[:, None], row.T] = 1
            tangents = jnp.asarray(probes[:, :size], state.dtype)
            columns = jax.vmap(tangent, out_axes=-1)(tangents)
            padded = jnp.pad(columns, ((0, 1), (0, 0)))
            return padded[row]
        columns = jax.vmap(tangent, out_axes=-1)(jnp.eye(size, dtype=state.dtype))
        padded = jnp.pad(columns, (0, 1))
        return padded[row[:, :, None], row[:, None, :]]


def members_of(groups: int | Members | None, layout: StateLayout) -> Members:
    """Return the groups as indices into the flat state, all of one length.

    Raises:
        ValueError: A leaf cannot be cut, or the groups are not a partition.
    """
    begins = np.cumsum([0, *layout.sizes[:-1]])
    found: list[list[int]]
    if groups is None:
        shapes = dict.fromkeys(layout.shapes)
        found = [
            list(group)
            for shape in shapes
            for group in zip(
                *(
                    range(begin, begin + size)
                    for begin, size, own in zip(begins, layout.sizes, layout.shapes)
                    if own == shape
                )
            )
        ]
    elif isinstance(groups, int):
        if groups < 1 or any(size % groups for size in layout.sizes):
            raise ValueError(
                f"groups={groups} must cut every leaf of the state into equal parts; "
                f"the leaves have {list(layout.sizes)} entries."
            )
        found = [
            [
                begin + index
                for begin, size in zip(begins, layout.sizes)
                for index in range(k * size // groups, (k + 1) * size // groups)
            ]
            for k in range(groups)
        ]
    else:
        found = [list(group) for group in groups]
        if sorted(i for group in found for i in group) != list(range(layout.size)):
            raise ValueError(
                "groups must have each of the indices 0 to "
                f"{layout.size - 1} of the flattened state once; got {groups}."
            )
    most = max(map(len, found))
    filled = [[*group, *[NOBODY] * (most - len(group))] for group in found]
    return tuple(tuple(int(i) for i in group) for group in filled)


def _labels(members: Members, size: int) -> np.ndarray:
    """Return the group of every entry, `(size,)`."""
    labels = np.empty(size + 1, int)
    for number, group in enumerate(members):
        labels[list(group)] = number  # NOBODY is the last one, which is dropped
    return labels[:size]
