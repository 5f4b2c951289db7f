"""Ready-made models of data that are not Gaussian: a level or an autoregression below.

latent="level"             h_t = h_{t-1} + N(0, q), its start unknown
latent="autoregressive"    h_t = mean + x_t, x_t = a x_{t-1} + N(0, q), at rest
latent=a linear model      what its components add up to
"""

from collections.abc import Callable

import jax.numpy as jnp

from elk_ssm.models.autoregressions import autoregressive
from elk_ssm.models.model import Model
from elk_ssm.models.nonlinear import NonlinearModel
from elk_ssm.models.trends import local_level

_LATENT: dict[str, Callable[[], Model]] = {
    "level": local_level,
    "autoregressive": autoregressive,
}


def poisson_counts(latent: str | Model = "level") -> NonlinearModel:
    """Counts whose log rate moves.

    Args:
        latent: `"level"`, `"autoregressive"` or a linear model: the log rate.

    Raises:
        ValueError: There is no latent model of the name.

    Example:
        >>> import elk_ssm as elk
        >>> list(elk.models.poisson_counts("autoregressive").parameters)
        ['autoregressive.variance', 'autoregressive.ar', 'emission.mean']
    """
    return _below(latent).with_emission("poisson")


def negative_binomial_counts(latent: str | Model = "level") -> NonlinearModel:
    """Counts whose log mean moves, more variable than a Poisson distribution.

    Args:
        latent: `"level"`, `"autoregressive"` or a linear model: the log mean.

    Raises:
        ValueError: There is no latent model of the name.

    Example:
        >>> import elk_ssm as elk
        >>> list(elk.models.negative_binomial_counts().parameters)
        ['level.variance', 'emission.dispersion']
    """
    return _below(latent).with_emission("negative_binomial")


def bernoulli(latent: str | Model = "level") -> NonlinearModel:
    """Zeros and ones whose log odds move.

    Args:
        latent: `"level"`, `"autoregressive"` or a linear model: the log odds.

    Raises:
        ValueError: There is no latent model of the name.

    Example:
        >>> import elk_ssm as elk
        >>> list(elk.models.bernoulli().parameters)
        ['level.variance']
    """
    return _below(latent).with_emission("bernoulli")


def stochastic_volatility(
    latent: str | Model = "autoregressive",
) -> NonlinearModel:
    """Returns of mean zero whose log variance moves.

    Args:
        latent: `"autoregressive"` (around `emission.mean`), `"level"` or a linear
            model: the log variance.

    Raises:
        ValueError: There is no latent model of the name.

    Example:
        >>> import elk_ssm as elk
        >>> model = elk.models.stochastic_volatility()
        >>> list(model.parameters)
        ['autoregressive.variance', 'autoregressive.ar', 'emission.mean']
    """
    model = _below(latent).with_emission("volatility")
    if latent != "autoregressive":
        return model
    slow = {
        "autoregressive.ar": jnp.array([0.95]),
        "autoregressive.variance": jnp.array(0.05),
    }
    return model.replace(**slow)


def _below(latent: str | Model) -> Model:
    if isinstance(latent, Model):
        return latent
    if latent not in _LATENT:
        raise ValueError(
            f"latent must be one of {', '.join(_LATENT)}, or a linear model; got "
            f"{latent!r}."
        )
    return _LATENT[latent]()
