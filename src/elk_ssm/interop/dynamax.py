"""A drop-in for dynamax's linear-Gaussian inference, and conversions both ways.

Replace

    from dynamax.linear_gaussian_ssm.parallel_inference import lgssm_smoother

by

    from elk_ssm.interop.dynamax import lgssm_smoother

and nothing else: parameters and posteriors are dynamax's own types, every field that
dynamax fills is filled, NaN emissions are missing, and `None` means zero for biases,
input weights and inputs.

**Index convention.** dynamax from 1.0.3 on and `elk_ssm` agree: entry t of a
time-varying dynamics parameter and input t act on the transition into step t, and entry
0 of the dynamics is not used. Until 1.0.2, entry t mapped z_t to z_{t+1}; such arrays
give plausible, wrong means here, so an older dynamax is refused.

dynamax is imported when the first function is called. That import changes JAX's global
matmul precision; ours does not depend on it.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from elk_ssm.interop.dynamax_parameters import (
    as_float,
    dynamax_types,
    emission_covariance,
    materialise,
)
from elk_ssm.interop.dynamax_parameters import check_version as check_version
from elk_ssm.kalman import filtering, sampling, smoothing
from elk_ssm.kalman.initial import proper_covariance
from elk_ssm.kalman.lgssm import LGSSM, emission_dim
from elk_ssm.linalg.structure import Dense, as_operator, to_dense
from elk_ssm.parallel.backend import Backend


class DynamaxShapeError(ValueError, AssertionError):
    """A shape does not fit; dynamax raises `AssertionError` for the same mistakes.

    Example:
        >>> issubclass(DynamaxShapeError, ValueError)
        True
    """


def lgssm_filter(
    params: Any,
    emissions: Array,
    inputs: Array | None = None,
    *,
    backend: Backend = "auto",
) -> Any:
    """Filter with dynamax's types: see `elk_ssm.lgssm_filter`.

    Args:
        params: a `ParamsLGSSM`.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.

    Returns:
        A `PosteriorGSSMFiltered` with the likelihood, means and covariances.

    Raises:
        DynamaxShapeError: a shape does not fit.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> params = to_dynamax(elk.LGSSM(jnp.zeros(1), one, one, one, one, one))
        >>> lgssm_filter(params, jnp.array([[1.0]])).filtered_means.tolist()
        [[0.5]]
    """
    types = dynamax_types()
    model, emissions = _read(params, emissions)
    arguments = model, emissions, inputs
    posterior = _checked(filtering.lgssm_filter, *arguments, backend=backend)
    return types.PosteriorGSSMFiltered(
        marginal_loglik=posterior.log_likelihood,
        filtered_means=posterior.filtered_means,
        filtered_covariances=to_dense(posterior.filtered_covariances),
    )


def lgssm_smoother(
    params: Any,
    emissions: Array,
    inputs: Array | None = None,
    *,
    backend: Backend = "auto",
) -> Any:
    """Smooth with dynamax's types: see `elk_ssm.lgssm_smoother`.

    Fills every field that dynamax's sequential smoother fills, among them
    `smoothed_cross_covariances`, which holds E[z_t z_{t+1}' | y] as in dynamax and
    which dynamax's parallel smoother leaves out.

    Args:
        params: a `ParamsLGSSM`.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.

    Returns:
        A `PosteriorGSSMSmoothed`.

    Raises:
        DynamaxShapeError: a shape does not fit.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> params = to_dynamax(elk.LGSSM(jnp.zeros(1), one, one, one, one, one))
        >>> lgssm_smoother(params, jnp.array([[1.0]])).smoothed_means.tolist()
        [[0.5]]
    """
    types = dynamax_types()
    model, emissions = _read(params, emissions)
    arguments, run = (model, emissions, inputs), smoothing.lgssm_smoother
    posterior = _checked(run, *arguments, backend=backend, cross_covariances=True)
    means = posterior.smoothed_means
    products = means[:-1, :, None] * means[1:, None, :]
    return types.PosteriorGSSMSmoothed(
        marginal_loglik=posterior.log_likelihood,
        filtered_means=posterior.filtered_means,
        filtered_covariances=to_dense(posterior.filtered_covariances),
        smoothed_means=means,
        smoothed_covariances=to_dense(posterior.smoothed_covariances),
        smoothed_cross_covariances=to_dense(posterior.cross_covariances) + products,
    )


def lgssm_posterior_sample(
    key: Array,
    params: Any,
    emissions: Array,
    inputs: Array | None = None,
    jitter: float | Array = 0.0,
    *,
    backend: Backend = "auto",
) -> Array:
    """Draw one trajectory from the posterior: see `elk_ssm.lgssm_sample`.

    Args:
        key: a JAX random key.
        params: a `ParamsLGSSM`.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        jitter: taken for compatibility and not used; a singular covariance is sampled
            as it is.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.

    Returns:
        `(T, D)`.

    Raises:
        DynamaxShapeError: a shape does not fit.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> params = to_dynamax(elk.LGSSM(jnp.zeros(1), one, one, one, one, one))
        >>> lgssm_posterior_sample(jax.random.key(0), params, jnp.ones((3, 1))).shape
        (3, 1)
    """
    dynamax_types()
    del jitter
    model, emissions = _read(params, emissions)
    arguments = key, model, emissions, inputs
    return _checked(sampling.lgssm_sample, *arguments, backend=backend)


def from_dynamax(params: Any, num_timesteps: int | None = None) -> LGSSM:
    """Read a `ParamsLGSSM`, such as one fitted by dynamax's EM or SGD.

    A vector as emission covariance is a diagonal. Of two axes, it is dense if square
    of the emission's size, and else a diagonal for every step, as in dynamax.

    Args:
        params: a `ParamsLGSSM`; `None` means zero.
        num_timesteps: needed only if some parameter is a function of the step.

    Raises:
        TypeError: a parameter is a function and `num_timesteps` was not given.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> params = to_dynamax(elk.LGSSM(jnp.zeros(2), one, one, one, one, one))
        >>> from_dynamax(params).dynamics_weights.matrix.shape
        (2, 2)
    """
    dynamax_types()
    read = functools.partial(materialise, num_timesteps=num_timesteps)
    dynamics, emission = params.dynamics, params.emissions
    weights = read("emissions.weights", emission.weights)
    return LGSSM(
        initial_mean=as_float(params.initial.mean),
        initial_covariance=Dense(as_float(params.initial.cov)),
        dynamics_weights=Dense(read("dynamics.weights", dynamics.weights)),
        dynamics_covariance=Dense(read("dynamics.cov", dynamics.cov)),
        emission_weights=Dense(weights),
        emission_covariance=emission_covariance(emission.cov, weights.shape[-2]),
        dynamics_bias=read("dynamics.bias", dynamics.bias),
        dynamics_input_weights=read("dynamics.input_weights", dynamics.input_weights),
        emission_bias=read("emissions.bias", emission.bias),
        emission_input_weights=read("emissions.input_weights", emission.input_weights),
    )


def to_dynamax(model: Any) -> Any:
    """Write an `LGSSM`, or a surrogate, with dynamax's types.

    Args:
        model: an `LGSSM`, or an object whose `to_lgssm()` returns an `LGSSM` and its
            emissions, such as `elk_ssm.Surrogate`.

    Returns:
        A `ParamsLGSSM` with dense matrices and zeros for what is `None`; for an
        object with `to_lgssm()`, a pair of that and the emissions.

    Raises:
        TypeError: `model` is neither.
        ValueError: its initial covariance is `Diffuse`.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> params = to_dynamax(elk.LGSSM(jnp.zeros(2), one, one, one, one, one))
        >>> params.dynamics.bias.tolist()
        [0.0, 0.0]
    """
    if hasattr(model, "to_lgssm"):
        inner, emissions = model.to_lgssm()
        return to_dynamax(inner), emissions
    if not isinstance(model, LGSSM):
        raise TypeError(
            "to_dynamax expects an LGSSM or an object with to_lgssm(); "
            f"got {type(model).__name__}."
        )
    types, size = dynamax_types(), model.state_dim
    P = to_dense(proper_covariance(model, "dynamax"))
    dense = functools.partial(_dense, model)
    width = emission_dim(model)
    zeros = functools.partial(_or_zeros, jnp.asarray(model.initial_mean).dtype)
    B, D = model.dynamics_input_weights, model.emission_input_weights
    num_inputs = max(0 if W is None else jnp.shape(W)[-1] for W in (B, D))
    return types.ParamsLGSSM(
        initial=types.ParamsLGSSMInitial(mean=model.initial_mean, cov=P),
        dynamics=types.ParamsLGSSMDynamics(
            weights=dense("dynamics_weights", size),
            bias=zeros(model.dynamics_bias, size),
            input_weights=zeros(B, size, num_inputs),
            cov=dense("dynamics_covariance", size),
        ),
        emissions=types.ParamsLGSSMEmissions(
            weights=dense("emission_weights", size),
            bias=zeros(model.emission_bias, width),
            input_weights=zeros(D, width, num_inputs),
            cov=dense("emission_covariance", width),
        ),
    )


def _read(params: Any, emissions: Array) -> tuple[LGSSM, Array]:
    emissions = as_float(emissions)
    return from_dynamax(params, len(emissions)), emissions


def _checked(run: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return run(*arguments, **options)
    except ValueError as error:
        raise DynamaxShapeError(str(error)) from error


def _dense(model: LGSSM, name: str, size: int) -> Array:
    return to_dense(as_operator(getattr(model, name), size, name))


def _or_zeros(dtype: Any, array: Array | None, *shape: int) -> Array:
    return jnp.zeros(shape, dtype) if array is None else array
