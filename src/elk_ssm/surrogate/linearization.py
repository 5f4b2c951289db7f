r"""The contract of linearisations: what stands for the Jacobian of f in the surrogate.

Every linearisation answers one question: given M, the operator accumulated so far
along a block (the identity at its start), return f(x, u) and A M, where A is the
Jacobian of f at (x, u) or a cheaper stand-in. A block of one step is the published
method; a longer block is the same call repeated, and its operator is then the
derivative of the block map (dense), or the product of the per-step stand-ins.
Those that come with the package are in `jacobians`.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from elk_ssm._recurrence import Recurrence
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.linalg.structure import Operator


class Where(NamedTuple):
    """Position of a call: time step (0 for the first) and iteration, both scalars."""

    time: Array
    iteration: Array


@runtime_checkable
class Linearization(Protocol):
    """The contract of the module docstring, on flat states of shape `(D,)`.

    Anything with these four methods is a linearisation; attributes `forms_dense` and
    `is_zero` tell the engine more, where they are true. For a Jacobian that is known, a
    `UserJacobian` is less to write.

    Example:
        >>> import elk_ssm as elk
        >>> isinstance(elk.DiagonalJacobian(), elk.Linearization)
        True
    """

    def time_chunk(self, size: int) -> int | None:
        """How many time steps may be linearised side by side at D; None for all."""
        ...

    def bind(self, recurrence: Recurrence) -> "Linearization":
        """Learn the state's layout; called once before the loop."""
        ...

    def start(self, size: int, dtype: Any) -> Operator:
        """Return the identity in this linearisation's structure."""
        ...

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Return `step(state, inputs)` and `A @ before`."""
        ...


def forms_dense(linearization: Linearization) -> bool:
    """Whether the forward pass holds `(T, D, D)` operators; the adjoint may too then.

    A linearisation says so with an attribute of that name; the default is no.
    """
    return bool(getattr(linearization, "forms_dense", False))


def time_chunks(linearization: Linearization, size: int) -> tuple[int | None, ...]:
    """How many time steps are linearised side by side on a CPU, and elsewhere.

    A linearisation whose chunk is that of a cache has `accelerator_chunk` besides.
    """
    on_cpu = linearization.time_chunk
    elsewhere = getattr(linearization, "accelerator_chunk", on_cpu)
    return on_cpu(size), elsewhere(size)


def is_zero(linearization: Linearization) -> bool:
    """Whether nothing is propagated across steps, so that damping tames nothing.

    A linearisation says so with an attribute of that name; the default is no.
    """
    return bool(getattr(linearization, "is_zero", False))
