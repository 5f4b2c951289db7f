"""Diagonal matrices: the dimensions never mix, and D numbers do for D x D."""

from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.dense import Dense
from elk_ssm.linalg.operator import Observed, Operator
from elk_ssm.linalg.small import inverse_of, raised


class Diagonal(NamedTuple("Diagonal", [("diagonal", Array)]), Operator):
    """A diagonal matrix, `diagonal` of shape `(..., D)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> varying = elk.Diagonal(jnp.ones((100, 2)))  # one for each of 100 steps
        >>> varying.diagonal.shape
        (100, 2)
    """

    __slots__ = ()
    axes: ClassVar[int] = 1
    mixes: ClassVar[bool] = False
    grouped: ClassVar[bool] = True
    fan_in: ClassVar[int] = 24

    def mv(self, x: Array) -> Array:
        """Return A x."""
        return self.diagonal * x

    def push(self, x: Array) -> Array:
        """Return A x in which an exact zero of x stays one."""
        return jnp.where(x == 0, 0, self.diagonal * x)

    def mm(self, other: Self) -> Self:
        """Return A B."""
        return self.like(self.diagonal * other.diagonal)

    @property
    def T(self) -> Self:
        """The transpose, which is the matrix itself."""
        return self

    def congruence(self, inner: Self) -> Self:
        """Return A S A."""
        # a^2 does not wait for S, which is one product less in a chain of steps.
        return self.like(self.diagonal**2 * inner.diagonal)

    def symmetrized(self) -> Self:
        """Return the symmetric part, which is the matrix itself."""
        return self

    def solve(self, *right: Any) -> tuple[Any, ...]:
        """Return A^{-1} B for matrices and vectors B."""
        return tuple(
            b.like(b.diagonal / self.diagonal)
            if isinstance(b, Diagonal)
            else b / self.diagonal
            for b in right
        )

    def scale_rows(self, factors: Array) -> Self:
        """Return diag(factors) A."""
        return self.like(factors * self.diagonal)

    def clipped(self, radius: Array) -> Self:
        """Clip the entries."""
        return self.like(jnp.clip(self.diagonal, -radius, radius))

    def diag(self, entries: Array) -> Self:
        """Return a diagonal matrix."""
        return self.like(entries)

    def variances(self) -> Array:
        """Return the diagonal."""
        return self.diagonal

    def to_dense(self) -> Array:
        """Return the array of shape `(..., D, D)`."""
        eye = jnp.eye(self.diagonal.shape[-1], dtype=self.diagonal.dtype)
        return self.diagonal[..., None] * raised(eye, self.diagonal.ndim + 1)

    def part_of(self, matrix: Array) -> Self:
        """Return its diagonal."""
        return self.like(jnp.diagonal(matrix, axis1=-2, axis2=-1))

    def observe(self, mean: Array, noise: Array) -> Observed:
        """Condition N(mean, A) on zeros seen with variances `noise`."""
        variance = self.diagonal
        total = variance + noise
        keep = 1 - variance / total
        return Observed(keep * mean, self.like(keep * variance), mean, total)

    def observe_run(self, A: Self, b: Array, noise: Array) -> tuple:
        """Condition N(A x + b, self) likewise, where x is not known."""
        inverse = inverse_of(self.diagonal + noise)
        keep = 1 - self.diagonal * inverse
        run = A.scale_rows(keep), keep * b, self.scale_rows(keep)
        return *run, -A.diagonal * b * inverse, self.like(A.diagonal**2 * inverse)

    def cut(self, x: Array) -> Array:
        """Make of every dimension a group of its own."""
        return x[..., None]

    def join(self, found: Any) -> Any:
        """Put them side by side again."""

        def one(x: Any) -> Any:
            return self.like(x.matrix[..., 0, 0]) if isinstance(x, Dense) else x[..., 0]

        return jax.tree.map(one, found, is_leaf=lambda x: isinstance(x, Dense))
