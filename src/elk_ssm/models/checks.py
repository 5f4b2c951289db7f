"""What is wrong with a series for a model, in one sentence."""

from typing import Any

import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._types import Array
from elk_ssm.models.data import inputs_of
from elk_ssm.models.model import Model

# Of the size of a column: what rounding leaves of one that is a sum of others.
_RANK = 32


def check_series(
    model: Any, emissions: Array, inputs: Any, gaps: Array | None, mask: Any
) -> None:
    """Raise where a model cannot be fitted to a series.

    Shapes are looked at always, values where they are not traced.

    Raises:
        ValueError: It cannot, and why.
    """
    steps = emissions.shape[0]
    inputs = inputs_of(inputs, model.num_inputs, gaps)
    if model.num_inputs and inputs is None:
        raise ValueError(
            f"the regression needs inputs of shape ({steps}, {model.num_inputs}); got "
            "none."
        )
    for name, one in (("inputs", inputs), ("times", gaps)):
        if one is not None and one.shape[0] != steps:
            raise ValueError(
                f"{name} must have as many steps as the series; got {one.shape[0]} "
                f"and {steps}."
            )
    for part in model.components:
        least = part.kind.least_steps
        if steps < least:
            raise ValueError(
                f"{part.name} needs a series of at least {least} steps; got {steps}."
            )
    if not any(map(is_traced, (emissions, mask))):
        _check_values(model, np.asarray(emissions), mask)
    known = inputs is not None and not is_traced(inputs)
    if known and not np.isfinite(np.asarray(inputs)).all():
        raise ValueError("inputs must be finite; only the series may have gaps.")
    # With other emissions than Gaussian ones nothing is diffuse.
    diffuse = known and isinstance(model, Model)
    if diffuse and not any(map(is_traced, (emissions, mask))):
        seen = _seen(np.asarray(emissions), mask).any(axis=1)
        _check_apart(np.asarray(inputs, float)[seen], model)


def _check_apart(inputs: np.ndarray, model: Any) -> None:
    """Raise where an input is a sum of others, or of them and a level."""
    columns, eps = inputs.T, np.finfo(model.dtype).eps
    whole = [np.ones(len(inputs))] if model.absorbs_mean else []
    for i, column in enumerate(columns):
        size = np.linalg.norm(column)
        if size == 0:
            continue
        if whole:
            basis = np.linalg.qr(np.stack(whole, axis=1))[0]
            # Once more, as the first time leaves roundings of what it takes off.
            left = column - basis @ (basis.T @ column)
            left = left - basis @ (basis.T @ left)
            if np.linalg.norm(left) <= _RANK * (len(whole) + 1) * eps * size:
                others = "the level and " if model.absorbs_mean else ""
                raise ValueError(
                    f"column {i} of the inputs is a sum of {others}the columns before "
                    "it, up to rounding, so no data tell its coefficient; leave it out."
                )
        whole.append(column / size)


def _seen(emissions: np.ndarray, mask: Any) -> np.ndarray:
    """Return which values are observed, `(T, E)`."""
    seen = ~np.isnan(emissions)
    return seen if mask is None else seen & np.asarray(mask).reshape(len(seen), -1)


def _check_values(model: Any, emissions: np.ndarray, mask: Any) -> None:
    if np.isinf(emissions).any():
        at = int(np.argmax(np.isinf(emissions).any(axis=1)))
        raise ValueError(f"the series is infinite at step {at}; NaN stands for a gap.")
    values = emissions[_seen(emissions, mask)]
    if values.size == 0:
        raise ValueError("the series has no observed value: all of it is missing.")
    model.check_support(values)
    least = model.num_diffuse + 1
    if values.size <= least:
        raise ValueError(
            f"the series has {values.size} observed value"
            f"{'s' if values.size > 1 else ''}, and this model needs more than {least} "
            "to be fitted."
        )
    if (values == values[0]).all():
        raise ValueError(
            f"the series is constant, {values[0]:g} throughout, and has no variance to "
            "be found."
        )
