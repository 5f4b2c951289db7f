r"""Innovations: what every observation adds to what was known a step before it.

    v_t = y_t - H_t m_{t|t-1},    S_t = H_t P_{t|t-1} H_t' + R_t,    e_t = L^-1 v_t

with L the Cholesky factor of S. If the model is right, e is white noise of variance
one. Where y_t is missing there is none, nor before the data have settled every diffuse
dimension of the state, where S is infinite: NaN.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._showing import held
from elk_ssm._types import Array
from elk_ssm.fitted.series import Given, given_by, marked
from elk_ssm.fitted.whiteness import Diagnostics, examine
from elk_ssm.kalman.filtering import lgssm_filter
from elk_ssm.kalman.lgssm import Problem, pose
from elk_ssm.kalman.whitening import whiten
from elk_ssm.linalg.small import matmul, matvec, transpose
from elk_ssm.linalg.structure import to_dense


class Innovations(NamedTuple):
    """Errors of predictions one step ahead.

    Each `(T,)`, or `(T, E)` of several emissions; NaN where a value is missing, and
    before the data have settled every diffuse dimension of the state.

    Attributes:
        standardised: Errors made white, of variance one.
        errors: Observations less their predictions.
        variances: Of the errors.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.array([1.0, jnp.nan, 4.0, 3.0])
        >>> found = elk.innovations(elk.Observed(elk.models.local_level(), y))
        >>> [bool(x) for x in jnp.isnan(found.errors)], float(found.errors[2])
        ([True, True, False, False], 3.0)
    """

    standardised: Array
    errors: Array
    variances: Array

    def __repr__(self) -> str:
        return held(self, *self._fields)

    def tests(self, lags: int | None = None) -> Diagnostics:
        """Return the tests of `elk_ssm.diagnostics`."""
        return examine(self.standardised, lags)


def innovations(fitted: Any) -> Innovations:
    """Return the errors of predictions one step ahead, raw and standardised.

    Args:
        fitted: What `elk_ssm.fit` returned for a model of `elk_ssm.models`, or an
            `elk_ssm.Observed`.

    Raises:
        TypeError: That is no fit, or its model is not linear and Gaussian.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.array([1.0, 1.4, 0.7, 2.2, 2.6, 1.9, 3.4, 3.1])
        >>> found = elk.innovations(elk.fit(elk.models.local_level(), y))
        >>> found.standardised.shape, found.tests().normality.statistic.shape
        ((8,), ())
    """
    return given_by(fitted, "innovations").run(_innovations)


def diagnostics(fitted: Any, lags: int | None = None) -> Diagnostics:
    """Test whether the innovations of a fit look like white noise.

    Args:
        fitted: As for `innovations`.
        lags: Longest lag of the Ljung-Box statistics; 10, or a fifth of the steps where
            these are few.

    Raises:
        TypeError: That is no fit, or its model is not linear and Gaussian.
        ValueError: There are not so many lags.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.sin(jnp.arange(60.0) ** 2)
        >>> found = elk.diagnostics(elk.Observed(elk.models.local_level(), y))
        >>> found.serial_correlation.p_value.shape
        (10,)
    """
    return innovations(fitted).tests(lags)


def _innovations(given: Given) -> Innovations:
    series = given.series()
    found = lgssm_filter(series.matrices, series.emissions, series.inputs)
    problem = pose(series.matrices, series.emissions, series.inputs, None)
    filtered = found.filtered_means, to_dense(found.filtered_covariances)
    means, covs, settled = _predicted(problem, *filtered)
    length = problem.num_steps
    H, R = (
        jnp.broadcast_to(x, (length, *x.shape[-2:]))
        for x in map(to_dense, (problem.emission_weights, problem.emission_covariance))
    )
    errors = problem.values - matvec(H, means)
    spread = matmul(matmul(H, covs), transpose(H)) + R
    seen = problem.observed & settled[:, None]
    white = jax.vmap(_white)(errors, spread, seen)
    variances = jnp.diagonal(spread, axis1=1, axis2=2)
    shown = (marked(x, seen) for x in (white, errors, variances))
    return Innovations(*map(series.shaped, shown))


def _predicted(
    problem: Problem, means: Array, covs: Array
) -> tuple[Array, Array, Array]:
    """Return mean and covariance of every state a step ahead, and which are settled."""
    length = problem.num_steps
    first = to_dense(problem.initial_covariance)
    before = jnp.concatenate([first[None], covs[:-1]])
    settled = jnp.all(jnp.isfinite(before), axis=(1, 2))
    before = jnp.where(settled[:, None, None], before, 0)
    F, Q = (
        jnp.broadcast_to(x, (length, *x.shape[-2:]))
        for x in map(to_dense, (problem.weights, problem.covariance))
    )
    moved = matmul(matmul(F, before), transpose(F)) + Q
    moved = moved.at[0].set(before[0])
    ahead = matvec(F[1:], means[:-1]) + problem.offsets[1:]
    return jnp.concatenate([problem.initial_mean[None], ahead]), moved, settled


def _white(errors: Array, spread: Array, seen: Array) -> Array:
    """Return L^-1 v of one step; what is missing counts for nothing."""
    kept = seen[:, None] & seen
    eye = jnp.eye(len(errors), dtype=spread.dtype)
    found = whiten(jnp.where(kept, spread, eye))
    variances = jnp.where(found.variances > 0, found.variances, 1)
    white = matvec(found.inverse, jnp.where(seen, errors, 0)) / jnp.sqrt(variances)
    return jnp.where(found.variances > 0, white, 0)
