"""A series, its inputs and its times as arrays, and what is wrong with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._types import Array
from elk_ssm.models.component import Scale


def as_emissions(y: Any, count: int) -> Array:
    """Return a series as floats `(T, E)`, given so or, of one emission, as `(T,)`.

    Raises:
        ValueError: It has another shape.
    """
    y = jnp.asarray(_numeric(y, "a series"))
    if not jnp.issubdtype(y.dtype, jnp.floating):
        y = y.astype(jnp.zeros(()).dtype)
    wanted = f"(T, {count})" if count > 1 else "(T,) or (T, 1)"
    shaped = y[:, None] if y.ndim == 1 and count == 1 else y
    if shaped.ndim != 2 or shaped.shape[1] != count or shaped.shape[0] == 0:
        raise ValueError(f"a series of this model must be {wanted}; got {y.shape}.")
    return shaped


def _numeric(values: Any, what: str) -> Any:
    """Return values, text and dates refused."""
    if any(map(is_traced, jax.tree.leaves(values))) or isinstance(values, jax.Array):
        return values
    kind = np.asarray(values).dtype
    if kind.kind not in "OSUMm":
        return values
    days = "; take (t - t[0]) / np.timedelta64(1, 'D'), days"
    hint = days if kind.kind == "M" else ""
    raise TypeError(f"{what} must be numbers; got {kind}{hint}.")


def as_times(times: Any) -> Any:
    """Return times as an array, by NumPy where it can.

    Days in float64 may be years in float32.
    """
    if times is None or is_traced(times):
        return times
    return np.asarray(_numeric(times, "times"))


def gaps_between(times: Any) -> Array:
    """Return the gap before each step, `(T,)`, one before the first.

    Raises:
        TypeError: Times are text or dates.
        ValueError: Times are not `(T,)`, not finite, or do not increase.
    """
    times = as_times(times)
    if np.ndim(times) != 1:
        raise ValueError(f"times must be (T,); got shape {np.shape(times)}.")
    if isinstance(times, np.ndarray) and not np.isfinite(times).all():
        at = int(np.argmin(np.isfinite(times)))
        raise ValueError(f"times must be finite; at {at} is {times[at]}.")
    gaps = times[1:] - times[:-1]
    if isinstance(gaps, np.ndarray) and not (gaps > 0).all():
        at = int(np.argmin(gaps > 0)) + 1
        raise ValueError(
            f"times must increase; at {at} comes {times[at]} after {times[at - 1]}."
        )
    whole = np if isinstance(gaps, np.ndarray) else jnp
    return jnp.asarray(whole.concatenate([whole.ones(1, gaps.dtype), gaps]))


def inputs_of(inputs: Any, count: int, gaps: Array | None) -> Array | None:
    """Return the inputs `(T, U)` of a model that takes `count` of them.

    Raises:
        ValueError: There are others, or none.
    """
    if inputs is None:
        return None
    inputs = jnp.asarray(inputs)
    inputs = inputs[:, None] if inputs.ndim == 1 else inputs
    if count == 0:
        raise ValueError("inputs were given to a model without a regression.")
    if inputs.ndim != 2 or inputs.shape[1] != count:
        raise ValueError(
            f"inputs must be (T, {count}), a column for each coefficient; got shape "
            f"{inputs.shape}."
        )
    if gaps is not None and gaps.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"times and inputs must be equally long; got {gaps.shape[0]} and "
            f"{inputs.shape[0]}."
        )
    return inputs


def scale_of(emissions: Array) -> Scale:
    """Return how large a series `(T, E)` is."""
    variance = _mean_square(emissions - mean_of(emissions))
    changes = emissions[1:] - emissions[:-1]
    count = jnp.sum(~jnp.isnan(changes))
    known = jnp.where(count > 0, _mean_square(changes), variance)
    tiny = jnp.finfo(emissions.dtype).tiny
    return Scale(variance, jnp.maximum(known, tiny), emissions.shape[0])


def mean_of(values: Array) -> Array:
    """Return means over steps of what was observed, `(E,)` of `(T, E)`."""
    seen = ~jnp.isnan(values)
    total = jnp.sum(jnp.where(seen, values, 0), axis=0)
    return total / jnp.maximum(jnp.sum(seen, axis=0), 1)


def _mean_square(values: Array) -> Array:
    seen = ~jnp.isnan(values)
    known = jnp.where(seen, values, 0)
    # In units of the largest, or squares of 1e19 are inf in float32.
    largest = jnp.max(jnp.abs(known), initial=0)
    known = known / jnp.where(largest > 0, largest, 1)
    return jnp.sum(known**2) / jnp.maximum(jnp.sum(seen), 1) * largest**2
