r"""The linear-Gaussian state-space model and its index convention.

    z_0 ~ N(m, P)
    z_t = F_t z_{t-1} + B_t u_t + b_t + N(0, Q_t)        t = 1 .. T-1
    y_t = H_t z_t     + D_t u_t + d_t + N(0, R_t)        t = 0 .. T-1

**Index convention.** Entry t of a time-varying dynamics parameter, and input u_t, act
on the transition *into* step t. Entry 0 of the dynamics is never used, since z_0 comes
from the initial distribution; it must be there all the same, so that every
time-varying array has T entries. This is dynamax's convention from 1.0.3 on; TFP's
`transition_matrix(t)` is our entry t + 1.

Whether a matrix is dense, diagonal, block-diagonal or a multiple of the identity is
declared by its type (see `structure`); whether it varies in time follows from its
number of axes. When all five matrices are diagonal, or those that are not have the same
blocks, groups of dimensions never mix, and every algorithm runs on each of them by
itself (see `places`).

A missing emission is NaN, or False in `mask`, or has an infinite variance: any subset
of the dimensions of any step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm._jax import is_traced
from elk_ssm._showing import held
from elk_ssm.kalman.checks import check_covariance, check_numbers, expect_shape
from elk_ssm.kalman.initial import Diffuse, Stationary, initial_operator, is_diffuse
from elk_ssm.kalman.observations import Observations, array_with_gaps
from elk_ssm.linalg.small import matvec
from elk_ssm.linalg.structure import (
    Matrix,
    Operator,
    as_operator,
    unified,
    variances_of,
)


class LGSSM(NamedTuple):
    """A linear-Gaussian state-space model with state `D`, emissions `E`, inputs `U`.

    Matrices are `Dense`, `Diagonal`, `BlockDiagonal`, `ScaledIdentity` or a bare array,
    which means dense. All but the initial ones may have a leading time axis, and
    covariances may be singular. Arrays are of one float dtype or are promoted to it.

    Attributes:
        initial_mean: `(D,)`.
        initial_covariance: `(D, D)`, static; or `Diffuse` or `Stationary`.
        dynamics_weights: F, `(D, D)` or `(T, D, D)`.
        dynamics_covariance: Q, `(D, D)` or `(T, D, D)`.
        emission_weights: H, `(E, D)` or `(T, E, D)`; `Diagonal` only if `E == D`.
        emission_covariance: R, `(E, E)` or `(T, E, E)`.
        dynamics_bias: b, `(D,)` or `(T, D)`; zero if `None`.
        dynamics_input_weights: B, `(D, U)` or `(T, D, U)`; zero if `None`.
        emission_bias: d, `(E,)` or `(T, E)`; zero if `None`.
        emission_input_weights: D, `(E, U)` or `(T, E, U)`; zero if `None`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> model = elk.LGSSM(
        ...     initial_mean=jnp.zeros(2),
        ...     initial_covariance=elk.ScaledIdentity(1.0),
        ...     dynamics_weights=elk.Diagonal(jnp.array([0.9, 0.5])),
        ...     dynamics_covariance=elk.ScaledIdentity(0.1),
        ...     emission_weights=jnp.array([[1.0, 1.0]]),
        ...     emission_covariance=elk.ScaledIdentity(0.5),
        ... )
        >>> model.state_dim
        2
    """

    initial_mean: Array
    initial_covariance: Matrix | Diffuse | Stationary
    dynamics_weights: Matrix
    dynamics_covariance: Matrix
    emission_weights: Matrix
    emission_covariance: Matrix
    dynamics_bias: Array | None = None
    dynamics_input_weights: Array | None = None
    emission_bias: Array | None = None
    emission_input_weights: Array | None = None

    def __repr__(self) -> str:
        return held(self, *self._fields)

    @property
    def state_dim(self) -> int:
        """The number of state dimensions, D."""
        return self.initial_mean.shape[-1]


class Problem(NamedTuple):
    """A model with its data, biases and inputs folded in, ready for the algorithms.

    The structure of all is that of `initial_covariance`; the others have it or are
    diagonal. `offsets: (T, D)` are b + B u, `values: (T, E)` are y - d - D u with zeros
    where nothing was observed, and `observed: (T, E)` is boolean. A piece of a longer
    series says so in `begins` (whether its first step is the first of all) and `exists`
    (`(T,)`, which of its steps are steps of the series; `None` if all are).
    """

    initial_mean: Array
    initial_covariance: Operator
    weights: Operator
    covariance: Operator
    emission_weights: Operator
    emission_covariance: Operator
    offsets: Array
    values: Array
    observed: Array
    begins: Array | bool = True
    exists: Array | None = None

    @property
    def operators(self) -> tuple[Operator, ...]:
        """The five matrices."""
        return self[1:6]  # type: ignore[return-value]

    @property
    def varying(self) -> dict[str, Any]:
        """What has a leading time axis, by name."""
        over_time = (operator.varies for operator in self.operators)
        moves = False, *over_time, True, True, True, False, self.exists is not None
        names = zip(self._fields, moves, strict=True)
        return {name: getattr(self, name) for name, so in names if so}

    @property
    def num_steps(self) -> int:
        """The number of steps, T."""
        return self.values.shape[0]


def emission_dim(model: LGSSM) -> int:
    """Return the number of emission dimensions, E."""
    name = "emission_weights"
    weights = as_operator(getattr(model, name), model.state_dim, name)
    return weights.mv(jnp.zeros(model.state_dim)).shape[-1]


def pose(
    model: LGSSM, emissions: Array, inputs: Array | None, mask: Array | None
) -> Problem:
    """Check a model against its data and fold biases, inputs and gaps into a `Problem`.

    Args:
        model: the model.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        mask: `(T, E)` or `(T,)`, True where observed, or `None`.

    Raises:
        ValueError: a shape does not fit the others, or values that are not traced are
            no model (see `checks`).
        TypeError: something is not of a float dtype, or the mask is not boolean.
    """
    if not isinstance(model, LGSSM):
        raise TypeError(f"expected an LGSSM first; got {type(model).__name__}.")
    emissions = array_with_gaps(emissions)
    if emissions.ndim != 2:
        raise ValueError(f"emissions must be (T, E); got shape {emissions.shape}.")
    if inputs is not None and jnp.ndim(inputs) != 2:
        raise ValueError(f"inputs must be (T, U); got shape {jnp.shape(inputs)}.")
    dtype = _common_dtype(model, emissions, inputs)
    (T, E), D = emissions.shape, jnp.shape(model.initial_mean)[-1]
    expect_shape("initial_mean", jnp.shape(model.initial_mean), (D,))
    operators = _operators(model, T, D, E, dtype)
    drive = (model.dynamics_bias, model.dynamics_input_weights)
    offsets = _offsets("dynamics", *drive, inputs, (T, D), dtype)
    shift = emission_offsets(model, inputs, (T, E), dtype)
    seen = Observations.of(array_with_gaps(emissions, dtype), mask)
    seen = seen.only(variances_of(operators[4]) != jnp.inf).minus(shift)
    for name in ("initial_mean", "emission_bias"):
        check_numbers(name, getattr(model, name))
    bias = model.dynamics_bias
    if bias is not None:
        check_numbers("dynamics_bias", _used(bias) if jnp.ndim(bias) == 2 else bias)
    mean = jnp.asarray(model.initial_mean, dtype)
    return Problem._make((mean, *operators, offsets, *seen, True, None))


def emission_offsets(
    model: LGSSM, inputs: Array | None, shape: tuple[int, ...], dtype: Any
) -> Array:
    """Return d + D u for every step, `(T, E)`."""
    drive = model.emission_bias, model.emission_input_weights
    return _offsets("emission", *drive, inputs, shape, dtype)


def _common_dtype(model: LGSSM, emissions: Array, inputs: Array | None) -> Any:
    given = model._asdict() | {"emissions": emissions, "inputs": inputs}
    arrays = []
    for name, field in given.items():
        # Which dimensions are diffuse is no number.
        leaves = field[1:] if is_diffuse(field) else field
        for array in map(jnp.asarray, jax.tree.leaves(leaves)):
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise TypeError(f"{name} must be of a float dtype; got {array.dtype}.")
            arrays.append(array)
    return jnp.result_type(*arrays)


def _operators(model: LGSSM, T: int, D: int, E: int, dtype: Any) -> tuple[Any, ...]:
    specifications = (
        ("dynamics_weights", D, D),
        ("dynamics_covariance", D, D),
        ("emission_weights", E, D),
        ("emission_covariance", E, E),
    )
    operators = []
    for name, rows, columns in specifications:
        operator = as_operator(getattr(model, name), columns, name)
        expect_matrix(name, operator, rows, columns, (T,))
        _check(name, operator)
        operators.append(operator.like(operator.array.astype(dtype)))
    F, Q, H, R = operators
    # So that derivatives are symmetric as well, whatever reads which half.
    Q, R = Q.symmetrized(), R.symmetrized()
    first = initial_operator(model.initial_covariance, F, Q, D)
    expect_matrix("initial_covariance", first, D, D, ())
    _check("initial_covariance", first)
    first = first.like(first.array.astype(dtype)).symmetrized()
    given = first, F, Q, H, R
    start, *rest = zip(unified(*given), given, strict=True)
    return start[0], *(one if given.mixes else given for one, given in rest)


def _check(name: str, operator: Operator) -> None:
    if name.startswith("dynamics") and operator.varies:
        operator = operator.like(_used(operator.array))
    if name.endswith("covariance"):
        check_covariance(name, operator)
    else:
        check_numbers(name, operator.array)


def _used(array: Array) -> Array:
    """Return what drives the dynamics without its entry 0, which is never used."""
    if is_traced(array):
        return array
    with jax.ensure_compile_time_eval():
        array = jnp.asarray(array)
        return array.at[0].set(array[-1] if len(array) > 1 else 0)


def expect_matrix(
    name: str, operator: Operator, rows: int, columns: int, times: tuple[int, ...]
) -> None:
    """Check a matrix that is static or has a leading axis of `times`."""
    if operator.mixes:
        shape = jax.eval_shape(operator.to_dense).shape
        expect_shape(name, shape, (rows, columns), times)
        return
    if rows != columns:
        raise ValueError(
            f"{name} is declared diagonal but must be ({rows}, {columns}); use Dense."
        )
    expect_shape(f"{name} (diagonal)", operator.array.shape, (columns,), times)


def _offsets(
    kind: str,
    bias: Array | None,
    input_weights: Array | None,
    inputs: Array | None,
    shape: tuple[int, ...],
    dtype: Any,
) -> Array:
    """Return bias + input_weights @ inputs for every step, `(T, N)`."""
    steps, size = shape
    total = jnp.zeros(shape, dtype)
    if bias is not None:
        expect_shape(f"{kind}_bias", jnp.shape(bias), (size,), (steps,))
        total = total + jnp.asarray(bias, dtype)
    if inputs is None or input_weights is None:
        return total
    width = jnp.shape(inputs)[1]
    expect_shape("inputs", jnp.shape(inputs), (steps, width))
    name = f"{kind}_input_weights"
    expect_shape(name, jnp.shape(input_weights), (size, width), (steps,))
    if width == 0:
        return total
    unused = kind == "dynamics"
    for said, array, axes in ((name, input_weights, 3), ("inputs", inputs, 2)):
        varies = jnp.ndim(array) == axes
        check_numbers(said, _used(array) if unused and varies else array)
    return total + matvec(jnp.asarray(input_weights, dtype), jnp.asarray(inputs, dtype))
