r"""What a recursion may ask of a matrix, whatever it is stored as.

A structure is a NamedTuple over one array. Its last `axes` axes are one matrix, all
axes before them are free: time, a batch, or none. A verb acts on the matrices and
vectors of equal (or broadcasting) leading axes.

A new structure gives `axes` and the verbs that raise `NotImplementedError` here; the
others follow from them. Nothing outside this folder asks what a structure is.
"""

from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.small import same_rank


class Observed(NamedTuple):
    """A Gaussian conditioned on each of its coordinates, one after the other.

    Attributes:
        mean: `(..., D)`.
        covariance: Of the structure that it had.
        innovations: What each coordinate was expected to be when its turn came.
        totals: The variance of that expectation, noise included.
    """

    mean: Array
    covariance: Any
    innovations: Array
    totals: Array


class Operator:
    """A square matrix A, or many of them along leading axes."""

    __slots__ = ()
    axes: ClassVar[int]
    mixes: ClassVar[bool] = True  # False: no dimension acts on another, as in diag(a).
    # True: groups of dimensions never mix, so that whatever is asked of a model of such
    # matrices may be asked of each group; `cut` takes them apart, `join` puts back.
    grouped: ClassVar[bool] = False
    # How many products in a row an accelerator does in one kernel, in which every entry
    # of a result is found by itself.
    fan_in: ClassVar[int] = 2

    # ------------------------------------------------------- given by the structure

    def mv(self, x: Array) -> Array:
        """Return A x for vectors `(..., D)`."""
        raise NotImplementedError

    def push(self, x: Array) -> Array:
        """Return A x in which an exact zero of x stays one, where A overflowed too."""
        raise NotImplementedError

    def push_onto(self, x: Array, b: Array) -> Array:
        """Return A x + b likewise."""
        return self.push(x) + b

    def mm(self, other: Self) -> Self:
        """Return A B."""
        raise NotImplementedError

    @property
    def T(self) -> Self:
        """The transpose."""
        raise NotImplementedError

    def solve(self, *right: Any) -> tuple[Any, ...]:
        """Return A^{-1} B for matrices and vectors B, by one elimination."""
        raise NotImplementedError

    def scale_rows(self, factors: Array) -> Self:
        """Return diag(factors) A, `factors` of shape `(..., D)`."""
        raise NotImplementedError

    def clipped(self, radius: Array) -> Self:
        """Return A, shrunk so far that its spectral radius is at most a number."""
        raise NotImplementedError

    def diag(self, entries: Array) -> Self:
        """Return the diagonal matrix of `(..., D)` in this structure, whatever A is."""
        raise NotImplementedError

    def variances(self) -> Array:
        """Return the diagonal, `(..., D)`."""
        raise NotImplementedError

    def to_dense(self) -> Array:
        """Return the array of shape `(..., D, D)`."""
        raise NotImplementedError

    def part_of(self, matrix: Array) -> Self:
        """Return what this structure holds of full matrices `(..., D, D)`."""
        raise NotImplementedError

    def observe(self, mean: Array, noise: Array) -> Observed:
        """Condition N(mean, A) on zeros seen with variances `noise`, `(..., D)`."""
        raise NotImplementedError

    def observe_run(self, A: Self, b: Array, noise: Array) -> tuple:
        """Condition N(A x + b, self) likewise, where x is not known.

        Returns:
            The new A, b and covariance, and the evidence about x: eta `(..., D)` and
            J, the log density being eta' x - x' J x / 2 up to a constant.
        """
        raise NotImplementedError

    def cut(self, x: Any) -> Any:
        """Turn vectors `(..., D)` into `(..., n, b)`, operators into n `Dense` ones."""
        raise NotImplementedError

    def join(self, found: Any) -> Any:
        """Turn vectors and `Dense` ones, at any depth of a pytree, back."""
        raise NotImplementedError

    # ------------------------------------------------------------------- in common

    def apart(self, other: "Operator") -> "Operator":
        """Return n operators for n groups of this one; diagonal ones stay diagonal."""
        return self.cut(other) if other.mixes else other.like(self.cut(other.array))

    @property
    def array(self) -> Array:
        """The array that the structure holds."""
        return self[0]  # type: ignore[index]

    def like(self, array: Array) -> Self:
        """Return an operator of this structure that holds another array."""
        return type(self)(array)  # type: ignore[call-arg]

    @property
    def varies(self) -> bool:
        """Whether there is a leading axis, as of time."""
        return self.array.ndim > self.axes

    def at(self, step: int | Array | slice) -> Self:
        """Return the matrix of one step; a static matrix is itself at every step."""
        return self.like(self.array[step]) if self.varies else self

    def where(self, condition: Array, other: Self | float) -> Self:
        """Return A where a condition on the leading axes holds, and else `other`."""
        shape = jnp.shape(condition) + (1,) * self.axes
        chosen = other.array if isinstance(other, Operator) else other
        return self.like(jnp.where(jnp.reshape(condition, shape), self.array, chosen))

    def zeros(self) -> Self:
        """Return the zero matrix of this structure and leading axes."""
        return self.like(jnp.zeros_like(self.array))

    def scaled(self, factor: Array | float) -> Self:
        """Return c A for numbers c on leading axes."""
        factor = jnp.reshape(factor, jnp.shape(factor) + (1,) * self.axes)
        array, factor = same_rank(self.array, factor)
        return self.like(array * factor)

    def add(self, other: Self) -> Self:
        """Return A + B."""
        left, right = same_rank(self.array, other.array)
        return self.like(left + right)

    def shift(self, entries: Array | float) -> Self:
        """Return A + diag(entries), entries `(..., D)` or one number for all."""
        size = self.variances().shape[-1:]
        entries = jnp.asarray(entries, self.array.dtype)
        return self.add(self.diag(entries if entries.ndim else jnp.full(size, entries)))

    def symmetrized(self) -> Self:
        """Return the symmetric part."""
        return self.like(0.5 * (self.array + self.T.array))

    def congruence(self, inner: Self) -> Self:
        """Return A S A^T for a symmetric S, symmetric to the last bit."""
        # The two products round differently on either side of the diagonal.
        return self.mm(inner).mm(self.T).symmetrized()
