"""Models that people fit: components with names and parameters, added up.

Example:
    >>> import elk_ssm as elk
    >>> model = elk.models.local_linear_trend() + elk.models.seasonal(12)
    >>> model.state_names[:3]
    ('trend.level', 'trend.slope', 'seasonal')
    >>> list(model.parameters)[:2]
    ['trend.level_variance', 'trend.slope_variance']
"""

from elk_ssm.models.autoregressions import arma, autoregressive
from elk_ssm.models.component import Component, Parameter
from elk_ssm.models.counts import (
    bernoulli,
    negative_binomial_counts,
    poisson_counts,
    stochastic_volatility,
)
from elk_ssm.models.fit import ModelFit
from elk_ssm.models.fitting import fit_model
from elk_ssm.models.grammar import parse
from elk_ssm.models.model import Model
from elk_ssm.models.movements import bearings_only_tracking, lorenz, pendulum
from elk_ssm.models.nonlinear import NonlinearModel
from elk_ssm.models.prior import Prior
from elk_ssm.models.processes import matern
from elk_ssm.models.regressions import regression
from elk_ssm.models.seasons import cycle, seasonal
from elk_ssm.models.trends import (
    constant_acceleration,
    constant_velocity,
    local_level,
    local_linear_trend,
)

__all__ = [
    "Component",
    "Model",
    "ModelFit",
    "NonlinearModel",
    "Parameter",
    "Prior",
    "arma",
    "autoregressive",
    "bearings_only_tracking",
    "bernoulli",
    "constant_acceleration",
    "constant_velocity",
    "cycle",
    "fit_model",
    "local_level",
    "local_linear_trend",
    "lorenz",
    "matern",
    "negative_binomial_counts",
    "parse",
    "pendulum",
    "poisson_counts",
    "regression",
    "seasonal",
    "stochastic_volatility",
]
