r"""To and from TFP's `LinearGaussianStateSpaceModel`, JAX substrate.

**Index convention.** TFP's `transition_matrix(t)` and `transition_noise(t)` map z_t to
z_{t+1}; entry t of our dynamics maps z_{t-1} to z_t. So TFP's t is our t + 1, and our
unused entry 0 has no counterpart. Observations agree: both use entry t for y_t. TFP
counts steps from `initial_step`, ours from 0.

TFP has no biases or inputs; they are the means (`loc`) of its noises. TFP's `mask` is
data, True where *missing*; ours belongs to the filter, True where *observed*.

Which package provides `tensorflow_probability` is up to the environment; it comes with
dynamax as tfp-nightly. It is imported when a function is called.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.initial import proper_covariance
from elk_ssm.kalman.lgssm import LGSSM, Problem, emission_dim, emission_offsets, pose
from elk_ssm.kalman.roundings import safe_sqrt
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.structure import Dense, Operator, to_dense


def to_tfp(
    model: Any, num_timesteps: int | None = None, inputs: Array | None = None
) -> Any:
    """Write an `LGSSM`, or a surrogate, as a TFP distribution over emissions.

    Args:
        model: an `LGSSM`, or an object whose `to_lgssm()` returns an `LGSSM` and its
            emissions, such as `elk_ssm.Surrogate`.
        num_timesteps: T; for an object with `to_lgssm()` that of its emissions.
        inputs: `(T, U)` or `None`; they become means of the noises.

    Returns:
        A `LinearGaussianStateSpaceModel`; for an object with `to_lgssm()`, a pair of
        that and the emissions.

    Raises:
        TypeError: `model` is neither, or `num_timesteps` is missing.
        ValueError: a shape does not fit, or the prior is `Diffuse`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop.tfp import to_tfp
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> to_tfp(model, num_timesteps=3).event_shape.as_list()
        [3, 1]
    """
    if hasattr(model, "to_lgssm"):
        inner, emissions = model.to_lgssm()
        return to_tfp(inner, emissions.shape[0]), emissions
    if not isinstance(model, LGSSM) or num_timesteps is None:
        raise TypeError(
            "to_tfp expects an LGSSM and num_timesteps, or an object with to_lgssm(); "
            f"got {type(model).__name__} and num_timesteps={num_timesteps}."
        )
    width = emission_dim(model)
    nothing = jnp.full((num_timesteps, width), jnp.nan, model.initial_mean.dtype)
    proper_covariance(model, "TFP")
    problem = pose(model, nothing, inputs, None)
    shift = emission_offsets(model, inputs, nothing.shape, problem.offsets.dtype)
    if inputs is None:
        problem = problem._replace(
            offsets=_static_if(model.dynamics_bias, problem.offsets)
        )
        shift = _static_if(model.emission_bias, shift)
    return _distribution(problem, shift)


def from_tfp(distribution: Any) -> LGSSM:
    """Read a TFP `LinearGaussianStateSpaceModel` without batch dimensions.

    What is a function of the step in TFP becomes an array with a time axis; the means
    of the noises become biases.

    Args:
        distribution: the TFP distribution.

    Returns:
        The same model, dense.

    Raises:
        ValueError: the distribution has batch dimensions or a mask; pass the mask,
            negated, to the filter.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop.tfp import from_tfp, to_tfp
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> from_tfp(to_tfp(model, num_timesteps=3)).dynamics_weights.matrix.shape
        (1, 1)
    """
    if distribution.mask is not None:
        raise ValueError(
            "the mask of a TFP model is data; read the model without it and give "
            "`mask=~tfp_mask` to the filter."
        )
    if len(distribution.batch_shape):
        raise ValueError(f"batch_shape must be (); got {distribution.batch_shape}.")
    # Our entry t is TFP's t - 1; entry 0 is not used and repeats TFP's first.
    steps = jnp.arange(distribution.num_timesteps) + distribution.initial_step
    into = jnp.maximum(steps - 1, distribution.initial_step)
    prior = distribution.initial_state_prior
    weights = _read(distribution.transition_matrix, _matrix, into)
    noise, bias = _read(distribution.transition_noise, _moments, into)
    emission_weights = _read(distribution.observation_matrix, _matrix, steps)
    emission_noise, emission_bias = _read(
        distribution.observation_noise, _moments, steps
    )
    return LGSSM(
        initial_mean=prior.mean(),
        initial_covariance=Dense(prior.covariance()),
        dynamics_weights=Dense(weights),
        dynamics_covariance=Dense(noise),
        emission_weights=Dense(emission_weights),
        emission_covariance=Dense(emission_noise),
        dynamics_bias=bias,
        emission_bias=emission_bias,
    )


def _tfp() -> Any:
    try:
        return importlib.import_module("tensorflow_probability.substrates.jax")
    except ImportError as error:
        raise ImportError(
            "elk_ssm.interop.tfp needs TFP's JAX substrate; it comes with "
            "dynamax >= 1.0.3 as tfp-nightly."
        ) from error


def _distribution(problem: Problem, shift: Array) -> Any:
    tfd, last = _tfp().distributions, problem.num_steps - 1

    def noise(mean: Array, covariance: Operator, ahead: int) -> Any:
        """Return a normal, or a function of TFP's step to one."""
        if mean.ndim == 1 and not covariance.varies:
            return _normal(tfd, mean, covariance)

        def at(step):
            ours = jnp.minimum(step + ahead, last)
            there = mean if mean.ndim == 1 else mean[ours]
            return _normal(tfd, there, covariance.at(ours))

        return at

    def weights(operator: Operator, ahead: int) -> Any:
        dense = to_dense(operator)
        if dense.ndim == 2:
            return dense
        # TFP asks what a function returns for its batch shape: no bare arrays.
        wrap = _tfp().tf2jax.linalg.LinearOperatorFullMatrix
        return lambda step: wrap(dense[jnp.minimum(step + ahead, last)])

    return tfd.LinearGaussianStateSpaceModel(
        num_timesteps=problem.num_steps,
        transition_matrix=weights(problem.weights, 1),
        transition_noise=noise(problem.offsets, problem.covariance, 1),
        observation_matrix=weights(problem.emission_weights, 0),
        observation_noise=noise(shift, problem.emission_covariance, 0),
        initial_state_prior=_normal(
            tfd, problem.initial_mean, problem.initial_covariance
        ),
    )


def _static_if(bias: Array | None, offsets: Array) -> Array:
    """Return one row of the offsets if all rows are the same by declaration."""
    return offsets[0] if bias is None or jnp.ndim(bias) == 1 else offsets


def _normal(tfd: Any, mean: Array, covariance: Operator) -> Any:
    if not covariance.mixes:
        return tfd.MultivariateNormalDiag(mean, safe_sqrt(covariance.variances()))
    return tfd.MultivariateNormalTriL(mean, square_root(covariance.to_dense()))


def _read(parameter: Any, read: Callable[[Any], Any], steps: Array) -> Any:
    """Read a TFP parameter; one that is a function of the step, at all `steps`."""
    if not callable(parameter):
        return read(parameter)
    return jax.vmap(lambda step: read(parameter(step)))(steps)


def _matrix(operator: Any) -> Array:
    dense = operator.to_dense() if hasattr(operator, "to_dense") else operator
    return jnp.asarray(dense)


def _moments(noise: Any) -> tuple[Array, Array]:
    return noise.covariance(), noise.mean()
