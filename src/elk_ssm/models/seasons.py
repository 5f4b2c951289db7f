r"""What comes back: seasonal patterns of known period, and cycles.

    trigonometric   for j = 1 .. h, w_j = 2 pi j / period, a pair of states that turns
                    [ cos w_j  sin w_j]
                    [-sin w_j  cos w_j]    with noise of one variance; at w_j = pi,
                    where the second would do nothing, one state that changes its sign
    dummy           s_t = -(s_{t-1} + ... + s_{t-period+1}) + N(0, q)
    cycle           a pair that turns by w and shrinks by rho <= 1

(Harvey, 1989, sections 2.3.3 and 2.3.4). Turning commutes with noise of one variance,
so over a gap d the angle is w d and the noise q d, or q (1 - rho^2d) / (1 - rho^2):
exactly what d steps without data do, for d that are no integers too. The dummy form has
no such continuation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array
from elk_ssm.linalg.structure import Dense, Diagonal
from elk_ssm.models.bijections import between, fraction, positive
from elk_ssm.models.component import Block, Context, Kind, Parameter, is_count, spread
from elk_ssm.models.model import Model
from elk_ssm.models.trends import gaps_of


@dataclass(frozen=True)
class Harmonics(Kind):
    """The trigonometric form."""

    period: float
    count: int

    @property
    def least_steps(self) -> int:  # type: ignore[override]
        """One period."""
        return int(np.ceil(self.period))

    @property
    def frequencies(self) -> tuple[float, ...]:  # type: ignore[override]
        """The multiples of one over the period."""
        return tuple(j / self.period for j in range(1, self.count + 1))

    @property
    def has_half(self) -> bool:
        """Whether the last harmonic is that of two steps, with one state."""
        return 2 * self.count == self.period

    @property
    def specs(self) -> dict[str, Parameter]:
        """The variance of a step of every state."""
        return {"variance": Parameter(1.0, positive, 0.01, width=4.0)}

    @property
    def states(self) -> tuple[str, ...]:
        """The harmonics, and what completes each."""
        names = [f"{j}{star}" for j in range(1, self.count + 1) for star in ("", "*")]
        return tuple(names[:-1] if self.has_half else names)

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the turning pairs."""
        size, gaps = len(self.states), gaps_of(context)
        angles = 2 * np.pi * np.arange(1, self.count + 1) / self.period
        turned = turning(gaps[..., None] * jnp.asarray(angles, context.dtype))
        seen = np.tile([1.0, 0.0], self.count)[None, :size]
        return Block(
            Dense(turned[..., :size, :size]),
            spread(values["variance"] * gaps, size),
            jnp.asarray(seen, context.dtype),
            np.ones(size, bool),
            jnp.zeros((size, size), context.dtype),
        )

    def check_times(self) -> None:
        """Refuse the state that stands for half of a pair."""
        if self.has_half:
            raise ValueError(
                f"seasonal with times= needs fewer than {self.count} harmonics: the "
                "last one changes its sign every step and has no value in between."
            )


