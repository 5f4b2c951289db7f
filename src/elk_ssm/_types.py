"""Aliases and Protocols that every floor of the package shares.

Index convention, used everywhere: arrays over time hold entries for steps
t = 1, ..., T at positions 0, ..., T - 1. Entry t of the inputs drives the transition
into state t. The initial state x_0 is kept apart and is never part of such an array.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from jax import Array
from jax.typing import ArrayLike

PyTree: TypeAlias = Any
"""Any nesting of containers over arrays that JAX knows."""

Dynamics: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""A recurrence `f(state, input) -> state`, for one time step, without batch axis."""

FlatStep: TypeAlias = Callable[[Array, PyTree], Array]
"""A recurrence on flat states, `(D,), input -> (D,)`."""

__all__ = ["Array", "ArrayLike", "Dynamics", "FlatStep", "PyTree"]
