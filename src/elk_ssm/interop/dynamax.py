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

from typing import Any

from jax import Array

from elk_ssm.interop.dynamax_conversion import from_dynamax, to_dynamax
from elk_ssm.interop.dynamax_parameters import as_float, check_version, dynamax_types
from elk_ssm.kalman import filtering, sampling, smoothing
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.linalg.structure import to_dense
from elk_ssm.parallel.backend import Backend

__all__ = [
    "DynamaxShapeError",
    "accelerate",
    "check_version",
    "from_dynamax",
    "lgssm_filter",
    "lgssm_posterior_sample",
    "lgssm_smoother",
    "to_dynamax",
]


class DynamaxShapeError(ValueError, AssertionError):
    """A shape does not fit; dynamax raises `AssertionError` for the same mistakes.

    Example:
        >>> from elk_ssm.interop.dynamax import DynamaxShapeError
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
        >>> from elk_ssm.interop.dynamax import lgssm_filter, to_dynamax
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
        >>> from elk_ssm.interop.dynamax import lgssm_smoother, to_dynamax
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
        >>> from elk_ssm.interop.dynamax import lgssm_posterior_sample, to_dynamax
        >>> one = elk.ScaledIdentity(1.0)
        >>> params = to_dynamax(elk.LGSSM(jnp.zeros(1), one, one, one, one, one))
        >>> lgssm_posterior_sample(jax.random.key(0), params, jnp.ones((3, 1))).shape
        (3, 1)
    """
    dynamax_types()
    del jitter
    model, emissions = _read(params, emissions)
    arguments = model, key, emissions, inputs
    return _checked(sampling.lgssm_sample, *arguments, backend=backend)


def accelerate(model: Any) -> Any:
    """Return an object of dynamax whose inference runs on our core.

    The object is of a subclass of the class of `model`, with the same attributes;
    parameters, properties and posteriors are dynamax's. What the class itself has
    overridden stays. Emissions may have NaN where they are missing.

    `LinearGaussianSSM` and `LinearGaussianConjugateSSM` (and what inherits from them):
    `marginal_log_prob`, `filter`, `smoother`, `posterior_sample`,
    `posterior_predictive`, `forecast` and `e_step`, and with them `fit_em` and
    `fit_sgd`. In three places dynamax 1.0.3 gives numbers that are no moments of its
    model, and this object the moments: `posterior_predictive` and `forecast` leave out
    what inputs add to the emission, and `fit_em` of several series estimates an initial
    covariance that is not positive (LinearGaussianSSM only).

    `NonlinearGaussianSSM`: `filter`, `smoother`, `marginal_log_prob` and
    `posterior_sample`, which the class declares and does not have, are the extended
    Kalman filter and smoother, as dynamax's functions compute them.
    `GeneralizedGaussianSSM`: the same, as `conditional_moments_gaussian_filter` and
    `..._smoother` with `EKFIntegrals`. The iterated smoother, which finds the most
    probable trajectory, is `elk_ssm.interop.dynamax_nonlinear.smooth`.

    Args:
        model: An object of one of the four classes.

    Raises:
        TypeError: It is of another class.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamax.linear_gaussian_ssm import LinearGaussianSSM
        >>> from elk_ssm.interop.dynamax import accelerate
        >>> model = accelerate(LinearGaussianSSM(state_dim=1, emission_dim=1))
        >>> isinstance(model, LinearGaussianSSM)
        True
        >>> params, props = model.initialize(jax.random.PRNGKey(0))
        >>> y = jnp.array([[0.1], [jnp.nan], [0.3]])
        >>> model.smoother(params, y).smoothed_means.shape
        (3, 1)
    """
    from elk_ssm.interop.dynamax_objects import accelerated

    return accelerated(model)


def _read(params: Any, emissions: Array) -> tuple[LGSSM, Array]:
    emissions = as_float(emissions)
    return from_dynamax(params, len(emissions)), emissions


def _checked(run: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return run(*arguments, **options)
    except ValueError as error:
        raise DynamaxShapeError(str(error)) from error
