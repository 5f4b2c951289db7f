r"""Forecasts of the observation, with bands.

    y_{T+h} | y ~ N(H m + shift, H P H' + R),     m, P: the filter run on without data

Parameters are taken as they are: the bands do not know that they were estimated.
"""

from typing import Any, NamedTuple

import numpy as np

from elk_ssm._showing import held
from elk_ssm._types import Array, ArrayLike
from elk_ssm.fitted.bands import check_level, edges
from elk_ssm.fitted.series import Given, given_by
from elk_ssm.kalman.forecasting import lgssm_predict
from elk_ssm.linalg.structure import variances_of


class Forecast(NamedTuple):
    """What a model expects of a series after its end.

    Each `(steps,)`, or `(steps, E)` of several emissions.

    Attributes:
        mean: Of the observation.
        variance: Of the observation, its noise included; `inf` where the data leave a
            diffuse state open.
        lower: Lower edge of its band.
        upper: Upper edge.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> seen = elk.Observed(elk.models.local_level(), jnp.array([1.0, 2.0, 4.0]))
        >>> ahead = elk.forecast(seen, 2)
        >>> bool((ahead.lower < ahead.mean).all() & (ahead.mean < ahead.upper).all())
        True
    """

    mean: Array
    variance: Array
    lower: Array
    upper: Array

    def __repr__(self) -> str:
        return held(self, *self._fields)


def forecast(
    fitted: Any,
    steps: int,
    inputs: ArrayLike | None = None,
    times: ArrayLike | None = None,
    *,
    level: float | Array = 0.95,
) -> Forecast:
    """Forecast the observation of the steps after a series, with bands.

    Args:
        fitted: What `elk_ssm.fit` returned for a model of `elk_ssm.models`, or an
            `elk_ssm.Observed`: a model or an `LGSSM` with its series. What varies in
            time in an `LGSSM` has `T + steps` entries.
        steps: How many steps.
        inputs: `(steps, U)`, or `(steps,)` of one input: those of the steps ahead,
            which regressions need.
        times: `(steps,)`, increasing, those of the steps ahead; needed where the series
            had times.
        level: Probability of each band, in (0, 1).

    Returns:
        The forecast; with a gap at the end of the series, of the steps after the gap.

    Raises:
        TypeError: That is no fit, or its model is not linear and Gaussian.
        ValueError: Steps or level are out of range, or inputs or times are missing, not
            wanted, or of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.array([1.0, 1.4, 0.7, 2.2, 2.6, 1.9, 3.4, 3.1])
        >>> fitted = elk.fit(elk.models.local_level(), y)
        >>> ahead = elk.forecast(fitted, 3, level=0.5)
        >>> ahead.mean.shape, bool((ahead.variance[1:] > ahead.variance[:-1]).all())
        ((3,), True)
    """
    check_level(level)
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a positive integer; got {steps!r}.")
    given = given_by(fitted, "forecast", int(steps), inputs, times)
    mean, variance = given.run(_ahead, steps=int(steps))
    return Forecast(mean, variance, *edges(mean, variance, level))


def _ahead(given: Given, steps: int) -> tuple[Array, Array]:
    """Return mean and variance of the observations ahead."""
    series = given.series()
    found = lgssm_predict(series.matrices, series.emissions, steps, series.inputs)
    mean = series.shaped(found.emission_means + series.shift)
    return mean, series.shaped(variances_of(found.emission_covariances))
