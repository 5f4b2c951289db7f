"""A step along a known trajectory, and how tangents and cotangents go through it."""

from functools import partial
from typing import NamedTuple

import jax

from elk_ssm._platforms import by_platform
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.parallel.time_axis import TimeAxis
from elk_ssm.solve.nodes import near_divisor
from elk_ssm.solve.problem import StepWithConsts


class Path(NamedTuple):
    """A step along a known trajectory: what it is linearised at.

    Attributes:
        function: `function(consts, state, input) -> state`, hashable.
        consts: What it closes over.
        before: State before every step of this device, `(T, D)`.
        inputs: Inputs of these steps.
        axis: Where time lives.
        chunk: How many steps are differentiated side by side on a CPU.
        kernel: Whether sweeps are one kernel where they fit one.
    """

    function: StepWithConsts
    consts: list
    before: Array
    inputs: PyTree
    axis: TimeAxis
    chunk: int
    kernel: bool = False

    @property
    def step(self) -> FlatStep:
        """The step with its closure filled in, `step(state, input) -> state`."""
        return partial(self.function, self.consts)

    def apart(self) -> tuple[tuple, tuple]:
        """Return the arrays, and what is static; see `joined`."""
        function, *arrays, axis, chunk, kernel = self
        return tuple(arrays), (function, axis, chunk, kernel)

    @classmethod
    def joined(cls, arrays: tuple, static: tuple) -> "Path":
        """Put together what `apart` took apart."""
        function, *rest = static
        return cls(function, *arrays, *rest)

    def over_time(self, before: Array) -> Array:
        """Evaluate f, on a CPU in chunks; recomputed when differentiated in reverse."""
        step, count = jax.checkpoint(self.step), before.shape[0]

        def whole(before: Array, inputs: PyTree) -> Array:
            return jax.vmap(step)(before, inputs)

        def in_chunks(before: Array, inputs: PyTree) -> Array:
            size = near_divisor(count, self.chunk)
            entries = before, inputs
            return jax.lax.map(lambda xu: step(*xu), entries, batch_size=size)

        if count <= self.chunk:
            return whole(before, self.inputs)
        return by_platform(before, self.inputs, cpu=in_chunks, default=whole)

    def push(self, x: Array, u: PyTree, tangent: Array) -> Array:
        """J d."""
        return jax.jvp(lambda x: self.step(x, u), (x,), (tangent,))[1]

    def pull(self, x: Array, u: PyTree, cotangent: Array) -> Array:
        """J^T w."""
        return jax.vjp(lambda x: self.step(x, u), x)[1](cotangent)[0]
