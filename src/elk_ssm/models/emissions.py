r"""What is seen of a predictor h, other than with Gaussian noise: no states.

    poisson              y ~ Poisson(exp h)
    negative_binomial    mean m = exp h, variance m + dispersion m^2
    bernoulli            P(y = 1) = 1 / (1 + exp(-h))
    student_t            y = h + scale t_degrees
    volatility           y ~ N(0, exp h)

An emission without a level among its components has a `mean` that is added to h. The
scale of a series is judged on that of the predictor: by log(y + 1/2) of counts, 2 y - 1
of zeros and ones, log y^2 of returns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats
from jax.scipy.special import gammaln

from elk_ssm._types import Array
from elk_ssm.models.bijections import between, positive, real
from elk_ssm.models.component import Kind, Parameter
from elk_ssm.models.gammas import log_rising

Values = Mapping[str, Array]
# The mean of minus the log of a chi-squared variable of one degree.
_LOG_CHI2 = 1.2704


@dataclass(frozen=True)
class Emission(Kind):
    """Data that depend on a predictor `(E,)`, of which each entry has its own.

    Attributes:
        count: E.
        has_mean: Whether a parameter is added to the predictor.
    """

    count: int
    has_mean: bool = False
    # How wide a prior of the predictor is at least, in units of the predictor.
    unit: ClassVar[float] = 1.0

    @property
    def states(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def specs(self) -> dict[str, Parameter]:
        """The mean, and what the distribution has."""
        default = 0.0 if self.count == 1 else (0.0,) * self.count
        mean = {"mean": Parameter(default, real)} if self.has_mean else {}
        return mean | self.own

    @property
    def own(self) -> dict[str, Parameter]:
        """Parameters of the distribution."""
        return {}

    def predictor(self, values: Values, sums: Array) -> Array:
        """Return h `(E,)` of what the components add up to."""
        return sums + values["mean"] if self.has_mean else sums

    def log_density(self, values: Values, h: Array, y: Array) -> Array:
        """Return log p(y | h), `()`."""
        return jnp.sum(self.each(values, h, y))

    def each(self, values: Values, h: Array, y: Array) -> Array:
        """Return the log densities of single entries."""
        raise NotImplementedError

    def draw(self, values: Values, key: Array, h: Array) -> Array:
        """Return a draw given h."""
        raise NotImplementedError

    def on_scale(self, emissions: Array) -> Array:
        """Return a series on the scale of the predictor, very roughly."""
        return emissions

    def begin(self, values: Values, emissions: Array) -> dict[str, Array]:
        """Return values to start a fit of a series `(T, E)` at."""
        found = dict(values)
        if self.has_mean:
            level = jnp.nanmean(self.on_scale(emissions), axis=0)
            level = jnp.where(jnp.isfinite(level), level, 0)
            found["mean"] = level.reshape(values["mean"].shape)
        return found

    def check(self, values: np.ndarray) -> None:
        """Raise where observed values cannot be.

        Raises:
            ValueError: Some are outside of the support.
        """


class _Counts(Emission):
    """Numbers of events, by the log of their rate."""

    def on_scale(self, emissions: Array) -> Array:
        """Return the log of counts of which none is zero."""
        return jnp.log(jnp.maximum(emissions, 0) + 0.5)

    def check(self, values: np.ndarray) -> None:
        """Refuse what is no count."""
        wrong = values[(values < 0) | (values != np.round(values))]
        if wrong.size:
            raise ValueError(f"counts must be integers from 0; got {wrong[0]:g}.")


@dataclass(frozen=True)
class Poisson(_Counts):
    """Counts as variable as their mean."""

    def each(self, values: Values, h: Array, y: Array) -> Array:
        """Return the log probabilities."""
        return y * h - jnp.exp(h) - gammaln(y + 1)

    def draw(self, values: Values, key: Array, h: Array) -> Array:
        """Return counts as floats."""
        return jax.random.poisson(key, jnp.exp(h)).astype(h.dtype)


@dataclass(frozen=True)
class NegativeBinomial(_Counts):
    """Counts more variable than their mean."""

    @property
    def own(self) -> dict[str, Parameter]:
        """Variance beyond that of a Poisson distribution, over the squared mean."""
        return {"dispersion": Parameter(0.1, positive)}

    def each(self, values: Values, h: Array, y: Array) -> Array:
        """Return the log probabilities."""
        log_spread = jnp.log(values["dispersion"])
        size = jnp.exp(-log_spread)
        many = log_rising(size, y) - gammaln(y + 1)
        return many + y * h - (y + size) * jax.nn.softplus(h + log_spread)

    def draw(self, values: Values, key: Array, h: Array) -> Array:
        """Return Poisson counts with rates that vary by a gamma distribution."""
        first, second = jax.random.split(key)
        size = 1 / values["dispersion"]
        rate = jnp.exp(h) * jax.random.gamma(first, size, h.shape, h.dtype) / size
        return jax.random.poisson(second, rate).astype(h.dtype)


@dataclass(frozen=True)
class Bernoulli(Emission):
    """Zeros and ones, by their log odds."""

    def each(self, values: Values, h: Array, y: Array) -> Array:
        """Return the log probabilities."""
        return y * h - jax.nn.softplus(h)

    def draw(self, values: Values, key: Array, h: Array) -> Array:
        """Return zeros and ones as floats."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(h)).astype(h.dtype)

    def on_scale(self, emissions: Array) -> Array:
        """Return minus one and one."""
        return 2 * emissions - 1

    def check(self, values: np.ndarray) -> None:
        """Refuse what is neither zero nor one."""
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            raise ValueError(f"a Bernoulli series must be 0 or 1; got {wrong[0]:g}.")


