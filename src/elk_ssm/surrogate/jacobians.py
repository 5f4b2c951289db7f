r"""The linearisations of the package, all on the contract of `linearization`.

DenseJacobian        A = df/dx                     DEER, ELK
DiagonalJacobian     A = diag(df/dx)               quasi-DEER, quasi-ELK
BlockDiagonalJacobian                              the same in blocks (`block_jacobian`)
StochasticDiagonal   A = E[v * (df/dx) v]          Hutchinson probes
IdentityJacobian     A = I                         Picard
ZeroJacobian         A = 0                         Jacobi
UserJacobian         A given by a function
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction, hoist
from elk_ssm._platforms import by_platform
from elk_ssm._recurrence import Recurrence
from elk_ssm._trees import StateLayout, describe, static
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm._values import Value, check_count, register_part
from elk_ssm.linalg.structure import Dense, Diagonal, Operator
from elk_ssm.surrogate.chunks import Chunked
from elk_ssm.surrogate.dependence import keeps_apart
from elk_ssm.surrogate.linearization import Where


class _Unbound:
    """Shared by linearisations that need nothing from the state's layout."""

    def time_chunk(self, size: int) -> int | None:
        return None

    def bind(self, recurrence: Recurrence) -> Any:
        return self


class _DiagonalStart(_Unbound):
    def start(self, size: int, dtype: Any) -> Operator:
        return Diagonal(jnp.ones(size, dtype))


@register_part
@dataclass(frozen=True, eq=False)
class DenseJacobian(Value, _Unbound):
    """The full Jacobian by forward-mode differentiation, `(D, D)` a step.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Method(elk.DenseJacobian()) == elk.deer()
        True
    """

    @property
    def forms_dense(self) -> bool:
        """The operators are `(T, D, D)`."""
        return True

    def start(self, size: int, dtype: Any) -> Operator:
        """Return the identity matrix."""
        return Dense(jnp.asarray(np.eye(size, dtype=dtype)))

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Push the columns of `before` through the tangent map."""
        value, tangent = jax.linearize(lambda x: step(x, inputs), state)
        columns = jax.vmap(tangent, in_axes=-1, out_axes=-1)(before.array)
        return value, Dense(columns)


@register_part
@dataclass(frozen=True, eq=False)
class DiagonalJacobian(Value, Chunked, _DiagonalStart):
    """The exact diagonal of the Jacobian.

    A general f needs D tangents for it, so the `(D, D)` intermediate exists for
    `chunk` time steps at once and never for all of them. Where no entry depends on
    another one, which is read off f's program, one tangent is enough.

    Attributes:
        chunk: Time steps linearised side by side; None for as many as 2 MB of such
            intermediates in float32 allow on a CPU, and 1 GB on an accelerator.
        exact: Whether f's Jacobian is diagonal; filled in by `bind`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.quasi_deer(linearization=elk.DiagonalJacobian(chunk=16)).linearization
        DiagonalJacobian(chunk=16)
    """

    chunk: int | None = static(default=None)
    exact: bool = static(default=False, repr=False)

    def __post_init__(self) -> None:
        self.check_chunk()

    def bind(self, recurrence: Recurrence) -> "DiagonalJacobian":
        """See whether f has no other Jacobian than its diagonal."""
        exact = keeps_apart(recurrence, np.arange(recurrence.layout.size))
        return replace(self, exact=exact)

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Multiply the diagonals."""
        value, tangent = jax.linearize(lambda x: step(x, inputs), state)
        if self.exact:
            return value, before.scale_rows(tangent(jnp.ones_like(state)))
        value, units = _one_by_one(value, np.eye(state.shape[0], dtype=state.dtype))
        columns = jax.vmap(tangent)(units)
        return value, before.scale_rows(columns.reshape(-1)[:: state.shape[0] + 1])


def _one_by_one(value: Array, units: np.ndarray) -> tuple[Array, Array]:
    """Let tangents wait for the value, on an accelerator.

    Else its compiler merges the products of matrices in both, which costs a copy of the
    state and one of every part of the result.
    """

    def both(value: Array, units: Array) -> tuple[Array, Array]:
        return value, units

    def waiting(value: Array, units: Array) -> tuple[Array, Array]:
        return tuple(jax.lax.optimization_barrier((value, units)))

    return by_platform(value, units, cpu=both, default=waiting)


