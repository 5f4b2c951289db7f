r"""What a component is: named parameters, and the block that they make of a model.

The block of a component with state x of b dimensions is

    x_t = F_t x_{t-1} + N(0, Q_t),      its share of the emission  H_t x_t,

and what is known of x_0: nothing (diffuse) in some dimensions, a covariance in the
others. Blocks of components know nothing of one another (see `model`).

A `Kind` is the algebra of a component and static; a `Component` is a kind with a name
and numbers, and a pytree.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._trees import static
from elk_ssm._types import Array
from elk_ssm.linalg.structure import Dense, Diagonal, Operator
from elk_ssm.models.bijections import Bijection


class Context(NamedTuple):
    """What a block may depend on beside its parameters.

    Attributes:
        dtype: Of all that is made.
        gaps: Times from a step to the one before, `(T,)`, entry 0 being 1; `None` where
            every one is 1.
        inputs: The inputs of this component, `(T, U)`, or `None`.
    """

    dtype: Any
    gaps: Array | None = None
    inputs: Array | None = None


class Block(NamedTuple):
    """One component as matrices.

    Attributes:
        weights: F, `Dense` or `Diagonal`, with a leading axis T where it varies.
        covariance: Q, likewise.
        emission: H, `(E, b)` or `(T, E, b)`.
        diffuse: `(b,)`, NumPy's booleans.
        initial: The covariance of the others at the start, `(b, b)`, zero for those.
    """

    weights: Operator
    covariance: Operator
    emission: Array
    diffuse: np.ndarray
    initial: Array


class Scale(NamedTuple):
    """How large a series is, for starts and priors; all `()`.

    `variance` is that of the series, `changes` the mean square of the differences
    between neighbours.
    """

    variance: Array
    changes: Array
    steps: int


class Parameter(NamedTuple):
    """What is known of a parameter before any data.

    Attributes:
        default: Its value in a new model, a number or a tuple.
        bijection: Onto the values that it may take.
        share: Of which part of the squared changes of a series a variance starts at and
            its prior is centred on; `None` for what has no scale and starts at
            `default`.
        width: Standard deviation of the prior of the unconstrained parameter.

    Example:
        >>> import elk_ssm as elk
        >>> from elk_ssm.models.bijections import positive
        >>> elk.models.Parameter(1.0, positive).bijection.domain
        'at least 0'
    """

    default: Any
    bijection: Bijection
    share: float | None = None
    width: float = 3.0


class Kind:
    """The algebra of a component: static and hashable.

    A kind gives `specs`, `states` and `block`, and says what it can.
    """

    emissions: ClassVar[int] = 1
    num_inputs: ClassVar[int] = 0
    # Whether a constant added to the series changes nothing but its first state.
    absorbs_mean: ClassVar[bool] = False
    # Whether a model without other components has noise of its own.
    has_noise: ClassVar[bool] = True
    # Whether two of the kind could not be told apart in a sum.
    single: ClassVar[bool] = False
    # Turns in a step of the patterns that it is made of, of which nothing is known at
    # the start; another of the same could not be told apart.
    frequencies: ClassVar[tuple[float, ...]] = ()
    # How many steps must have been observed before the block means anything.
    least_steps: ClassVar[int] = 1

    @property
    def specs(self) -> dict[str, Parameter]:
        """The parameters by name."""
        raise NotImplementedError

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the dimensions of the state."""
        raise NotImplementedError

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the matrices."""
        raise NotImplementedError

    def check_times(self) -> None:
        """Raise unless the kind is defined for gaps other than one step."""


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is a whole number, Python's or NumPy's, and large enough.

    Example:
        >>> from elk_ssm.models.component import is_count
        >>> is_count(3), is_count(True), is_count(2.0), is_count(0)
        (True, False, False, False)
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and value >= least


def example_of(kind: Kind) -> Block:
    """Return a block of some values: where its entries can differ from zero."""
    rng, dtype = np.random.default_rng(0), jnp.zeros(()).dtype

    def some(spec: Parameter) -> Array:
        x = rng.normal(size=np.shape(spec.default))
        return spec.bijection.forward(jnp.asarray(x, dtype))

    values = {name: some(spec) for name, spec in kind.specs.items()}
    inputs = jnp.ones((1, kind.num_inputs), dtype)
    return kind.block(values, Context(dtype, None, inputs))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Component:
    """A part of a model: a kind, its name, and its parameters.

    Attributes:
        values: Its parameters by name, constrained.
        name: What its parameters and states are called after.
        kind: Its algebra.
        fixed: Names of those that a fit leaves alone.

    Example:
        >>> import elk_ssm as elk
        >>> part = elk.models.local_level().components[0]
        >>> part.name, sorted(part.values)
        ('level', ['variance'])
    """

    values: dict[str, Array]
    name: str = static()
    kind: Kind = static()
    fixed: frozenset[str] = static()

    @classmethod
    def of(cls, name: str, kind: Kind) -> "Component":
        """Return a component with the default values of its parameters."""
        dtype = jnp.zeros(()).dtype
        values = {k: jnp.asarray(s.default, dtype) for k, s in kind.specs.items()}
        return cls(values, name, kind, frozenset())

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the parameters that a fit may change."""
        return tuple(name for name in self.kind.specs if name not in self.fixed)

    def with_values(self, values: Mapping[str, Any]) -> "Component":
        """Return the component with other values of some parameters.

        Raises:
            ValueError: A shape or a value is not allowed.
        """
        new = {
            k: self._checked(k, values[k]) if k in values else v
            for k, v in self.values.items()
        }
        return dataclasses.replace(self, values=new)

    def _checked(self, key: str, value: Any) -> Array:
        old, name = self.values[key], f"{self.name}.{key}"
        new = jnp.asarray(value)
        if not jnp.issubdtype(new.dtype, jnp.floating):
            new = new.astype(old.dtype)
        if new.shape != old.shape:
            raise ValueError(f"{name} must have shape {old.shape}; got {new.shape}.")
        allowed = self.kind.specs[key].bijection
        if not is_traced(new) and not allowed.holds(np.asarray(new, float)):
            raise ValueError(f"{name} must be {allowed.domain}; got {value}.")
        return new


