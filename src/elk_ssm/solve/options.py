"""How a recurrence is solved: one value, made once and handed down."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax

from elk_ssm._trees import static
from elk_ssm._types import Array
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.mesh import Shards
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method
from elk_ssm.solve.stopping import Tolerance

Adjoint: TypeAlias = Literal["auto", "sequential", "parallel", "blocks", "short_blocks"]
Keep: TypeAlias = Literal["all", "boundaries", "last"]
Kernel: TypeAlias = Literal["pallas"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Options:
    """How to solve: numbers, whose derivatives are zero, and static choices.

    Attributes:
        method: What to run.
        guess: First iterate, `(T, D)`, or None.
        tolerance: Relative and absolute tolerance.
        max_iters: Largest number of passes, `()`.
        length: Number of steps T.
        history: How many passes to record.
        backend: Which scans to use.
        adjoint: How derivatives solve their recursion.
        keep: Which states are returned; for `"last"` the engine keeps the boundaries.
        every: Steps between the states that are kept, 1 for all.
        fall_back: Whether to evaluate sequentially what did not converge.
        shards: The mesh over which time is sharded, None for one device.
        kernel: Whether rollouts are one kernel where the platform has Triton.
        progress: Whether every pass tells `_progress` where it is.
    """

    method: Method | Auto
    guess: Array | None
    tolerance: Tolerance
    max_iters: Array
    length: int = static()
    history: int = static()
    backend: Backend = static()
    adjoint: Adjoint = static()
    keep: Keep = static()
    every: int = static()
    fall_back: bool = static()
    shards: Shards | None = static()
    kernel: bool = static()
    progress: bool = static()

    @property
    def keeps_all(self) -> bool:
        """Whether every state is returned."""
        return self.keep == "all"

    @property
    def concrete(self) -> Method:
        """The method, once it is one with a linearisation."""
        assert isinstance(self.method, Method)
        return self.method
