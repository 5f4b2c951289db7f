r"""dynamax's model objects with our inference: see `interop.dynamax.accelerate`.

An object of a class C of dynamax becomes one of a subclass of C whose methods are
replaced where C has them from dynamax itself. What calls them (`fit_em`, `fit_sgd`)
is inherited.

The E-step of a step with missing entries needs E[y], E[y y'] and E[y z'] of the whole
step. With A from `kalman/completion`, m = E[z], P = Cov(z) and v = y - H m - c,

    E[y] = H m + c + A v,    Cov(y, z) = (I - A) H P,
    Cov(y) = (I - A) (H P H' + R) (I - A)'.
"""

import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.interop import dynamax
from elk_ssm.interop.dynamax_conversion import from_dynamax
from elk_ssm.interop.dynamax_nonlinear_objects import GENERALIZED, NONLINEAR
from elk_ssm.interop.dynamax_parameters import as_float, dynamax_types
from elk_ssm.kalman.completion import completion_of
from elk_ssm.kalman.lgssm import LGSSM, emission_offsets
from elk_ssm.kalman.likelihood import lgssm_log_likelihood
from elk_ssm.linalg.small import matmul, matvec, transpose
from elk_ssm.linalg.structure import Operator, as_operator
from elk_ssm.parallel.anywhere import anywhere


def accelerated(model: Any) -> Any:
    """Return a copy of a model of dynamax whose class is accelerated."""
    dynamax_types()
    cls: Any = getattr(type(model), "_accelerates", type(model))
    found = copy.copy(model)
    found.__class__ = _subclass(cls)
    return found


@functools.cache
def _subclass(cls: type) -> type:
    linear = importlib.import_module("dynamax.linear_gaussian_ssm")
    nonlinear = importlib.import_module("dynamax.nonlinear_gaussian_ssm")
    generalized = importlib.import_module("dynamax.generalized_gaussian_ssm")
    known: dict[Any, dict[str, Callable]] = {
        linear.LinearGaussianSSM: LINEAR,
        nonlinear.NonlinearGaussianSSM: NONLINEAR,
        generalized.GeneralizedGaussianSSM: GENERALIZED,
    }
    base = next((base for base in known if issubclass(cls, base)), None)
    if base is None:
        names = ", ".join(base.__name__ for base in known)
        raise TypeError(
            f"accelerate expects an object of dynamax, of one of the classes {names}, "
            f"LinearGaussianConjugateSSM or of a subclass; got {cls.__name__}."
        )
    own = {
        name: method
        for name, method in known[base].items()
        if getattr(cls, name, None) is getattr(base, name, None)
    }
    doc = f"`{cls.__name__}` of dynamax, with inference by elk_ssm."
    extra = {"__doc__": doc, "_accelerates": cls, "__reduce__": _reduce}
    return type(f"Accelerated{cls.__name__}", (cls,), own | extra)


def _reduce(self: Any) -> tuple:
    """Pickle as the object that it was made of."""
    plain = copy.copy(self.__dict__)
    return _restore, (self._accelerates, plain)


def _restore(cls: type, attributes: dict) -> Any:
    model: Any = object.__new__(cls)
    model.__dict__.update(attributes)
    return accelerated(model)


def marginal_log_prob(
    self: Any, params: Any, emissions: Array, inputs: Array | None = None
) -> Array:
    """Return the marginal log likelihood; NaN emissions are missing."""
    emissions = as_float(emissions)
    model = from_dynamax(params, len(emissions))
    return lgssm_log_likelihood(model, emissions, inputs)


def filter_(
    self: Any, params: Any, emissions: Array, inputs: Array | None = None
) -> Any:
    """Filter; NaN emissions are missing."""
    return dynamax.lgssm_filter(params, emissions, inputs)


def smoother(
    self: Any, params: Any, emissions: Array, inputs: Array | None = None
) -> Any:
    """Smooth; NaN emissions are missing."""
    return dynamax.lgssm_smoother(params, emissions, inputs)


def posterior_sample(
    self: Any, key: Array, params: Any, emissions: Array, inputs: Array | None = None
) -> Array:
    """Draw one trajectory from the posterior; NaN emissions are missing."""
    return dynamax.lgssm_posterior_sample(key, params, emissions, inputs)


def posterior_predictive(
    self: Any, params: Any, emissions: Array, inputs: Array | None = None
) -> tuple[Array, Array]:
    """Return mean and standard deviation of every emission, missing or not."""
    posterior = dynamax.lgssm_smoother(params, emissions, inputs)
    moments = posterior.smoothed_means, posterior.smoothed_covariances
    means, covariances = _emitted(params, moments, inputs)
    return means, jnp.sqrt(jnp.diagonal(covariances, axis1=-2, axis2=-1))