@dataclass(frozen=True)
class StudentT(Emission):
    """Noise with heavy tails."""

    unit = 0.0

    @property
    def own(self) -> dict[str, Parameter]:
        """A scale, and degrees of freedom."""
        degrees = Parameter(5.0, between(1.0, 100.0), width=2.0)
        return {"scale": Parameter(1.0, positive), "degrees": degrees}

    def each(self, values: Values, h: Array, y: Array) -> Array:
        """Return the log densities."""
        return stats.t.logpdf(y, values["degrees"], loc=h, scale=values["scale"])

    def draw(self, values: Values, key: Array, h: Array) -> Array:
        """Return h with noise."""
        noise = jax.random.t(key, values["degrees"], h.shape, h.dtype)
        return h + values["scale"] * noise

    def begin(self, values: Values, emissions: Array) -> dict[str, Array]:
        """Start at a scale that suits the changes of the series."""
        found = super().begin(values, emissions)
        changes = jnp.abs(jnp.diff(emissions, axis=0))
        near = 0.5 * jnp.nanmean(changes)
        fine = jnp.isfinite(near) & (near > 0)
        found["scale"] = jnp.where(fine, near, values["scale"])
        return found


@dataclass(frozen=True)
class Volatility(Emission):
    """Returns of mean zero, by the log of their variance."""

    def each(self, values: Values, h: Array, y: Array) -> Array:
        """Return the log densities."""
        return -0.5 * (np.log(2 * np.pi) + h + y**2 * jnp.exp(-h))

    def draw(self, values: Values, key: Array, h: Array) -> Array:
        """Return returns."""
        return jnp.exp(h / 2) * jax.random.normal(key, h.shape, h.dtype)

    def on_scale(self, emissions: Array) -> Array:
        """Return the log of squares, without the mean of that of a chi-squared."""
        squares = emissions**2
        least = 1e-3 * jnp.nanmean(squares) + jnp.finfo(emissions.dtype).tiny
        return jnp.log(squares + least) + _LOG_CHI2


@dataclass(frozen=True)
class Custom(Emission):
    """What a user says.

    Attributes:
        function: `log_density(h, y, parameters) -> ()`.
        sampler: `draw(key, h, parameters) -> y`, or `None`.
        named: The parameters, by name.
        scaled: The series on the scale of the predictor, or `None` if it is.
    """

    function: Callable[[Array, Array, Values], Array] = None  # type: ignore[assignment]
    sampler: Callable[[Array, Array, Values], Array] | None = None
    named: tuple[tuple[str, Parameter], ...] = ()
    scaled: Callable[[Array], Array] | None = None
    unit = 0.0

    @property
    def own(self) -> dict[str, Parameter]:
        """Those that the function takes."""
        return dict(self.named)

    def log_density(self, values: Values, h: Array, y: Array) -> Array:
        """Return the user's number."""
        return self.function(h, y, {k: values[k] for k, _ in self.named})

    def draw(self, values: Values, key: Array, h: Array) -> Array:
        """Return the user's draw."""
        if self.sampler is None:
            raise ValueError("an emission of one's own needs draw= to be sampled.")
        return self.sampler(key, h, {k: values[k] for k, _ in self.named})

    def on_scale(self, emissions: Array) -> Array:
        """Return what the user says."""
        return emissions if self.scaled is None else self.scaled(emissions)


KINDS: dict[str, type[Emission]] = {
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "bernoulli": Bernoulli,
    "student_t": StudentT,
    "volatility": Volatility,
}


def emission_of(given: Any, count: int, has_mean: bool, **own: Any) -> Emission:
    """Return the emission of a name, or that of a log density function.

    Raises:
        ValueError: There is none of the name, or it takes no options.
    """
    if callable(given):
        named = tuple((own.get("parameters") or {}).items())
        return Custom(
            count, has_mean, given, own.get("draw"), named, own.get("on_scale")
        )
    if given not in KINDS:
        raise ValueError(
            f"emission must be one of {', '.join(KINDS)}, or a log density function; "
            f"got {given!r}."
        )
    said = [name for name, value in own.items() if value]
    if said:
        raise ValueError(
            f"{', '.join(said)} are for log density functions; got the emission "
            f"{given!r}."
        )
    return KINDS[given](count, has_mean)