@dataclass(frozen=True)
class Dummy(Kind):
    """The form in which the effects of a period add up to noise."""

    period: int

    @property
    def least_steps(self) -> int:  # type: ignore[override]
        """One period."""
        return self.period

    @property
    def frequencies(self) -> tuple[float, ...]:  # type: ignore[override]
        """The multiples of one over the period, up to a half."""
        return tuple(j / self.period for j in range(1, self.period // 2 + 1))

    @property
    def specs(self) -> dict[str, Parameter]:
        """The variance of the sum over a period."""
        return {"variance": Parameter(1.0, positive, 0.03, width=4.0)}

    @property
    def states(self) -> tuple[str, ...]:
        """The effect now, and those of the steps before."""
        return ("", *(f"-{lag}" for lag in range(1, self.period - 1)))

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the companion form."""
        size = self.period - 1
        weights = np.eye(size, k=-1)
        weights[0] = -1
        first = np.eye(1, size)
        return Block(
            Dense(jnp.asarray(weights, context.dtype)),
            Diagonal(values["variance"] * jnp.asarray(first[0], context.dtype)),
            jnp.asarray(first, context.dtype),
            np.ones(size, bool),
            jnp.zeros((size, size), context.dtype),
        )

    def check_times(self) -> None:
        """Refuse."""
        raise ValueError(
            "seasonal in its dummy form has no times=; give it harmonics=."
        )


@dataclass(frozen=True)
class Cycle(Kind):
    """A pair of states that turns by an angle to be found."""

    low: float
    high: float
    damped: bool
    diffuse: bool

    @property
    def specs(self) -> dict[str, Parameter]:
        """Variance of a step, period, and damping."""
        # The geometric middle, where both ends are as many times away.
        middle = (self.low * self.high) ** 0.5
        found = {
            "variance": Parameter(1.0, positive, 0.1),
            "period": Parameter(middle, between(self.low, self.high), width=2.0),
        }
        if self.damped:
            found["damping"] = Parameter(0.9, fraction, width=2.0)
        return found

    @property
    def states(self) -> tuple[str, ...]:
        """The cycle and what completes it."""
        return ("", "*")

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the turning pair."""
        gaps, variance = gaps_of(context), values["variance"]
        angle = 2 * jnp.pi * gaps / values["period"]
        weights = turning(angle[..., None])
        noise = variance * gaps
        if self.damped:
            rho = values["damping"]
            left = rho**gaps
            weights = left[..., None, None] * weights
            noise = variance
            if context.gaps is not None:
                noise = variance * (1 - left**2) / (1 - rho**2)
        initial = jnp.zeros((2, 2), context.dtype)
        if not self.diffuse:
            initial = variance / (1 - values["damping"] ** 2) * jnp.eye(2)
        return Block(
            Dense(weights),
            spread(noise, 2),
            jnp.asarray([[1.0, 0.0]], context.dtype),
            np.full(2, self.diffuse),
            initial.astype(context.dtype),
        )


def turning(angles: Array) -> Array:
    """Return rotations side by side, `(..., 2 n, 2 n)`, by angles `(..., n)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm.models.seasons import turning
        >>> turning(jnp.zeros(1)).shape
        (2, 2)
    """
    count = angles.shape[-1]
    each = np.kron(np.eye(count), np.eye(2))
    across = np.kron(np.eye(count), np.array([[0.0, 1.0], [-1.0, 0.0]]))
    cosine, sine = (jnp.repeat(f(angles), 2, axis=-1) for f in (jnp.cos, jnp.sin))
    dtype = angles.dtype
    return cosine[..., None] * each.astype(dtype) + sine[..., None] * across.astype(
        dtype
    )


def seasonal(
    period: float, harmonics: int | None = None, name: str = "seasonal"
) -> Model:
    """A pattern that comes back every `period` steps and changes slowly.

    Args:
        period: Steps in a period, at least 2; an integer for the dummy form.
        harmonics: How many of them, at most half the period, for the trigonometric
            form; `None` for the dummy form, whose state has `period - 1` dimensions.
        name: What its parameters and states are called after.

    Raises:
        ValueError: The period or the number of harmonics is not possible.

    Example:
        >>> import elk_ssm as elk
        >>> elk.models.seasonal(4).state_names
        ('seasonal', 'seasonal-1', 'seasonal-2')
        >>> elk.models.seasonal(52, harmonics=2).state_names
        ('seasonal.1', 'seasonal.1*', 'seasonal.2', 'seasonal.2*')
    """
    number = isinstance(period, int | float | np.number)
    if not number or not 2 <= period < np.inf:
        raise ValueError(f"seasonal: period must be at least 2; got {period!r}.")
    if harmonics is None:
        if int(period) != period:
            raise ValueError(
                f"seasonal: a period that is no integer needs harmonics; got {period}."
            )
        return Model.of(name, Dummy(int(period)))
    if not (is_count(harmonics) and harmonics <= period / 2):
        raise ValueError(
            f"seasonal: harmonics must be from 1 to {int(period // 2)}, half the "
            f"period; got {harmonics!r}."
        )
    return Model.of(name, Harmonics(float(period), int(harmonics)))


def cycle(
    shortest: float = 3.0,
    longest: float = 100.0,
    *,
    damped: bool = True,
    start: str | None = None,
    name: str = "cycle",
) -> Model:
    """A stochastic cycle, whose period is found.

    Args:
        shortest: Lower limit of the period, in steps, above 2.
        longest: Upper limit.
        damped: Whether it has a damping, between 0 and 1; then it is stationary.
        start: `"stationary"`, the default of a damped cycle, or `"diffuse"`, the only
            one of the other.
        name: What its parameters and states are called after.

    Raises:
        ValueError: The limits are not in order, or there is no such start.

    Example:
        >>> import elk_ssm as elk
        >>> sorted(elk.models.cycle(5, 20).components[0].values)
        ['damping', 'period', 'variance']
    """
    if not 2 < shortest < longest < np.inf:
        raise ValueError(
            "cycle: periods must be 2 < shortest < longest; got "
            f"{shortest} and {longest}."
        )
    start = start or ("stationary" if damped else "diffuse")
    allowed = ("stationary", "diffuse") if damped else ("diffuse",)
    if start not in allowed:
        raise ValueError(f"cycle: start must be one of {allowed}; got {start!r}.")
    limits = float(shortest), float(longest)
    return Model.of(name, Cycle(*limits, damped, start == "diffuse"))
