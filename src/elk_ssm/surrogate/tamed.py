r"""Linearisations made smaller: scaled or clipped Jacobians, which need no filter.

A step of ELK with a constant noise multiplies what comes from the state before by the
filter's gain,

    d_t = (1 - K) (A d_{t-1} + b_t),      1 - K = s^2 / (s^2 + P),

and its stability is that of (1 - K) A. `Scaled` puts a number k in place of 1 - K and
leaves b_t alone: d_t = k A d_{t-1} + b_t, an affine scan (scale-ELK of Gonzalez et al.
2024, arXiv 2407.19115, appendix; Gonzalez et al. 2025, arXiv 2509.21716). `Clipped`
shrinks only those A that are too large (clip-ELK).
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._recurrence import Recurrence
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm._values import Value, register_part
from elk_ssm.linalg.structure import Operator
from elk_ssm.surrogate.linearization import (
    Linearization,
    Where,
    forms_dense,
    is_zero,
    time_chunks,
)


class _Around:
    """A linearisation that changes what another one finds."""

    linearization: Linearization

    def _check(self, name: str, number: Any, *, most: float) -> None:
        is_class = isinstance(self.linearization, type)
        if is_class or not isinstance(self.linearization, Linearization):
            raise TypeError(
                f"{type(self).__name__} takes a linearisation first, such as "
                f"DiagonalJacobian(); got {self.linearization!r}."
            )
        if isinstance(number, str):
            raise TypeError(f"{name} must be a number; got {number!r}.")
        numbers = int | float | np.generic | np.ndarray | jax.Array
        if is_traced(number) or not isinstance(number, numbers):
            return  # known only when the program runs, or a placeholder of a pytree
        if np.ndim(number) or not 0 < float(number) <= most:
            limit = "" if most == float("inf") else f" of at most {most:g}"
            raise ValueError(f"{name} must be a positive number{limit}; got {number}.")

    @property
    def forms_dense(self) -> bool:
        """As the linearisation inside."""
        return forms_dense(self.linearization)

    @property
    def is_zero(self) -> bool:
        """As the linearisation inside."""
        return is_zero(self.linearization)

    def time_chunk(self, size: int) -> int | None:
        """Time steps linearised side by side."""
        return time_chunks(self.linearization, size)[0]

    def accelerator_chunk(self, size: int) -> int | None:
        """The same where memory and not a cache is the limit."""
        return time_chunks(self.linearization, size)[1]

    def bind(self, recurrence: Recurrence) -> Self:
        """Bind the linearisation inside."""
        bound = self.linearization.bind(recurrence)
        return replace(self, linearization=bound)  # type: ignore[type-var]

    def start(self, size: int, dtype: Any) -> Operator:
        """Return the identity in the structure of the one inside."""
        return self.linearization.start(size, dtype)


@register_part
@dataclass(frozen=True, eq=False)
class Scaled(Value, _Around):
    """A = k J: a Jacobian, or its stand-in, made smaller at every step.

    For a constant scalar Jacobian a, ELK with noise s^2 has the same transition k a
    when s^2 = k / ((1 - k) (1 - k a^2)), which for small a is 1 / s^2 = (1 - k) / k.

    Attributes:
        linearization: What is scaled.
        k: A number from 0 (excluded, that is `jacobi`) to 1; it may be traced.

    Raises:
        TypeError: The first argument is no linearisation, or k no number.
        ValueError: k is not such a number.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> tame = elk.Scaled(elk.DiagonalJacobian(), 0.8)
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.quasi_deer(linearization=tame),
        ... )
        >>> elk.Status(int(sol.status)).name
        'converged'
    """

    linearization: Linearization
    k: Array | float

    def __post_init__(self) -> None:
        self._check("k", self.k, most=1)

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Scale what the linearisation inside returns."""
        value, after = self.linearization.push(step, state, inputs, before, at)
        return value, after.scaled(jnp.asarray(self.k, state.dtype))


@register_part
@dataclass(frozen=True, eq=False)
class Clipped(Value, _Around):
    """A is J, or its stand-in, shrunk to a spectral radius of at most `radius`.

    Entry by entry for a diagonal. A matrix, or each block, is multiplied by
    radius / sqrt(|A|_1 |A|_inf) where that is below one: the root bounds the largest
    singular value from above and needs no factorisation.

    Attributes:
        linearization: What is clipped.
        radius: A positive number; it may be traced.

    Raises:
        TypeError: The first argument is no linearisation, or the radius no number.
        ValueError: The radius is not such a number.

    Example:
        >>> import elk_ssm as elk
        >>> method = elk.quasi_deer(linearization=elk.Clipped(elk.DiagonalJacobian()))
        >>> method.linearization.radius
        1.0
    """

    linearization: Linearization
    radius: Array | float = 1.0

    def __post_init__(self) -> None:
        self._check("radius", self.radius, most=float("inf"))

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Clip the operator of this step alone, and multiply."""
        identity = self.start(state.shape[0], state.dtype)
        value, operator = self.linearization.push(step, state, inputs, identity, at)
        radius = jnp.asarray(self.radius, state.dtype)
        return value, operator.clipped(radius).mm(before)
