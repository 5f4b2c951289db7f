"""A model checked against its data, with its functions hoisted: what algorithms take.

Functions are traced once and compared by structure (see `_closures`), so a model made
of fresh lambdas finds its compiled smoother again, and captured arrays are operands
that may be differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction, hoist
from elk_ssm._jax import is_traced
from elk_ssm._recurrence import check_length, without_time
from elk_ssm._trees import describe, static
from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.lgssm import expect_matrix
from elk_ssm.kalman.observations import Observations, array_with_gaps
from elk_ssm.linalg.structure import Dense, Operator, as_operator, to_dense
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis


class Program(NamedTuple):
    """The functions of a model without what they closed over; `None` if not used."""

    dynamics: HoistedFunction
    emission: HoistedFunction
    dynamics_covariance: HoistedFunction | None = None
    emission_covariance: HoistedFunction | None = None
    log_density: HoistedFunction | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posed:
    """A model with its data.

    Attributes:
        consts: What each function closed over, a `Program` of lists.
        initial_mean: `(D,)`.
        initial_covariance: `(D, D)`.
        dynamics_covariance: Static or with T entries; `None` if a function.
        emission_covariance: Likewise; `None` also with a log density.
        inputs: Pytree with leading axis T, or `None`.
        observations: Of T steps; seen as a whole with a log density.
        program: The hoisted functions, static.
        axis: Where time lives, static; T is then what this device holds.
        exists: Which of these steps are steps of the series; `None` if all are.
    """

    consts: Program
    initial_mean: Array
    initial_covariance: Array
    dynamics_covariance: Operator | None
    emission_covariance: Operator | None
    inputs: PyTree
    observations: Observations
    program: Program = static()
    axis: TimeAxis = static(default=LOCAL)
    exists: Array | None = None

    def call(self, name: str, *args: Any) -> Any:
        """Evaluate one of the functions with its closure filled in."""
        return getattr(self.program, name)(getattr(self.consts, name), *args)

    @property
    def shape(self) -> tuple[int, int]:
        """`(T, D)`."""
        return self.observations.values.shape[0], self.initial_mean.shape[0]

    @property
    def inputs_into(self) -> PyTree:
        """The inputs of the transitions; see `into`."""
        return jax.tree.map(self.into, self.inputs)

    def emission_noise(self, state: Array, entry: PyTree, known: Any) -> Operator:
        """R at a state, if it is not known already."""
        return known or Dense(self.call("emission_covariance", state, entry))

    def over_emissions(self, function: Callable, *arrays: Array) -> Any:
        """Map `function(*entries, input, R, observations)` over the steps."""
        R = self.emission_covariance
        axes = *(0 for _ in arrays), 0, time_axis(R), 0
        return jax.vmap(function, axes)(*arrays, self.inputs, R, self.observations)

    # Transitions lead into steps 1, ..., T-1. Where time is sharded over devices there
    # is one for each step that a device holds, and some are none: that into the first
    # step of all, and those past the end. They start from the initial mean.

    def transitions(self) -> Array | None:
        """Which transitions are transitions, `None` if all are."""
        if not self.axis.is_sharded:
            return None
        real = self.axis.index(self.shape[0]) > 0
        return real if self.exists is None else real & self.exists

    def shift(self, x: Array, first: Array | None = None) -> Array:
        """What holds before each transition; `first` where there is none."""
        real = self.transitions()
        if real is None:
            return x[:-1]
        first = self.initial_mean if first is None else first
        return _where_rows(real, self.axis.shift(first, x), first)

    def into(self, x: Array) -> Array:
        """What holds after each transition, of entries for all steps."""
        return x[1:] if self.transitions() is None else x

    def masked(self, entries: Array, other: Array | float = 0.0) -> Array:
        """Replace the entries of transitions that are none."""
        real = self.transitions()
        return entries if real is None else _where_rows(real, entries, other)

    def at_steps(self, entries: Array) -> Array:
        """Put entries of the transitions at the steps they lead into, else zero."""
        if self.transitions() is not None:
            return self.masked(entries)
        first = jnp.zeros((1, *entries.shape[1:]), entries.dtype)
        return jnp.concatenate([first, entries])

    def at_start(self, first: Array, entries: Array) -> Array:
        """Replace the entry of the first step of all."""
        if self.transitions() is None:
            return jnp.concatenate([first[None], entries[1:]])
        start = self.axis.index(entries.shape[0]) > 0
        return _where_rows(start, entries, first)

    @property
    def is_gaussian(self) -> bool:
        """Whether the emissions are Gaussian."""
        return self.program.log_density is None

    @property
    def has_varying_noise(self) -> bool:
        """Whether a covariance depends on the state."""
        program = self.program
        return bool(program.dynamics_covariance or program.emission_covariance)


def time_axis(covariance: Operator | None) -> int | None:
    """Return the axis over which `jax.vmap` maps a covariance."""
    return 0 if covariance is not None and covariance.varies else None


def _where_rows(condition: Array, chosen: Array, other: Array | float) -> Array:
    shape = condition.shape + (1,) * (chosen.ndim - 1)
    return jnp.where(condition.reshape(shape), chosen, other)


def pose(
    model: NonlinearSSM, emissions: Any, inputs: PyTree = None, mask: Any = None
) -> Posed:
    """Check a model against its data and hoist its functions.

    Raises:
        ValueError: A shape does not fit the others, or a covariance is missing.
        TypeError: A dtype or a function cannot be used.
    """
    mean = _check_model(model)
    emissions = array_with_gaps(emissions)
    if emissions.ndim != 2 or emissions.shape[0] == 0:
        raise ValueError(f"emissions must be (T, E), T > 0; got {emissions.shape}.")
    emissions = array_with_gaps(emissions, mean.dtype)
    inputs = jax.tree.map(jnp.asarray, inputs)
    steps = check_length(inputs, emissions.shape[0])
    program, consts, width = _hoist_all(model, mean, emissions, inputs)
    whole = program.log_density is not None
    size = mean.shape[0]
    initial = _covariance("initial_covariance", model, size, 0, mean.dtype)
    assert initial is not None
    return Posed(
        consts,
        mean,
        to_dense(initial),
        _covariance("dynamics_covariance", model, size, steps, mean.dtype),
        _covariance("emission_covariance", model, width, steps, mean.dtype),
        inputs,
        Observations.of(emissions, mask, whole=whole),
        program,
    )


def _check_model(model: NonlinearSSM) -> Array:
    if not isinstance(model, NonlinearSSM):
        raise TypeError(f"expected a NonlinearSSM; got {type(model).__name__}.")
    mean = jnp.asarray(model.initial_mean)
    if mean.ndim != 1:
        raise ValueError(f"initial_mean must be (D,); got shape {mean.shape}.")
    if mean.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"initial_mean must be float32 or float64; got {mean.dtype}.")
    if (model.emission_covariance is None) == (model.log_density is None):
        raise ValueError(
            "give either emission_covariance (Gaussian emissions) or log_density; got "
            + ("neither." if model.log_density is None else "both.")
        )
    return mean


def _hoist_all(
    model: NonlinearSSM, mean: Array, emissions: Array, inputs: PyTree
) -> tuple[Program, Program, int]:
    """Return the functions, their closures, and the number of emissions E."""
    state = jax.ShapeDtypeStruct(mean.shape, mean.dtype)
    entry = without_time(inputs)
    value = jax.ShapeDtypeStruct(emissions.shape[1:], mean.dtype)
    dynamics = _traced("dynamics", model.dynamics, state, entry)
    _expect("dynamics", dynamics[2], state.shape, mean.dtype)
    emission = _traced("emission", _emission_of(model, mean.dtype), state, entry)
    predictor = emission[2]
    found = {"dynamics": dynamics, "emission": emission}
    if model.log_density is not None:
        traced = _traced("log_density", model.log_density, predictor, value, entry)
        _expect("log_density", traced[2], (), mean.dtype)
        found["log_density"] = traced
    else:
        _expect("emission", predictor, value.shape, mean.dtype)
    for name, size in (
        ("dynamics_covariance", mean.shape[0]),
        ("emission_covariance", value.shape[0]),
    ):
        if callable(function := getattr(model, name)):
            dense = _dense_function(name, function, size, mean.dtype)
            found[name] = _traced(name, dense, state, entry)
    program = Program(**{name: traced[0] for name, traced in found.items()})
    consts: dict[str, Any] = {name: traced[1] for name, traced in found.items()}
    return program, Program(**consts), value.shape[0]


def _traced(name: str, function: Any, *example: Any) -> tuple[Any, Any, Any]:
    if not callable(function):
        raise TypeError(f"{name} must be a function; got {type(function).__name__}.")
    try:
        hoisted, consts = hoist(function, *example)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        shapes = ", ".join(describe(x) for x in example)
        raise kind(
            f"{name} failed on ({shapes}), without time axis: {error}"
        ) from error
    return hoisted, consts, jax.eval_shape(hoisted, consts, *example)


def _expect(name: str, found: Any, shape: tuple[int, ...], dtype: Any) -> None:
    leaves = jax.tree.leaves(found)
    if len(leaves) == 1 and leaves[0].shape == shape and leaves[0].dtype == dtype:
        return
    raise ValueError(
        f"{name} must return an array of shape {shape} and dtype {dtype}; got "
        f"{describe(found)}."
    )


def _emission_of(model: NonlinearSSM, dtype: Any) -> Callable:
    """Return h as a function that gives a vector of the state's dtype."""
    emission = model.emission
    if emission is None:
        return lambda state, _: state
    if not callable(emission):
        raise TypeError(f"emission must be a function; got {type(emission).__name__}.")
    return lambda state, u: jnp.atleast_1d(emission(state, u)).astype(dtype)


def _dense_function(name: str, function: Callable, size: int, dtype: Any) -> Callable:
    def dense(state: Array, entry: PyTree) -> Array:
        matrix = to_dense(as_operator(function(state, entry), size, name))
        if matrix.shape != (size, size):
            raise ValueError(f"expected shape {(size, size)}; got {matrix.shape}.")
        return matrix.astype(dtype)

    return dense


def _covariance(
    name: str, model: NonlinearSSM, size: int, steps: int, dtype: Any
) -> Operator | None:
    given = getattr(model, name)
    if given is None or (callable(given) and not isinstance(given, jax.Array)):
        return None
    operator = as_operator(given, size, name)
    expect_matrix(name, operator, size, size, (steps,) if steps else ())
    _check_variances(name, operator.variances())
    return operator.like(operator.array.astype(dtype))


def _check_variances(name: str, variances: Array) -> None:
    if is_traced(variances):
        return
    # NumPy, because under jit JAX would trace a comparison of known numbers as well.
    smallest = np.min(np.asarray(variances))
    if not smallest > 0:
        raise ValueError(
            f"{name} must be positive definite, or the log density does not exist; got "
            f"a variance of {smallest}. Give a noise-free entry a small one."
        )
