"""What became of a recurrence, in numbers that live inside `jit`, and in words."""

import enum
from collections import Counter
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from elk_ssm._platforms import by_platform
from elk_ssm._showing import known
from elk_ssm._types import Array, ArrayLike
from elk_ssm.solve.method import Method
from elk_ssm.surrogate.jacobians import (
    DenseJacobian,
    DiagonalJacobian,
    IdentityJacobian,
)
from elk_ssm.surrogate.linearization import is_zero

NO_PROBE, BATCHED, ASKED_FOR = -2, -3, -4


class PlanKind(enum.IntEnum):
    """How a recurrence was evaluated: the first three are what `auto` does.

    Example:
        >>> import elk_ssm as elk
        >>> elk.PlanKind(1).name
        'forgetful_blocks'
    """

    sequential = 0
    forgetful_blocks = 1
    newton_blocks = 2
    deer = 3
    quasi_deer = 4
    elk = 5
    quasi_elk = 6
    picard = 7
    jacobi = 8
    iteration = 9


class Plan(NamedTuple):
    """What a method did, and why `auto` chose it; arrays, so that it lives in `jit`.

    Attributes:
        kind: Value of a `PlanKind`.
        block_size: Steps C in a block.
        forgetting_length: Steps after which the probe had forgotten its start, -1 when
            it did not within the probe, -2 when there was no probe because the
            recurrence is too short, -3 when a batch made it useless, -4 when steps one
            after the other were asked for.
        passes: Passes over all blocks, the collecting one included.
        sequential_steps: Steps that were evaluated one after the other, probe apart.
        in_kernel: 1 where every pass over blocks was one kernel, 0 where none was asked
            for, -1 where the platform has none.
        inexact: Unknowns (states, or ends of blocks) that are not provably exact; -1
            where they were not counted. With 0 of them the solve ended there, whatever
            residual the iterate before had.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> kind, block_size, forgetting, passes, rest = jnp.array([1, 64, 40, 2, 0])
        >>> elk.Plan(kind, block_size, forgetting, passes, rest).describe()
        'blocks of 64: state forgotten after 40 steps, 2 passes'
    """

    kind: Array
    block_size: Array
    forgetting_length: Array
    passes: Array
    sequential_steps: Array
    in_kernel: Array | int = 0
    inexact: Array | int = -1

    def describe(self) -> str:
        """Say in words what was done and why; of a batch, how often each."""
        kinds = known(self.kind)
        if kinds is None:
            return "known when the program runs"
        if not kinds.ndim:
            return self._describe_one()
        fields = [np.broadcast_to(np.asarray(x), kinds.shape).ravel() for x in self]
        each = [Plan(*numbers)._describe_one() for numbers in zip(*fields, strict=True)]
        return "; ".join(
            f"{n} of {len(each)}: {text}" for text, n in Counter(each).most_common()
        )

    @property
    def without_jacobian(self) -> Array:
        """Whether the method looks at no Jacobian, as Picard's and Jacobi's."""
        return (self.kind == PlanKind.picard) | (self.kind == PlanKind.jacobi)

    def __repr__(self) -> str:
        return f"Plan({self.describe()!r})"

    def _describe_one(self) -> str:
        said = {-1: "; no kernel: there is no Triton on this platform"}
        said[1] = "; each pass one kernel"
        return self._what_and_why() + said.get(int(self.in_kernel), "")

    def _what_and_why(self) -> str:
        length, passes = int(self.forgetting_length), int(self.passes)
        left = int(self.sequential_steps)
        if self.kind == PlanKind.sequential:
            why = f"forgetting takes {length} steps, too long for blocks to pay"
            if length == NO_PROBE:
                why = "too short for blocks to pay"
            elif length == ASKED_FOR:
                why = "as asked for"
            elif length == BATCHED:
                why = "a batch fills the vector unit by itself"
            elif length < 0:
                why = "no forgetting seen in the first steps"
            return f"sequential: {why}"
        if self.kind == PlanKind.newton_blocks:
            return f"Newton over blocks of {int(self.block_size)}: {passes} passes"
        if self.kind > PlanKind.newton_blocks:
            size, name = int(self.block_size), PlanKind(int(self.kind)).name
            blocks = f" over blocks of {size}" if size > 1 else ""
            exact = ", until every state was provably exact" * (int(self.inexact) == 0)
            return f"{name}{blocks}: {passes} passes{exact}"
        rest = f", {left} steps re-evaluated one by one" if left else ""
        return (
            f"blocks of {int(self.block_size)}: state forgotten after {length} steps, "
            f"{passes} passes{rest}"
        )


def make_plan(*numbers: Any, in_kernel: ArrayLike = 0) -> Plan:
    """Return a plan of arrays, from its fields in order."""
    every = (*numbers, in_kernel, -1)
    return Plan(*(jnp.asarray(number, jnp.int32) for number in every))


def is_in_kernel(asked: bool) -> Array:
    """Return `Plan.in_kernel`, by the platform that the program is lowered for."""
    if not asked:
        return jnp.asarray(0, jnp.int32)
    return by_platform(
        cuda=lambda: jnp.asarray(1, jnp.int32),
        default=lambda: jnp.asarray(-1, jnp.int32),
    )


def kind_of(method: Method) -> PlanKind:
    """Return the published name of a method, `iteration` if it has none."""
    damped, linearization = method.noise is not None, method.linearization
    if isinstance(linearization, DenseJacobian):
        return PlanKind.elk if damped else PlanKind.deer
    if isinstance(linearization, DiagonalJacobian):
        return PlanKind.quasi_elk if damped else PlanKind.quasi_deer
    if damped:
        return PlanKind.iteration
    if isinstance(linearization, IdentityJacobian):
        return PlanKind.picard
    return PlanKind.jacobi if is_zero(linearization) else PlanKind.iteration


def method_plan(method: Method, passes: Array, inexact: Array) -> Plan:
    """Return the plan of a method that was asked for by name."""
    plan = make_plan(kind_of(method), method.block_size, ASKED_FOR, passes, 0)
    return plan._replace(inexact=inexact)


def newton_plan(block_size: int, passes: Array) -> Plan:
    """Return the plan of the Newton strategy."""
    return make_plan(PlanKind.newton_blocks, block_size, NO_PROBE, passes, 0)
