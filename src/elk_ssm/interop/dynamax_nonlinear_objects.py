r"""The extended Kalman filter and smoother as methods of dynamax's nonlinear objects.

    NonlinearGaussianSSM      y_t ~ N(h(z_t), R)
    GeneralizedGaussianSSM    y_t ~ q(h(z_t), R(z_t)), filtered as if it were Gaussian

Both are expanded at the filter's points (see `nssm/extended`), which gives the moments
of `extended_kalman_filter` and of `conditional_moments_gaussian_filter` with
`EKFIntegrals`. The latter scores y_t under q with the predicted moments of y_t in place
of h and R, and so does this. Where q is not Gaussian, a step with a missing entry is
missing as a whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.interop.dynamax_nonlinear import from_dynamax
from elk_ssm.interop.dynamax_parameters import as_float, dynamax_types
from elk_ssm.kalman.filtering import lgssm_filter
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.sampling import lgssm_sample
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.small import matmul, symmetrize, transpose
from elk_ssm.linalg.structure import to_dense
from elk_ssm.nssm.extended import extended_model
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.posed import pose


def filter_(
    self: Any, params: Any, emissions: Array, inputs: Array | None = None
) -> Any:
    """Run the extended Kalman filter; NaN emissions are missing."""
    model, emissions = _read(params, emissions, inputs)
    found = lgssm_filter(*_linear(model, emissions, inputs))
    means, covariances = found.filtered_means, to_dense(found.filtered_covariances)
    score, predicted = _scored(params, model, (means, covariances), emissions, inputs)
    if hasattr(params, "emission_dist"):
        predicted = {}
    return dynamax_types().PosteriorGSSMFiltered(
        marginal_loglik=found.log_likelihood if score is None else score,
        filtered_means=means,
        filtered_covariances=covariances,
        **predicted,
    )


def smoother(
    self: Any, params: Any, emissions: Array, inputs: Array | None = None
) -> Any:
    """Run the extended Kalman smoother; NaN emissions are missing."""
    model, emissions = _read(params, emissions, inputs)
    found = lgssm_smoother(*_linear(model, emissions, inputs))
    means, covariances = found.filtered_means, to_dense(found.filtered_covariances)
    score, _ = _scored(params, model, (means, covariances), emissions, inputs)
    return dynamax_types().PosteriorGSSMSmoothed(
        marginal_loglik=found.log_likelihood if score is None else score,
        filtered_means=means,
        filtered_covariances=covariances,
        smoothed_means=found.smoothed_means,
        smoothed_covariances=to_dense(found.smoothed_covariances),
    )


def marginal_log_prob(
    self: Any, params: Any, emissions: Array, inputs: Array | None = None
) -> Array:
    """Return the log likelihood of the extended Kalman filter."""
    return filter_(self, params, emissions, inputs).marginal_loglik


def posterior_sample(
    self: Any, key: Array, params: Any, emissions: Array, inputs: Array | None = None
) -> Array:
    """Draw one trajectory from the posterior of the expanded model."""
    model, emissions = _read(params, emissions, inputs)
    linear, seen, driven = _linear(model, emissions, inputs)
    return lgssm_sample(linear, key, seen, driven)


NONLINEAR: dict[str, Callable] = {
    "filter": filter_,
    "smoother": smoother,
    "marginal_log_prob": marginal_log_prob,
    "posterior_sample": posterior_sample,
}
GENERALIZED = NONLINEAR


def _read(
    params: Any, emissions: Array, inputs: Array | None
) -> tuple[NonlinearSSM, Array]:
    emissions = as_float(emissions)
    emissions = emissions[:, None] if emissions.ndim == 1 else emissions
    if not hasattr(params, "emission_dist"):
        return from_dynamax(params, with_inputs=inputs is not None), emissions
    if not _is_gaussian(params):
        whole = jnp.any(jnp.isnan(emissions), axis=1, keepdims=True)
        emissions = jnp.where(whole, jnp.nan, emissions)

    def call(function: Callable, state: Array, entry: Any) -> Array:
        found = function(state) if inputs is None else function(state, entry)
        return jnp.atleast_1d(found)

    def noise(state: Array, entry: Any) -> Array:
        return jnp.atleast_2d(call(params.emission_cov_function, state, entry))

    return NonlinearSSM(
        initial_mean=jnp.asarray(params.initial_mean),
        initial_covariance=jnp.asarray(params.initial_covariance),
        dynamics=lambda z, u: call(params.dynamics_function, z, u),
        dynamics_covariance=jnp.asarray(params.dynamics_covariance),
        emission=lambda z, u: call(params.emission_mean_function, z, u),
        emission_covariance=noise,
    ), emissions


def _is_gaussian(params: Any) -> bool:
    default = type(params)._field_defaults.get("emission_dist")
    return getattr(params, "emission_dist", default) is default


def _linear(
    model: NonlinearSSM, emissions: Array, inputs: Array | None
) -> tuple[LGSSM, Array, None]:
    """Return the model expanded at the filter's points, and its emissions."""
    linear, values, observed = extended_model(pose(model, emissions, inputs, None))
    return linear, jnp.where(observed, values, jnp.nan), None


def _scored(
    params: Any,
    model: NonlinearSSM,
    filtered: tuple[Array, Array],
    emissions: Array,
    inputs: Array | None,
) -> tuple[Array | None, dict[str, Array]]:
    """Return the log likelihood under q, `None` if Gaussian, and predicted moments."""
    means, covariances = filtered
    steps, varies = len(means), jnp.ndim(params.dynamics_covariance) == 3
    ahead = jnp.minimum(jnp.arange(steps) + 1, steps - 1)
    Q = jnp.asarray(params.dynamics_covariance)

    def predict(mean: Array, P: Array, index: Array) -> tuple[Array, Array]:
        entry = None if inputs is None else inputs[index]
        F = jax.jacfwd(lambda z: model.dynamics(z, entry))(mean)
        spread = symmetrize(matmul(F, matmul(P, transpose(F))))
        return model.dynamics(mean, entry), spread + (Q[index] if varies else Q)

    after, spreads = jax.vmap(predict)(means, covariances, ahead)
    last = steps if inputs is None and not varies else steps - 1
    predicted = {
        "predicted_means": after[:last],
        "predicted_covariances": spreads[:last],
    }
    if _is_gaussian(params):
        return None, predicted

    def score(mean: Array, P: Array, y: Array, index: Array) -> Array:
        entry = None if inputs is None else inputs[index]
        H = jax.jacfwd(lambda z: model.emission(z, entry))(mean)  # type: ignore[misc]
        noise: Any = model.emission_covariance(mean, entry)  # type: ignore[misc, operator]
        S = matmul(H, matmul(P, transpose(H))) + noise
        missing = jnp.any(jnp.isnan(y))
        law = params.emission_dist(model.emission(mean, entry), S)  # type: ignore[misc]
        value = jnp.sum(law.log_prob(jnp.where(missing, 0, y)))
        return jnp.where(missing, 0, value)

    start: tuple = (params.initial_mean, params.initial_covariance)
    before, around = (
        jnp.concatenate([jnp.asarray(x)[None], y[:-1]])
        for x, y in zip(start, (after, spreads))
    )
    values = jax.vmap(score)(before, around, emissions, jnp.arange(steps))
    return jnp.sum(values), predicted
