r"""A model and the series that it describes, as matrices and centred data.

    y - shift = emissions of an LGSSM,    shift: the mean where a level takes it up

A forecast needs matrices for steps after the data too: `ahead` of them, with their
inputs and times behind those of the data.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import deliberate_nans
from elk_ssm._types import Array
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.observations import array_with_gaps
from elk_ssm.models.data import as_emissions, gaps_between
from elk_ssm.models.fit import ModelFit
from elk_ssm.models.model import Model


class Observed(NamedTuple):
    """A model with given parameters, and a series: what need not have been fitted.

    `forecast`, `decompose` and `innovations` take it where they take a fit.

    Attributes:
        model: A sum of `elk_ssm.models`, or an `LGSSM`.
        emissions: `(T, E)`, or `(T,)` of one emission; NaN where missing.
        inputs: `(T, U)`, or `None`.
        times: `(T,)`, increasing, or `None` for steps of one.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> seen = elk.Observed(elk.models.local_level(), jnp.array([1.0, 2.0, 4.0]))
        >>> elk.forecast(seen, 2).mean.shape
        (2,)
    """

    model: Model | LGSSM
    emissions: Any
    inputs: Any = None
    times: Any = None


class Series(NamedTuple):
    """Matrices and data of a model.

    Attributes:
        matrices: For every step, those ahead included.
        emissions: `(T, E)`, less the shift.
        inputs: Of the `LGSSM`, or `None`.
        shift: `(E,)`.
    """

    matrices: LGSSM
    emissions: Array
    inputs: Array | None
    shift: Array

    def shaped(self, values: Array) -> Array:
        """Return values `(..., E)` without the axis of a single emission."""
        return values[..., 0] if self.emissions.shape[1] == 1 else values


class Given(NamedTuple):
    """A model with arrays that have been checked.

    Attributes:
        model: A `Model` or an `LGSSM`.
        emissions: `(T, E)`.
        inputs: `(T + ahead, U)`, or `None`.
        gaps: `(T + ahead,)`, or `None`.
    """

    model: Any
    emissions: Array
    inputs: Any
    gaps: Array | None

    def series(self) -> Series:
        """Return the matrices and data."""
        if isinstance(self.model, LGSSM):
            nothing = jnp.zeros(self.emissions.shape[1], self.emissions.dtype)
            return Series(self.model, self.emissions, self.inputs, nothing)
        shift = self.model.mean_of(self.emissions)
        matrices = self.model.assembled(self.inputs, self.gaps)
        return Series(matrices, self.emissions - shift, None, shift)

    def run(self, function: Callable, **choices: Any) -> Any:
        """Return `function(self, **choices)`, as one program where matrices are built.

        What is wrong with the values of a user's own matrices is said only where they
        are not traced.
        """
        if isinstance(self.model, LGSSM):
            return function(self, **choices)
        return _compiled(function, tuple(choices))(self, **choices)


@lru_cache(maxsize=64)
def _compiled(function: Callable, names: tuple[str, ...]) -> Callable:
    return jax.jit(function, static_argnames=names)


def model_of(fitted: Any, what: str) -> Model | LGSSM:
    """Return the model that a fit, or an `Observed`, is of.

    Args:
        fitted: What the user passed.
        what: The function that it was passed to.

    Raises:
        TypeError: It is no fit, or of a model that is not linear and Gaussian.
    """
    if not isinstance(fitted, ModelFit | Observed):
        raise TypeError(
            f"{what} takes what elk.fit returned for a model of elk.models, or an "
            f"elk.Observed(model, y); got {type(fitted).__name__}."
        )
    model = fitted.model
    emission = getattr(model, "emission", None)
    if not isinstance(model, Model | LGSSM) or emission is not None:
        name = type(model if emission is None else emission).__name__
        raise TypeError(
            f"{what} needs a linear model with Gaussian emissions; got one of {name}."
        )
    return model


def given_by(
    fitted: Any, what: str, ahead: int = 0, inputs: Any = None, times: Any = None
) -> Given:
    """Return the model and data of a fit, checked.

    Args:
        fitted: A `ModelFit` or an `Observed`.
        what: The function that it was passed to.
        ahead: How many steps after the data are asked for.
        inputs: Of those steps, `(ahead, U)`.
        times: Of those steps, `(ahead,)`, going on from those of the data.

    Raises:
        TypeError: See `model_of`.
        ValueError: Inputs or times are missing, or do not fit.
    """
    model = model_of(fitted, what)
    if isinstance(model, LGSSM):
        emissions = array_with_gaps(fitted.emissions)
        emissions = emissions[:, None] if emissions.ndim == 1 else emissions
        if fitted.times is not None or times is not None:
            raise ValueError("an LGSSM has its times in its matrices; got times.")
        driven = (model.emission_input_weights, model.dynamics_input_weights)
        wanted = next((jnp.shape(x)[-1] for x in driven if x is not None), 0)
        inputs = _joined(fitted.inputs, inputs, ahead, wanted, "this LGSSM")
        return Given(model, emissions, inputs, None)
    emissions = as_emissions(fitted.emissions, model.emission_dim)
    who = ", ".join(c.name for c in model.components if c.kind.num_inputs)
    inputs = _joined(fitted.inputs, inputs, ahead, model.num_inputs, who)
    return Given(model, emissions, inputs, _gaps(fitted, times, ahead))


def _joined(known: Any, new: Any, ahead: int, count: int, who: str) -> Array | None:
    """Return inputs of the data and of the steps ahead, `(T + ahead, count)`."""
    if not ahead:
        return None if known is None else jnp.asarray(known)
    if count == 0:
        if new is not None:
            raise ValueError("inputs were given to a model that takes none.")
        return None
    if new is None:
        raise ValueError(
            f"forecast needs inputs=, ({ahead}, {count}), of the steps ahead for {who}."
        )
    new = jnp.asarray(new)
    new = new[:, None] if new.ndim == 1 and (count == 1 or ahead != 1) else new
    new = new[None] if new.ndim == 1 else new
    if new.shape != (ahead, count):
        raise ValueError(
            f"inputs of the steps ahead must be ({ahead}, {count}) for {who}; got "
            f"shape {new.shape}."
        )
    return jnp.concatenate([jnp.reshape(jnp.asarray(known), (-1, count)), new])


def _gaps(fitted: Any, times: Any, ahead: int) -> Array | None:
    """Return the gap before every step of the data and of those ahead."""
    known = fitted.times
    if known is None:
        if times is not None:
            raise ValueError(
                "times of the steps ahead were given, but the model was fitted "
                "without times."
            )
        return None
    if not ahead:
        return gaps_between(known)
    if times is None or np.ndim(times) != 1 or len(times) != ahead:
        got = "none" if times is None else f"shape {np.shape(times)}"
        raise ValueError(
            f"the model was fitted with times, so forecast needs times=, ({ahead},), "
            f"of the steps ahead; got {got}."
        )
    return gaps_between(np.concatenate([np.asarray(known), np.asarray(times)]))


def marked(values: Array, known: Array) -> Array:
    """Return values, NaN where they are not known."""
    with deliberate_nans():
        return jnp.where(known, values, jnp.nan)
