"""What is wrong with a series for a model, in one sentence."""

from typing import Any

import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._types import Array
from elk_ssm.models.data import inputs_of


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


def _check_values(model: Any, emissions: np.ndarray, mask: Any) -> None:
    if np.isinf(emissions).any():
        at = int(np.argmax(np.isinf(emissions).any(axis=1)))
        raise ValueError(f"the series is infinite at step {at}; NaN stands for a gap.")
    seen = ~np.isnan(emissions)
    if mask is not None:
        seen = seen & np.asarray(mask).reshape(len(seen), -1)
    values = emissions[seen]
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
