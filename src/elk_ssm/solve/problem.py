"""What is solved: a flat recurrence, as far as one device holds it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis

StepWithConsts: TypeAlias = Callable[[list, Array, PyTree], Array]
Primals: TypeAlias = tuple[list, Array, PyTree]


class Problem(NamedTuple):
    """x_t = f(c, x_{t-1}, u_t), t = 1, ..., T, as far as this device holds it.

    Attributes:
        function: The flat step, `function(consts, state (D,), input) -> (D,)`.
        consts: What it closes over.
        initial: x_0, shape `(D,)`, on every device.
        inputs: Inputs of this device's steps, with a leading time axis on every leaf.
        length: Number of steps T of all devices together.
        axis: Where time lives.
    """

    function: StepWithConsts
    consts: list
    initial: Array
    inputs: PyTree
    length: int
    axis: TimeAxis = LOCAL

    @property
    def step(self) -> FlatStep:
        """The flat step with its closure filled in."""
        return partial(self.function, self.consts)