def forecast(
    self: Any,
    params: Any,
    emissions: Array,
    num_forecast_timesteps: int,
    inputs: Array | None = None,
    forecast_inputs: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Return means and covariances of future states and emissions.

    The future is a series of missing emissions, so entry t of what varies in time is
    that of step t counted from the start of the series, as in the filter.
    """
    emissions = as_float(emissions)
    steps, width = emissions.shape
    gap = jnp.full((num_forecast_timesteps, width), jnp.nan, emissions.dtype)
    parts = [(inputs, steps), (forecast_inputs, num_forecast_timesteps)]
    given = [jnp.shape(u)[1] for u, _ in parts if u is not None]
    whole = None
    if given:
        filled = [jnp.zeros((n, given[0])) if u is None else u for u, n in parts]
        whole = jnp.concatenate(filled)
    found = dynamax.lgssm_filter(params, jnp.concatenate([emissions, gap]), whole)
    moments = found.filtered_means, found.filtered_covariances
    every = (*moments, *_emitted(params, moments, whole))
    return tuple(x[steps:] for x in every)  # type: ignore[return-value]


def e_step(
    self: Any, params: Any, emissions: Array, inputs: Array | None = None
) -> tuple[tuple, Array]:
    """Return dynamax's expected statistics and the log likelihood."""
    emissions = as_float(emissions)
    steps, dim = len(emissions), self.state_dim
    u = jnp.ones((steps, 1), emissions.dtype)
    if inputs is not None:
        u = jnp.concatenate([jnp.asarray(inputs, u.dtype), u], axis=1)
    found = dynamax.lgssm_smoother(params, emissions, inputs)
    m, P = found.smoothed_means, found.smoothed_covariances
    y, across, spread = _complete(from_dynamax(params, steps), emissions, inputs, m, P)
    every = jnp.sum(P, axis=0)

    def squares(x: Array, u: Array, P: Array) -> Array:
        z = jnp.concatenate([x, u], axis=1)
        return matmul(transpose(z), z).at[:dim, :dim].add(P)

    first = m[0], P[0] + m[0][:, None] * m[0], 1
    lagged = jnp.sum(found.smoothed_cross_covariances, axis=0)
    moved = matmul(transpose(u[1:]), m[1:])
    dynamics = (
        squares(m[:-1], u[1:], every - P[-1]),
        jnp.concatenate([lagged, moved]),
        every - P[0] + matmul(transpose(m[1:]), m[1:]),
        steps - 1,
    )
    seen = matmul(transpose(m), y) + transpose(across)
    emission = (
        squares(m, u, every),
        jnp.concatenate([seen, matmul(transpose(u), y)]),
        matmul(transpose(y), y) + spread,
        steps,
    )
    dynamics = dynamics if self.has_dynamics_bias else _without_bias(dynamics)
    emission = emission if self.has_emissions_bias else _without_bias(emission)
    return (first, dynamics, emission), found.marginal_loglik


def m_step(
    self: Any, params: Any, props: Any, batch_stats: Any, m_step_state: Any
) -> tuple:
    """Maximise; of several series the mean of S is that of E[z z'] less that of m m'.

    dynamax's formula, (sum E[z z'] - (sum m)(sum m)') / N, is that of one series. What
    it is handed here makes it right for N of them.
    """
    if batch_stats is not None:
        (mean, square, count), *rest = jax.tree.map(
            lambda x: jnp.sum(x, axis=0, keepdims=True), batch_stats
        )
        outer = mean[:, :, None] * mean[:, None]
        square = square + outer * (1 - 1 / count[:, None, None])
        batch_stats = ((mean, square, count), *rest)
    parent = importlib.import_module("dynamax.linear_gaussian_ssm").LinearGaussianSSM
    return parent.m_step(self, params, props, batch_stats, m_step_state)


LINEAR: dict[str, Callable] = {
    "marginal_log_prob": marginal_log_prob,
    "filter": filter_,
    "smoother": smoother,
    "posterior_sample": posterior_sample,
    "posterior_predictive": posterior_predictive,
    "forecast": forecast,
    "e_step": e_step,
    "m_step": m_step,
}


def _without_bias(statistics: tuple) -> tuple:
    zz, zx, xx, count = statistics
    return zz[:-1, :-1], zx[:-1], xx, count


def _emission(model: LGSSM) -> tuple[Operator, Operator]:
    H = as_operator(model.emission_weights, model.state_dim, "emission_weights")
    width = H.to_dense().shape[-2]
    return H, as_operator(model.emission_covariance, width, "emission_covariance")


def _emitted(
    params: Any, moments: tuple[Array, Array], inputs: Array | None
) -> tuple[Array, Array]:
    """Return means and covariances of emissions of states with these moments."""
    means, covariances = moments
    model = from_dynamax(params, len(means))
    H, R = (x.to_dense() for x in _emission(model))
    shape = len(means), H.shape[-2]
    shift = emission_offsets(model, inputs, shape, means.dtype)
    spread = matmul(matmul(H, covariances), transpose(H)) + R
    return matvec(H, means) + shift, spread


def _complete(
    model: LGSSM, emissions: Array, inputs: Array | None, m: Array, P: Array
) -> tuple[Array, Array, Array]:
    """Return E[y] and the sums of Cov(y, z) and Cov(y) over all steps."""
    H, R = _emission(model)
    shift = emission_offsets(model, inputs, emissions.shape, emissions.dtype)
    width, eye = emissions.shape[1], jnp.eye(emissions.shape[1], dtype=m.dtype)

    def one(index: Array) -> tuple[Array, Array, Array]:
        seen, own = ~jnp.isnan(emissions[index]), H.at(index).to_dense()
        A = completion_of(R.at(index), seen)
        mean, left = matvec(own, m[index]) + shift[index], eye - A
        gap = jnp.where(seen, emissions[index] - mean, 0)
        value = jnp.where(seen, emissions[index], mean + matvec(A, gap))
        across = matmul(left, matmul(own, P[index]))
        inner = matmul(left, matmul(R.at(index).to_dense(), transpose(left)))
        return value, across, matmul(across, transpose(matmul(left, own))) + inner

    def completed() -> tuple[Array, Array, Array]:
        y, across, spread = jax.vmap(one)(jnp.arange(len(emissions)))
        return y, jnp.sum(across, axis=0), jnp.sum(spread, axis=0)

    zero = jnp.zeros((width, m.shape[1]), m.dtype), jnp.zeros((width, width), m.dtype)
    missing = anywhere(jnp.any(jnp.isnan(emissions)))
    return lax.cond(missing, completed, lambda: (emissions.astype(m.dtype), *zero))
