r"""The extended Kalman smoother: each step expanded where the filter stands.

    dynamics into t   around the filtered mean m_{t-1|t-1}
    emission of t     around the predicted mean m_{t|t-1}

The filter finds these points one after the other. The model expanded at them is linear,
and one smoothing pass over it is the extended Rauch-Tung-Striebel smoother, by any
backend (Särkkä 2013, Bayesian Filtering and Smoothing, algorithms 5.4 and 9.1).
"""

import jax
import jax.numpy as jnp
from jax import lax

from elk_ssm._loop import status_of
from elk_ssm._types import Array
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.scalar_updates import condition
from elk_ssm.kalman.smoothing import SmootherPosterior, lgssm_smoother
from elk_ssm.linalg.small import matmul, symmetrize, transpose
from elk_ssm.linalg.structure import Operator, at_step, to_dense
from elk_ssm.nssm.driven import log_joint_on
from elk_ssm.nssm.expansion import expand
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.rows import step_rows
from elk_ssm.nssm.slopes import value_and_jacobian
from elk_ssm.parallel.backend import Backend
from elk_ssm.solution import Status


def extended_points(posed: Posed) -> tuple[Array, Array]:
    """Return the filtered and the predicted means, `(T, D)` each."""

    def step(carry, index):
        mean, cov = carry
        entry = jax.tree.map(lambda u: u[index], posed.inputs)
        first = index == 0
        moved, F = value_and_jacobian(lambda x: posed.call("dynamics", x, entry), mean)
        Q = _process_covariance(posed, mean, entry, index)
        spread = symmetrize(matmul(F, matmul(cov, transpose(F)))) + Q
        predicted = jnp.where(first, posed.initial_mean, moved)
        spread = jnp.where(first, posed.initial_covariance, spread)
        rows = _rows(posed, predicted, entry, index)
        change, cov, _ = condition(jnp.zeros_like(predicted), spread, rows)
        mean = predicted + change
        return (mean, cov), (mean, predicted)

    start = (posed.initial_mean, posed.initial_covariance)
    return lax.scan(step, start, jnp.arange(posed.shape[0]))[1]


def _process_covariance(posed: Posed, mean, entry, index) -> Array:
    if posed.dynamics_covariance is None:
        return posed.call("dynamics_covariance", mean, entry)
    return to_dense(at_step(posed.dynamics_covariance, index))


def _rows(posed: Posed, point: Array, entry, index):
    covariance: Operator | None = posed.emission_covariance
    if covariance is not None:
        covariance = at_step(covariance, index)
    seen = jax.tree.map(lambda x: x[index], posed.observations)
    return step_rows(posed, point, entry, covariance, seen, "scored")


def extended_posterior(posed: Posed, backend: Backend) -> SmootherPosterior:
    """Smooth the model expanded at the filter's points."""
    model, values, observed = extended_model(posed)
    return lgssm_smoother(model, values, mask=observed, backend=backend)


def extended_model(posed: Posed) -> tuple[LGSSM, Array, Array]:
    """Expand a model at the filter's points; return its emissions and what was seen."""
    filtered, predicted = extended_points(posed)
    expansion = expand(posed, filtered, emission_points=predicted, kind="scored")
    # From increments around the points to states: x_t = f_t + F (x_{t-1} - m_{t-1}).
    weights, rows = expansion.weights, expansion.rows
    means = expansion.offsets + filtered
    before = jnp.concatenate([filtered[:1], filtered[:-1]])
    shift = means - jnp.sum(weights * before[:, None], axis=-1)
    values = rows.values + jnp.sum(rows.weights * predicted[:, None], axis=-1)
    model = expansion.model()._replace(
        initial_mean=posed.initial_mean, dynamics_bias=shift
    )
    return model, values, rows.observed


def extended_fields(posed: Posed, backend: Backend) -> dict[str, Array]:
    """Return what `Smoothed` holds of one pass."""
    posterior = extended_posterior(posed, backend)
    means = posterior.smoothed_means
    broken = ~jnp.all(jnp.isfinite(means)), Status.nonfinite
    return {
        "means": means,
        "covariances": to_dense(posterior.smoothed_covariances),
        "log_likelihood": posterior.log_likelihood,
        "log_posterior": log_joint_on(posed, means),
        "status": status_of(broken, otherwise=Status.converged),
        "num_iters": jnp.asarray(1, jnp.int32),
        "step_norm": jnp.asarray(0, means.dtype),
        "filtered_means": posterior.filtered_means,
        "filtered_covariances": to_dense(posterior.filtered_covariances),
    }
