r"""The posterior of a model's parameters, sampled by NUTS.

    log p(x | y) = log p(y; v(x)) + log prior + constant

in unconstrained coordinates x. A prior in these coordinates, as the default one is, is
a density of x and has no Jacobian. One of the constrained v is carried over to x by
log |dv/dx|, where dv/dx is that of the bijections (see `models/bijections`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from elk_ssm._options import check_count
from elk_ssm._types import Array
from elk_ssm.fitted.series import Given, Observed, given_by
from elk_ssm.interop.arviz import inference_data
from elk_ssm.interop.nuts import Draws, nuts_chains
from elk_ssm.kalman.whitening import whiten
from elk_ssm.linalg.small import matmul, transpose
from elk_ssm.models.evidence import evidence
from elk_ssm.models.fit import ModelFit
from elk_ssm.models.fitting import fit_model
from elk_ssm.models.model import Model
from elk_ssm.models.prior import Prior

Constrained = Callable[[Mapping[str, Array]], Array]
# How far from the fit chains start, in widths of the prior; and how far from the centre
# of the prior at most, as the fit of a variance may lie at minus infinity.
_APART, _FARTHEST = 0.03, 2.0


class ParameterDraws(NamedTuple):
    """Draws from the posterior of a model's free parameters.

    Attributes:
        parameters: By name, constrained, `(chains, samples)` and the parameter's shape.
        log_density: Of the unconstrained ones, up to a constant, `(chains, samples)`.
        acceptance_rate: Of every transition, `(chains, samples)`.
        is_divergent: Whether its integration diverged, `(chains, samples)`.
        num_steps: Leapfrog steps of it, `(chains, samples)`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.ParameterDraws._fields[:2]
        ('parameters', 'log_density')
    """

    parameters: dict[str, Array]
    log_density: Array
    acceptance_rate: Array
    is_divergent: Array
    num_steps: Array

    def inference_data(self, **options: Any) -> Any:
        """Return the draws as arviz's `InferenceData`.

        Args:
            **options: `coords`, `dims` and others of `arviz.from_dict`.

        Raises:
            ImportError: arviz is not installed.
        """
        statistics = {
            "lp": self.log_density,
            "acceptance_rate": self.acceptance_rate,
            "diverging": self.is_divergent,
            "n_steps": self.num_steps,
        }
        return inference_data(self.parameters, statistics, **options)


class _How(NamedTuple):
    """The choices of a run, which are static."""

    num_samples: int
    num_chains: int
    num_warmup: int
    target_acceptance: float
    log_prior: Callable | None
    constrained_prior: Constrained | None


def sample_posterior(
    model_or_fit: Any,
    y: Any = None,
    key: Array | None = None,
    inputs: Any = None,
    *,
    times: Any = None,
    num_samples: int = 500,
    num_chains: int = 4,
    num_warmup: int = 500,
    target_acceptance: float = 0.8,
    prior: Prior | Callable[[Mapping[str, Array]], Array] | None = None,
    constrained_prior: Constrained | None = None,
) -> ParameterDraws:
    """Sample the posterior of a model's free parameters by NUTS, with blackjax.

    The states are integrated out: what is sampled is the marginal likelihood times a
    prior. Chains start close to the fit, near the mode; step sizes and a diagonal mass
    matrix are adapted in the warm-up.

    Args:
        model_or_fit: What `elk_ssm.fit` returned, whose data are taken; or a model of
            `elk_ssm.models`, which is fitted to `y` first.
        y: `(T,)` or `(T, E)`, NaN where missing; `None` with a fit.
        key: A JAX PRNG key.
        inputs: `(T, U)`, for regressions of a model.
        times: `(T,)`, for a model.
        num_samples: Draws of each chain.
        num_chains: Chains, side by side.
        num_warmup: Steps of adaptation of each, which are thrown away.
        target_acceptance: What step sizes are adapted to; closer to one if transitions
            diverge.
        prior: A log density of the unconstrained parameters by name, or a `Prior`; the
            default is `model.default_prior(y)`, without `constrained_prior`.
        constrained_prior: A log density of the constrained parameters by name, to which
            the log Jacobian of the bijections is added; in the stead of `prior`. Of
            coefficients of an autoregression it may not be improper.

    Raises:
        ImportError: blackjax is not installed.
        TypeError: That is no fit and no model, or there is no key.
        ValueError: A count is not positive, `y` is missing or not wanted, both priors
            are given, or nothing is free.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.array([1.0, 1.4, 0.7, 2.2, 2.6, 1.9, 3.4, 3.1])
        >>> model = elk.models.local_level().fix(**{"level.variance": 0.1})
        >>> draws = elk.sample_posterior(
        ...     model, y, jax.random.key(0), num_samples=20, num_chains=2, num_warmup=20
        ... )
        >>> draws.parameters["noise.variance"].shape
        (2, 20)
    """
    counts = {"num_samples": num_samples, "num_chains": num_chains}
    for name, count in {**counts, "num_warmup": num_warmup}.items():
        check_count(name, count, 1)
    if key is None:
        raise TypeError("sample_posterior needs a key, such as jax.random.key(0).")
    if prior is not None and constrained_prior is not None:
        raise ValueError("pass prior or constrained_prior, not both.")
    fitted = _fitted(model_or_fit, y, inputs, times)
    given = given_by(fitted, "sample_posterior")
    if not given.model.free:
        raise ValueError("nothing is left to sample: every parameter is fixed.")
    data_prior = prior if isinstance(prior, Prior) else None
    by_user = None if isinstance(prior, Prior) else prior
    if prior is None and constrained_prior is None:
        data_prior = given.model.default_prior(given.emissions)
    how = _How(
        **counts,
        num_warmup=num_warmup,
        target_acceptance=target_acceptance,
        log_prior=by_user,
        constrained_prior=constrained_prior,
    )
    parameters, draws = _sample(given, data_prior, key, how)
    return ParameterDraws(parameters, *draws[1:])


def _fitted(model_or_fit: Any, y: Any, inputs: Any, times: Any) -> Any:
    """Return a fit, or what is like one."""
    if isinstance(model_or_fit, ModelFit | Observed):
        if y is not None or inputs is not None or times is not None:
            raise ValueError("a fit has its data; pass y, inputs or times to a model.")
        return model_or_fit
    if not isinstance(model_or_fit, Model):
        raise TypeError(
            "sample_posterior takes what elk.fit returned, or a model of elk.models; "
            f"got {type(model_or_fit).__name__}."
        )
    if y is None:
        raise ValueError("sample_posterior needs y, the series, for a model.")
    return fit_model(
        model_or_fit, y, inputs, times=times, prior=True, standard_errors=False
    )


@partial(jax.jit, static_argnames="how")
def _sample(
    given: Given, prior: Prior | None, key: Array, how: _How
) -> tuple[dict[str, Array], Draws]:
    model = given.model
    fit, unravel = ravel_pytree(model.unconstrained)

    def at(x: Array) -> dict[str, Array]:
        found = model.with_unconstrained(unravel(x)).parameters
        return {name: found[name] for name in model.free}

    def log_density(x: Array) -> Array:
        moved = model.with_unconstrained(unravel(x))
        likelihood = evidence(moved, given.emissions, given.inputs, given.gaps)
        if how.constrained_prior is not None:
            weight = how.constrained_prior(at(x)) + _log_jacobian(at, x)
        else:
            weight = (how.log_prior if prior is None else prior)(unravel(x))  # type: ignore[misc]
        return likelihood + weight

    first, second = jax.random.split(key)
    starts = _starts(model, fit, prior, first, how.num_chains)
    counts = how.num_samples, how.num_warmup, how.target_acceptance
    draws = nuts_chains(log_density, starts, second, *counts)
    return jax.vmap(jax.vmap(at))(draws.positions), draws


def _starts(
    model: Model, fit: Array, prior: Prior | None, key: Array, count: int
) -> Array:
    """Return where chains begin, `(count, n)`: near the fit."""
    shapes = model.unconstrained
    widths = prior.widths if prior is not None else model.default_widths
    spread = ravel_pytree(
        {k: jnp.broadcast_to(widths[k], v.shape) for k, v in shapes.items()}
    )[0].astype(fit.dtype)
    if prior is not None:
        centre = ravel_pytree({k: prior.centres[k] for k in shapes})[0]
        reach = _FARTHEST * spread
        fit = jnp.clip(fit, centre - reach, centre + reach)
    noise = jax.random.normal(key, (count, *fit.shape), fit.dtype)
    return fit + _APART * spread * noise


def _log_jacobian(at: Callable[[Array], dict[str, Array]], x: Array) -> Array:
    """Return log |dv / dx|, as half of log |J'J|."""
    J = jax.jacfwd(lambda x: ravel_pytree(at(x))[0])(x)
    return 0.5 * jnp.sum(jnp.log(whiten(matmul(transpose(J), J)).variances))
