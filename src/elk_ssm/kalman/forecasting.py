r"""Forecasts with bands: steps after the data are steps without an emission.

A forecast is the filter run on over `horizon` missing emissions, so time-varying
parameters and inputs have T + horizon entries, in the index convention of `lgssm`. The
emission predicted for step t is N(H m + D u + d, H P H' + R), and its band at level a
is the mean plus and minus the (1 + a) / 2 normal quantile of its standard deviation.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from elk_ssm._jax import deliberate_nans
from elk_ssm.kalman.filtering import filter_problem
from elk_ssm.kalman.form import Form, chosen_form
from elk_ssm.kalman.initial import is_diffuse
from elk_ssm.kalman.lgssm import LGSSM, emission_offsets, pose
from elk_ssm.kalman.observations import array_with_gaps
from elk_ssm.linalg.structure import (
    Diagonal,
    Operator,
    unified,
    variances_of,
)
from elk_ssm.parallel.backend import Backend, check_backend


class Forecast(NamedTuple):
    """States and emissions predicted for `h` steps after the data.

    Attributes:
        state_means: `(h, D)`.
        state_covariances: `h` matrices in the structure of the model.
        emission_means: `(h, E)`.
        emission_covariances: `h` matrices, emission noise included.
        lower: `(h, E)`, the lower edge of the emission band.
        upper: `(h, E)`, the upper edge.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> ahead = elk.lgssm_predict(model, jnp.ones((3, 1)), 2)
        >>> ahead.emission_means.shape, bool((ahead.lower < ahead.upper).all())
        ((2, 1), True)
    """

    state_means: Array
    state_covariances: Operator
    emission_means: Array
    emission_covariances: Operator
    lower: Array
    upper: Array


def lgssm_predict(
    model: LGSSM,
    emissions: Array,
    horizon: int,
    inputs: Array | None = None,
    *,
    level: float | Array = 0.95,
    mask: Array | None = None,
    form: Form = "auto",
    backend: Backend = "auto",
) -> Forecast:
    """Forecast states and emissions of the steps after the data, with bands.

    Args:
        model: the model; time-varying parameters have `T + horizon` entries.
        emissions: `(T, E)`, NaN where missing; `T` may be 0.
        horizon: the number of steps to forecast, at least 1.
        inputs: `(T + horizon, U)` or `None`.
        level: the probability of each emission band, in (0, 1).
        mask: `(T, E)` or `(T,)`, True where observed.
        form: How the recursion is held, as for `lgssm_filter`.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.

    Returns:
        The forecast of the steps T to T + horizon - 1.

    Raises:
        ValueError: a shape or the horizon does not fit, or the backend is unknown.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> forecast = elk.lgssm_predict(model, jnp.array([[1.0]]), horizon=2)
        >>> forecast.emission_covariances.diagonal[:, 0].tolist()
        [2.5, 3.5]
    """
    check_backend(backend)
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1; got {horizon}.")
    emissions, mask = _extended(emissions, mask, horizon)
    problem = pose(model, emissions, inputs, mask)
    _, means, covs = filter_problem(
        problem, backend, form=chosen_form(form, model, problem)
    )
    means, covs = means[-horizon:], covs.at(slice(-horizon, None))
    offsets = emission_offsets(model, inputs, emissions.shape, means.dtype)[-horizon:]
    weights = _latest(problem.emission_weights, horizon)
    noise = _latest(problem.emission_covariance, horizon)
    diffuse = is_diffuse(model.initial_covariance)
    centre, spread = (_emit_open if diffuse else _emit)(weights, noise, means, covs)
    centre = centre + offsets
    reach = ndtri(0.5 + 0.5 * jnp.asarray(level, means.dtype))
    reach = reach * jnp.sqrt(variances_of(spread))
    return Forecast(means, covs, centre, spread, centre - reach, centre + reach)


def _extended(emissions: Array, mask: Array | None, horizon: int):
    """Append `horizon` missing steps to the data."""
    emissions = array_with_gaps(emissions)
    if emissions.ndim != 2:
        raise ValueError(f"emissions must be (T, E); got shape {emissions.shape}.")
    if mask is not None:
        mask = jnp.asarray(mask)
        mask = jnp.concatenate([mask, jnp.zeros((horizon, *mask.shape[1:]), bool)])
    with deliberate_nans():
        gap = jnp.full((horizon, emissions.shape[1]), jnp.nan, emissions.dtype)
        return jnp.concatenate([emissions, gap]), mask


def _latest(operator: Operator, horizon: int) -> Operator:
    return operator.at(slice(-horizon, None))


def _emit(
    weights: Operator, noise: Operator, means: Array, covs: Operator
) -> tuple[Array, Operator]:
    """Return the mean and covariance of H z + N(0, R) for z ~ N(means, covs)."""
    H, P, R = unified(weights, covs, noise)
    return H.mv(means), H.congruence(P).add(R)


def _emit_open(
    weights: Operator, noise: Operator, means: Array, covs: Operator
) -> tuple[Array, Operator]:
    """Return the same where some variances are inf: so is that of what sees one.

    Others do not, as zero times inf would be no number.
    """
    H, P, R = unified(weights, covs, noise)
    open_ = jnp.isinf(P.variances()).astype(means.dtype)
    known = P.like(jnp.where(jnp.isinf(P.array), 0, P.array))
    far = H.like(jnp.abs(H.array)).mv(open_) > 0
    spread = H.congruence(known).add(R)
    infinite = Diagonal(jnp.where(far, jnp.inf, 0).astype(means.dtype))
    own, open_ones = unified(spread, infinite)
    return H.mv(means), own.add(open_ones)
