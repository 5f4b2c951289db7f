"""Two real recordings with the models that the benchmark and the tests use.

*volatility*: log returns of the S&P 500 on 5,030 days, 1999 to 2018 (package `arch`);
the log variance is an autoregression,

    h_0 ~ N(m, q / (1 - phi^2))    h_t = m + phi (h_{t-1} - m) + N(0, q)
    y_t ~ N(0, exp h_t)

*spikes*: 929 spikes of a grasshopper's receptor in 10 s (package `nitime`), counted in
1,000 bins of 10 ms; the log rate is a random walk,

    z_0 ~ N(0, 1)    z_t = z_{t-1} + N(0, q)    y_t ~ Poisson(exp z_t)

dynamax's extended smoother takes Gaussian emissions only, so it gets a transformed
observation:

    volatility   log y^2 ~ N(h - 1.27, pi^2 / 2), the quasi-likelihood of Harvey, Ruiz &
                 Shephard (1994), with Fuller's correction for returns near zero
    spikes       2 sqrt(y + 3/8) ~ N(2 sqrt(exp(z) + 3/8), 1), Anscombe's transform
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk

Params = dict[str, Any]


class Case(NamedTuple):
    """A recording and its model.

    Attributes:
        name: Of the recording.
        values: Observations, `(T, 1)`.
        build: `build(params) -> NonlinearSSM`.
        start: First parameters, unconstrained scalars.
        prior: Mean and deviation of each parameter's normal prior.
        natural: For each parameter, its usual name and transformation.
        transformed: `transformed(values)`, what dynamax's smoother observes.
        emission: Its emission function, `(1,) -> (1,)`.
        emission_variance: Its emission variance.
        autoregression: `(P, mean, phi, q)` of parameters, for the banded Newton.
        curvature: Slope and negative curvature of the log likelihood, `(T,)` each.
    """

    name: str
    values: Any
    build: Callable[[Params], elk.NonlinearSSM]
    start: Params
    prior: dict[str, tuple[float, float]]
    natural: dict[str, tuple[str, Callable]]
    transformed: Callable
    emission: Callable
    emission_variance: float
    autoregression: Callable[[Params], tuple]
    curvature: Callable

    def log_prior(self, params: Params) -> Any:
        """Log density of the prior, up to a constant."""
        terms = [((params[k] - m) / s) ** 2 for k, (m, s) in self.prior.items()]
        return -0.5 * sum(terms)


def volatility(length: int | None = None) -> Case:
    """Daily log returns of the S&P 500 in percent; the last `length` of them."""
    from arch.data import sp500

    prices = np.asarray(sp500.load()["Adj Close"])
    returns = 100 * np.diff(np.log(prices))
    y = returns[-length:] if length else returns
    offset = 0.02 * np.var(y)

    def log_density(h: Any, y: Any, _: Any) -> Any:
        return -0.5 * jnp.sum(jnp.log(2 * jnp.pi) + h + y**2 * jnp.exp(-h))

    def parts(params: Params) -> tuple:
        q, phi = jnp.exp(params["log_q"]), jax.nn.sigmoid(params["logit_phi"])
        return q / (1 - phi**2), params["mean"], phi, q

    def build(params: Params) -> elk.NonlinearSSM:
        first, mean, phi, q = parts(params)
        return elk.NonlinearSSM(
            initial_mean=jnp.reshape(mean, (1,)),
            initial_covariance=jnp.reshape(first, (1, 1)),
            dynamics=lambda z, _: mean + phi * (z - mean),
            dynamics_covariance=jnp.reshape(q, (1, 1)),
            log_density=log_density,
        )

    return Case(
        name="S&P 500",
        values=jnp.asarray(y)[:, None],
        build=build,
        start={"mean": 0.0, "logit_phi": 3.0, "log_q": -3.0},
        prior={"mean": (0.0, 5.0), "logit_phi": (3.0, 2.0), "log_q": (-3.0, 2.0)},
        natural={
            "mean": ("mean", lambda x: x),
            "logit_phi": ("phi", jax.nn.sigmoid),
            "log_q": ("sqrt q", lambda x: jnp.exp(x / 2)),
        },
        transformed=lambda y: jnp.log(y**2 + offset) - offset / (y**2 + offset),
        emission=lambda z: z - 1.2704,
        emission_variance=np.pi**2 / 2,
        autoregression=parts,
        curvature=lambda z: (
            0.5 * (y**2 * np.exp(-z) - 1),
            0.5 * y**2 * np.exp(-z),
        ),
    )


def spikes(length: int | None = None, milliseconds: float = 10.0) -> Case:
    """Spike counts of a grasshopper's receptor; the first `length` bins."""
    import nitime

    folder = Path(nitime.__file__).parent / "data"
    times = np.loadtxt(folder / "grasshopper_spike_times1.txt")  # microseconds
    edges = np.arange(0, times.max() + 1e3 * milliseconds, 1e3 * milliseconds)
    y = np.histogram(times, edges)[0].astype(float)[:length]

    def log_density(z: Any, y: Any, _: Any) -> Any:
        return jnp.sum(y * z - jnp.exp(z) - jax.scipy.special.gammaln(y + 1))

    def build(params: Params) -> elk.NonlinearSSM:
        return elk.NonlinearSSM(
            initial_mean=jnp.zeros(1),
            initial_covariance=jnp.eye(1),
            dynamics=lambda z, _: z,
            dynamics_covariance=jnp.reshape(jnp.exp(params["log_q"]), (1, 1)),
            log_density=log_density,
        )

    return Case(
        name="grasshopper",
        values=jnp.asarray(y)[:, None],
        build=build,
        start={"log_q": -6.0},
        prior={"log_q": (-3.0, 2.0)},
        natural={"log_q": ("sqrt q", lambda x: jnp.exp(x / 2))},
        transformed=lambda y: 2 * jnp.sqrt(y + 0.375),
        emission=lambda z: 2 * jnp.sqrt(jnp.exp(z) + 0.375),
        emission_variance=1.0,
        autoregression=lambda params: (1.0, 0.0, 1.0, jnp.exp(params["log_q"])),
        curvature=lambda z: (y - np.exp(z), np.exp(z)),
    )


CASES = {f.__name__: f for f in (volatility, spikes)}