def spread(variance: Array, count: int) -> Diagonal:
    """Return one variance, `(...)`, for every dimension."""
    return Diagonal(jnp.broadcast_to(variance[..., None], (*variance.shape, count)))


def side_by_side(blocks: Sequence[Operator]) -> Operator:
    """Return matrices on one diagonal; one that varies in time makes all of them so.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.models.component import side_by_side
        >>> ones, zeros = elk.Dense(jnp.ones((1, 1))), elk.Dense(jnp.zeros((1, 1)))
        >>> side_by_side([ones, zeros]).to_dense()
        Array([[1., 0.],
               [0., 0.]], dtype=float32)
    """
    lead = jnp.broadcast_shapes(
        *(one.array.shape[: one.array.ndim - one.axes] for one in blocks)
    )
    if not any(one.mixes for one in blocks):
        parts = [one.variances() for one in blocks]
        parts = [jnp.broadcast_to(x, (*lead, x.shape[-1])) for x in parts]
        return Diagonal(jnp.concatenate(parts, axis=-1))
    matrices = [one.to_dense() for one in blocks]
    size = sum(matrix.shape[-1] for matrix in matrices)
    rows, start = [], 0
    for matrix in matrices:
        width = matrix.shape[-1]
        matrix = jnp.broadcast_to(matrix, (*lead, width, width))
        sides = [(0, 0)] * len(lead) + [(0, 0), (start, size - start - width)]
        rows.append(jnp.pad(matrix, sides))
        start += width
    return Dense(jnp.concatenate(rows, axis=-2))
