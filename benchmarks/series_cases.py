"""Series of statsmodels' wheel, with one model twice: ours, and statsmodels'.

A `Case` maps our parameters to statsmodels' vector of them, so that both likelihoods
are of the same numbers. `Pair` is how `DynamicFactor` is written as an `LGSSM`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import elk_ssm as elk

HARMONICS = 6
APPROXIMATE = 1e6  # The variance that statsmodels takes for an unknown first state.


class Case(NamedTuple):
    """One series and one model.

    Attributes:
        name: of both.
        y: `(T,)`, NaN where missing.
        ours: of `elk_ssm.models`.
        theirs: makes statsmodels' model of a series.
        vector: our parameters, by name, as statsmodels orders them.
        constant: what statsmodels' likelihood lacks to be the diffuse one.
    """

    name: str
    y: np.ndarray
    ours: Any
    theirs: Callable[[np.ndarray], Any]
    vector: Callable[[dict[str, Any]], np.ndarray]
    constant: float = 0.0


def load(name: str) -> Any:
    """Return a data set of statsmodels' wheel."""
    import statsmodels.api as sm

    return getattr(sm.datasets, name).load_pandas().data


def structural(**options: Any) -> Callable[[np.ndarray], Any]:
    """Return what makes an `UnobservedComponents`, exactly diffuse."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    options = {"use_exact_diffuse": True} | options
    return lambda y: UnobservedComponents(y, **options)


def wide(**options: Any) -> Callable[[np.ndarray], Any]:
    """Return what makes an `UnobservedComponents` of wide first states, all counted."""

    def make(y: np.ndarray) -> Any:
        model = structural(use_exact_diffuse=False, **options)(y)
        model.ssm.loglikelihood_burn = 0
        return model

    return make


def arima(order: tuple[int, int, int]) -> Callable[[np.ndarray], Any]:
    """Return what makes a `SARIMAX` that starts at rest."""
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    return lambda y: SARIMAX(y, order=order)


def named(*names: str) -> Callable[[dict[str, Any]], np.ndarray]:
    """Return what puts parameters into an order."""
    return lambda p: np.concatenate([np.ravel(np.asarray(p[n], float)) for n in names])


TREND = ("noise.variance", "trend.level_variance", "trend.slope_variance")
WEEKLY = f"trend + seasonal(52, harmonics={HARMONICS})"
WEEKLY_OPTIONS = {
    "level": "lltrend",
    "freq_seasonal": [{"period": 52, "harmonics": HARMONICS}],
}


def cases() -> list[Case]:
    """Return the series with their models."""
    parse = elk.models.parse
    sunspots = load("sunspots")["SUNACTIVITY"].to_numpy(float)
    inflation = load("macrodata")["infl"].to_numpy(float)
    seasonal = (*TREND, "seasonal.variance")
    return [
        Case(
            "nile, local level",
            load("nile")["volume"].to_numpy(float),
            parse("level"),
            structural(level="llevel"),
            named("noise.variance", "level.variance"),
        ),
        Case(
            "co2, trend and six harmonics",
            load("co2")["co2"].to_numpy(float),
            parse(WEEKLY),
            # Its exact diffuse likelihood of this model is another number.
            wide(**WEEKLY_OPTIONS),
            named(*seasonal),
            (2 + 2 * HARMONICS) / 2 * np.log(APPROXIMATE),
        ),
        Case(
            "sunspots, ARMA(2, 1)",
            sunspots - sunspots.mean(),
            parse("arma(2, 1)"),
            arima((2, 0, 1)),
            named("arma.ar", "arma.ma", "arma.variance"),
        ),
        Case(
            "inflation, level and AR(1)",
            inflation,
            parse("level + ar(1)").fix(**{"noise.variance": 0.0}),
            structural(level="rwalk", autoregressive=1),
            named("level.variance", "autoregressive.variance", "autoregressive.ar"),
        ),
    ]


class Factor(NamedTuple):
    """One factor of several series: statsmodels' model, and ours of its vector."""

    y: np.ndarray
    theirs: Any

    def lgssm(self, vector: Any) -> elk.LGSSM:
        """Return the model at statsmodels' parameters: loadings, variances, ar."""
        E = self.y.shape[1]
        ar = vector[-1]
        return elk.LGSSM(
            jnp.zeros(1),
            elk.Dense(jnp.reshape(1 / (1 - ar**2), (1, 1))),
            elk.Dense(jnp.reshape(ar, (1, 1))),
            elk.Dense(jnp.ones((1, 1))),
            jnp.reshape(vector[:E], (E, 1)),
            elk.Diagonal(vector[E : 2 * E]),
        )

    def constrained(self, x: Any) -> Any:
        """Return statsmodels' parameters of any real numbers."""
        E = self.y.shape[1]
        parts = x[:E], jnp.exp(x[E : 2 * E]), jnp.tanh(x[2 * E :])
        return jnp.concatenate(parts)

    def unconstrained(self, vector: np.ndarray) -> np.ndarray:
        """Return the inverse of `constrained`."""
        E = self.y.shape[1]
        parts = vector[:E], np.log(vector[E : 2 * E]), np.arctanh(vector[2 * E :])
        return np.concatenate(parts)


def factor() -> Factor:
    """Return growth of four series of the macroeconomic data, and their factor."""
    from statsmodels.tsa.statespace.dynamic_factor import DynamicFactor

    names = ["realgdp", "realcons", "realinv", "realdpi"]
    growth = np.diff(np.log(load("macrodata")[names].to_numpy(float)), axis=0)
    y = (growth - growth.mean(axis=0)) / growth.std(axis=0)
    return Factor(y, DynamicFactor(y, k_factors=1, factor_order=1))


def quarterly(count: int, steps: int) -> np.ndarray:
    """Draw series with a trend and a season, `(count, steps)`."""
    rng = np.random.default_rng(0)
    slope = np.cumsum(0.1 * rng.normal(size=(count, steps)), axis=1)
    level = np.cumsum(slope + 0.5 * rng.normal(size=(count, steps)), axis=1)
    season = np.tile(rng.normal(size=(count, 4)), (1, steps // 4 + 1))[:, :steps]
    return level + 3 * season + rng.normal(size=(count, steps))