@register_part
@dataclass(frozen=True, eq=False)
class StochasticDiagonal(Value, _DiagonalStart):
    """Hutchinson's estimate of the diagonal: the mean of v * (J v), v = +-1.

    Costs `probes` tangents instead of D. One probe errs by 1.7 to 10 times the largest
    entry on common cells, so this is offered and not a default.

    Attributes:
        key: A JAX PRNG key; time step and iteration are folded in.
        probes: Number of probe vectors.

    Example:
        >>> import jax
        >>> import elk_ssm as elk
        >>> elk.StochasticDiagonal(jax.random.key(0), probes=4).probes
        4
    """

    key: Array
    probes: int = static(default=1)

    def __post_init__(self) -> None:
        check_count("probes", self.probes, 1)

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Multiply the estimated diagonals."""
        value, tangent = jax.linearize(lambda x: step(x, inputs), state)
        key = jax.random.fold_in(jax.random.fold_in(self.key, at.time), at.iteration)
        shape = (self.probes, state.shape[0])
        signs = jax.random.rademacher(key, shape, dtype=state.dtype)
        diagonal = jnp.mean(signs * jax.vmap(tangent)(signs), axis=0)
        return value, before.scale_rows(diagonal)


@register_part
@dataclass(frozen=True, eq=False)
class IdentityJacobian(Value, _DiagonalStart):
    """A = I, the Picard iteration.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Method(elk.IdentityJacobian()) == elk.picard()
        True
    """

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Evaluate f."""
        return step(state, inputs), before


@register_part
@dataclass(frozen=True, eq=False)
class ZeroJacobian(Value, _DiagonalStart):
    """A = 0, the Jacobi iteration (and plain multiple shooting across blocks).

    Example:
        >>> import elk_ssm as elk
        >>> elk.Method(elk.ZeroJacobian()) == elk.jacobi()
        True
    """

    @property
    def is_zero(self) -> bool:
        """Nothing is propagated."""
        return True

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Evaluate f."""
        return step(state, inputs), before.zeros()


@register_part
@dataclass(frozen=True, eq=False)
class UserJacobian(Value, _Unbound):
    """A given by a function of one state and one input.

    Attributes:
        function: `function(state, input)`. For `kind="diagonal"` it returns a pytree
            like the state, entry by entry df_i/dx_i; for `kind="dense"` an array of
            shape `(D, D)` over the flattened state (leaves in pytree order).
        kind: `"diagonal"` or `"dense"`.
        captured: What the function closes over; filled in by `bind`.

    Raises:
        ValueError: When used: the function returns another shape than its kind says.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> def slope(x, u):  # of tanh(x + u), entry by entry
        ...     return 1 - jnp.tanh(x + u) ** 2
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.quasi_deer(linearization=elk.UserJacobian(slope)),
        ... )
        >>> elk.Status(int(sol.status)).name
        'converged'
    """

    function: Callable[..., PyTree] = static()
    kind: Literal["diagonal", "dense"] = static(default="diagonal")
    captured: list[Array] | None = None

    def bind(self, recurrence: Recurrence) -> "UserJacobian":
        """Check the function's result and make what it closes over explicit."""
        if isinstance(self.function, HoistedFunction):
            return self
        layout = recurrence.layout
        vector = jax.ShapeDtypeStruct((layout.size,), layout.dtype)

        def user(vector: Array, entry: PyTree) -> PyTree:
            return self.function(*recurrence.unflatten(vector, entry))

        found = jax.eval_shape(user, vector, recurrence.entry)
        self._check(found, layout)

        def flat(vector: Array, entry: PyTree) -> Array:
            found = user(vector, entry)
            return layout.ravel(jax.tree.leaves(found)) if diagonal else found

        diagonal = self.kind == "diagonal"
        hoisted, captured = hoist(flat, vector, recurrence.entry)
        return replace(self, function=hoisted, captured=captured)

    def _check(self, found: PyTree, layout: StateLayout) -> None:
        square = (layout.size, layout.size)
        if self.kind == "diagonal":
            fits = StateLayout.of(found).shapes == layout.shapes
            expected = f"a pytree like the state, leaves {layout.shapes}"
        else:
            fits = getattr(found, "shape", None) == square
            expected = f"an array of shape {square}"
        if not fits:
            raise ValueError(
                f"A {self.kind} user Jacobian must return {expected}; "
                f"got {describe(found)}."
            )

    @property
    def forms_dense(self) -> bool:
        """By `kind`."""
        return self.kind == "dense"

    def start(self, size: int, dtype: Any) -> Operator:
        """Return the identity, dense or diagonal by `kind`."""
        if self.kind == "diagonal":
            return Diagonal(jnp.ones(size, dtype))
        return Dense(jnp.eye(size, dtype=dtype))

    def push(
        self, step: FlatStep, state: Array, inputs: PyTree, before: Operator, at: Where
    ) -> tuple[Array, Operator]:
        """Multiply by the user's operator."""
        assert isinstance(self.function, HoistedFunction), "bind comes before push"
        operator = self.function(self.captured or [], state, inputs)
        operator = operator.astype(state.dtype)
        value = step(state, inputs)
        return value, before.like(operator).mm(before)
