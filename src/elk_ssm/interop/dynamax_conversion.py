"""dynamax's `ParamsLGSSM` as our `LGSSM`, and back."""

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
from elk_ssm.kalman.initial import proper_covariance
from elk_ssm.kalman.lgssm import LGSSM, emission_dim
from elk_ssm.linalg.structure import Dense, as_operator, to_dense


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
        >>> from elk_ssm.interop.dynamax import from_dynamax, to_dynamax
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
        >>> from elk_ssm.interop.dynamax import to_dynamax
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


def _dense(model: LGSSM, name: str, size: int) -> Array:
    return to_dense(as_operator(getattr(model, name), size, name))


def _or_zeros(dtype: Any, array: Array | None, *shape: int) -> Array:
    return jnp.zeros(shape, dtype) if array is None else array
