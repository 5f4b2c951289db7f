"""The functions of a model, hoisted and checked by their shapes.

Functions are traced once and compared by structure (see `_closures`), so a model made
of fresh lambdas finds its compiled smoother again, and captured arrays are operands
that may be differentiated.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction, hoist
from elk_ssm._recurrence import without_time
from elk_ssm._trees import describe
from elk_ssm._types import Array, PyTree
from elk_ssm.linalg.structure import LowRank
from elk_ssm.nssm.covariances import dense_function, is_function, noise_root
from elk_ssm.nssm.model import NonlinearSSM


class Program(NamedTuple):
    """The functions of a model without what they closed over; `None` if not used."""

    dynamics: HoistedFunction
    emission: HoistedFunction
    dynamics_covariance: HoistedFunction | None = None
    emission_covariance: HoistedFunction | None = None
    log_density: HoistedFunction | None = None
    dynamics_root: HoistedFunction | None = None


def hoist_all(
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
            dense = dense_function(name, function, size, mean.dtype)
            found[name] = _traced(name, dense, state, entry)
    Q: Any = model.dynamics_covariance
    if is_function(Q):
        given = jax.eval_shape(Q, state, entry)
        if model.singular or isinstance(given, LowRank):
            root = partial(_root_at, Q, mean.shape[0], mean.dtype)
            found["dynamics_root"] = _traced("dynamics_covariance", root, state, entry)
    program = Program(**{name: traced[0] for name, traced in found.items()})
    consts: dict[str, Any] = {name: traced[1] for name, traced in found.items()}
    return program, Program(**consts), value.shape[0]


def _root_at(function: Callable, size: int, dtype: Any, state, entry) -> Array:
    return noise_root(function(state, entry), size, "dynamics_covariance", dtype)


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
