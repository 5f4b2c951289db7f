"""dynamax's nonlinear models, smoothed by the iterated, damped, parallel smoother.

Replace

    extended_kalman_smoother(params, emissions, inputs=inputs)

by

    elk_ssm.interop.dynamax_nonlinear.smooth(params, emissions, inputs)

The parameters are dynamax's `ParamsNLGSSM` and so is the posterior's type. As in
dynamax, f and h take the input as a second argument only if inputs are given, and input
t drives the transition into step t and emission t (dynamax 1.0.3 and later). NaN
emissions are missing, which dynamax's extended smoother does not know.

dynamax is imported when the first function is called.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.interop.dynamax import from_dynamax as linear_from_dynamax
from elk_ssm.interop.dynamax_parameters import dynamax_types
from elk_ssm.kalman.initial import proper_covariance
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.linalg.small import matvec
from elk_ssm.linalg.structure import (
    Matrix,
    Operator,
    as_operator,
)
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.smoothing import Smoothed
from elk_ssm.smoothing import smooth as smooth_model


def smooth(
    params: Any, emissions: Array, inputs: Array | None = None, **options: Any
) -> Any:
    """Smooth with dynamax's types.

    Args:
        params: A `ParamsNLGSSM` or a `ParamsLGSSM`.
        emissions: `(T, E)`, or `(T,)` for one emission; NaN where missing.
        inputs: `(T, U)` or `None`.
        **options: For `elk_ssm.smooth`.

    Returns:
        A `PosteriorGSSMSmoothed`. Its means are the MAP trajectory, its filtered
        moments those of the model expanded there. For the status see
        `smooth_with_status`.

    Raises:
        ValueError: A shape does not fit.
        TypeError: `params` is of another type.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamax.nonlinear_gaussian_ssm import ParamsNLGSSM
        >>> from elk_ssm.interop.dynamax_nonlinear import smooth
        >>> one = jnp.eye(1)
        >>> params = ParamsNLGSSM(jnp.zeros(1), one, jnp.sin, one, lambda z: z, one)
        >>> smooth(params, jnp.ones((4, 1))).smoothed_means.shape
        (4, 1)
    """
    return smooth_with_status(params, emissions, inputs, **options)[0]


def smooth_with_status(
    params: Any, emissions: Array, inputs: Array | None = None, **options: Any
) -> tuple[Any, Smoothed]:
    """Do `smooth` and return our `Smoothed` beside dynamax's posterior.

    Args:
        params: A `ParamsNLGSSM`.
        emissions: `(T, E)` or `(T,)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        **options: Of `elk_ssm.smooth`.

    Returns:
        A `PosteriorGSSMSmoothed`, and the `Smoothed` with the status.

    Raises:
        ValueError: A shape or an option does not fit.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamax.nonlinear_gaussian_ssm import ParamsNLGSSM
        >>> from elk_ssm.interop.dynamax_nonlinear import smooth_with_status
        >>> params = ParamsNLGSSM(
        ...     jnp.zeros(1), jnp.eye(1), jnp.sin, jnp.eye(1), lambda z: z, jnp.eye(1)
        ... )
        >>> posterior, found = smooth_with_status(params, jnp.ones((3, 1)))
        >>> posterior.smoothed_means.shape, int(found.status)
        ((3, 1), 0)
    """
    types = dynamax_types()
    emissions = jnp.asarray(emissions)
    if emissions.ndim == 1:
        emissions = emissions[:, None]
    model = from_dynamax(params, emissions.shape[0], with_inputs=inputs is not None)
    result = smooth_model(model, emissions, inputs, **options)
    posterior = types.PosteriorGSSMSmoothed(
        marginal_loglik=result.log_likelihood,
        filtered_means=result.filtered_means,
        filtered_covariances=result.filtered_covariances,
        smoothed_means=result.means,
        smoothed_covariances=result.covariances,
    )
    return posterior, result


def from_dynamax(
    params: Any, num_timesteps: int | None = None, *, with_inputs: bool = False
) -> NonlinearSSM:
    """Read a `ParamsNLGSSM`, or a `ParamsLGSSM` as a nonlinear model.

    Args:
        params: The parameters.
        num_timesteps: Only needed if a parameter of a linear model is a function of the
            step, or varies in time.
        with_inputs: Whether f and h take the input as second argument; a linear model
            takes it in any case.

    Raises:
        TypeError: `params` is of another type.
        ValueError: A linear model has time-varying weights, which a function of state
            and input cannot hold.
        ImportError: dynamax is missing or older than 1.0.3.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamax.nonlinear_gaussian_ssm import ParamsNLGSSM
        >>> from elk_ssm.interop.dynamax_nonlinear import from_dynamax
        >>> one = jnp.eye(2)
        >>> params = ParamsNLGSSM(jnp.zeros(2), one, jnp.sin, one, lambda z: z, one)
        >>> from_dynamax(params).state_dim
        2
    """
    dynamax_types()
    if hasattr(params, "dynamics_function"):
        return NonlinearSSM(
            initial_mean=jnp.asarray(params.initial_mean),
            initial_covariance=jnp.asarray(params.initial_covariance),
            dynamics=_with_input(params.dynamics_function, with_inputs),
            dynamics_covariance=jnp.asarray(params.dynamics_covariance),
            emission=_with_input(params.emission_function, with_inputs),
            emission_covariance=jnp.asarray(params.emission_covariance),
        )
    if hasattr(params, "emissions"):
        return from_lgssm(linear_from_dynamax(params, num_timesteps))
    raise TypeError(
        f"expected ParamsNLGSSM or ParamsLGSSM; got {type(params).__name__}."
    )


def from_lgssm(model: LGSSM) -> NonlinearSSM:
    """Write a linear model with static weights as a nonlinear one.

    Args:
        model: The linear model; its covariances may vary in time.

    Raises:
        ValueError: Its weights vary in time, or its initial covariance is `Diffuse`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop.dynamax_nonlinear import from_lgssm
        >>> one = elk.ScaledIdentity(1.0)
        >>> from_lgssm(elk.LGSSM(jnp.zeros(2), one, one, one, one, one)).state_dim
        2
    """
    size = model.state_dim
    F = _static("dynamics_weights", model.dynamics_weights, size)
    H = _static("emission_weights", model.emission_weights, size)
    drive = model.dynamics_bias, model.dynamics_input_weights
    shift = model.emission_bias, model.emission_input_weights
    return NonlinearSSM(
        initial_mean=model.initial_mean,
        initial_covariance=proper_covariance(model, "NonlinearSSM"),
        dynamics=jax.tree_util.Partial(_affine, F, *drive),
        dynamics_covariance=model.dynamics_covariance,
        emission=jax.tree_util.Partial(_affine, H, *shift),
        emission_covariance=model.emission_covariance,
    )


def _affine(weights: Operator, bias, input_weights, state: Array, entry: Any) -> Array:
    moved = weights.mv(state)
    if bias is not None:
        moved = moved + bias
    if entry is None or input_weights is None or input_weights.shape[-1] == 0:
        return moved
    return moved + matvec(input_weights, entry)


def _static(name: str, matrix: Matrix, size: int) -> Operator:
    operator = as_operator(matrix, size, name)
    if operator.varies:
        raise ValueError(
            f"{name} must be static; got shape {operator.array.shape}. A linear model "
            "with time-varying weights is solved exactly by elk_ssm.lgssm_smoother."
        )
    return operator


def _with_input(function: Callable, with_inputs: bool) -> Callable:
    return function if with_inputs else lambda state, _: function(state)
