r"""Levels and motions, at every step or over gaps of any length d.

    level          x_t = x_{t-1} + N(0, q d)
    trend          F = [1 d; 0 1]
                   every step a unit:   Q = diag(q_level, q_slope)
                   over gaps:           Q = [q_l d + q_s d^3/3   q_s d^2/2]
                                            [q_s d^2/2           q_s d    ]
    velocity       [position, velocity], Q = q [d^3/3 d^2/2; d^2/2 d]
    acceleration   [position, velocity, acceleration],
                   Q = q [d^5/20 d^4/8 d^3/6; d^4/8 d^3/3 d^2/2; d^3/6 d^2/2 d]

(Harvey, 1989, sections 2.3 and 9.1; Särkkä and Solin, 2019, chapter 6.) With `times`
the slope of a trend moves between the steps too, which without them it does not: a gap
of one is then close to a step, and not the same. All are diffuse at the start.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array
from elk_ssm.linalg.structure import Dense, Diagonal, Operator
from elk_ssm.models.bijections import positive
from elk_ssm.models.component import (
    Block,
    Context,
    Kind,
    Parameter,
    is_count,
    side_by_side,
    spread,
)
from elk_ssm.models.model import Model

_AXES = "xyz"


@dataclass(frozen=True)
class Level(Kind):
    """A random walk."""

    absorbs_mean = True
    single = True

    @property
    def specs(self) -> dict[str, Parameter]:
        """The variance of a step."""
        return {"variance": Parameter(1.0, positive, 0.3)}

    @property
    def states(self) -> tuple[str, ...]:
        """The level."""
        return ("",)

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the block of a random walk."""
        one, nothing = jnp.ones((1, 1), context.dtype), jnp.zeros((1, 1), context.dtype)
        noise = values["variance"] * gaps_of(context)
        steady = Diagonal(one[0])
        return Block(steady, spread(noise, 1), one, np.array([True]), nothing)


@dataclass(frozen=True)
class Trend(Kind):
    """A random walk with a slope that is one itself."""

    absorbs_mean = True
    single = True
    least_steps = 2

    @property
    def specs(self) -> dict[str, Parameter]:
        """The variances of a step of both."""
        return {
            "level_variance": Parameter(1.0, positive, 0.3),
            "slope_variance": Parameter(1.0, positive, 0.003, width=4.0),
        }

    @property
    def states(self) -> tuple[str, ...]:
        """Level and slope."""
        return ("level", "slope")

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the block of a local linear trend."""
        level, slope = values["level_variance"], values["slope_variance"]
        noise: Operator
        if context.gaps is None:
            noise = Diagonal(jnp.stack([level, slope]))
        else:
            one = jnp.zeros((2, 2), context.dtype).at[0, 0].set(1)
            wandering = level * context.gaps[:, None, None] * one
            noise = Dense(wandering + slope * integrated_noise(context.gaps, 2))
        emission = jnp.asarray([[1.0, 0.0]], context.dtype)
        nothing = jnp.zeros((2, 2), context.dtype)
        motion = Dense(motion_over(gaps_of(context), 2))
        return Block(motion, noise, emission, np.ones(2, bool), nothing)


@dataclass(frozen=True)
class Motion(Kind):
    """A position whose derivative of some order is a Wiener process, in n axes."""

    axes: int
    order: int
    absorbs_mean = True
    single = True

    @property
    def emissions(self) -> int:  # type: ignore[override]
        """One position for every axis."""
        return self.axes

    @property
    def least_steps(self) -> int:  # type: ignore[override]
        """As many as there are unknowns at the start."""
        return self.order

    @property
    def specs(self) -> dict[str, Parameter]:
        """The growth of variance of the last derivative in a unit of time."""
        return {"variance": Parameter(1.0, positive, 0.1, width=4.0)}

    @property
    def states(self) -> tuple[str, ...]:
        """Position and derivatives, axis after axis."""
        names = ("position", "velocity", "acceleration")[: self.order]
        if self.axes == 1:
            return names
        axes = _AXES if self.axes <= len(_AXES) else range(self.axes)
        return tuple(f"{name}.{axes[i]}" for i in range(self.axes) for name in names)

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the same block for every axis."""
        gaps, n = gaps_of(context), self.axes
        noise = values["variance"] * integrated_noise(gaps, self.order)
        size = n * self.order
        emission = np.kron(np.eye(n), np.eye(1, self.order))
        return Block(
            side_by_side([Dense(motion_over(gaps, self.order))] * n),
            side_by_side([Dense(noise)] * n),
            jnp.asarray(emission, context.dtype),
            np.ones(size, bool),
            jnp.zeros((size, size), context.dtype),
        )


def gaps_of(context: Context) -> Array:
    """Return the gaps, `(T,)` or `()` where all are one."""
    return jnp.ones((), context.dtype) if context.gaps is None else context.gaps


def motion_over(gap: Array, order: int) -> Array:
    """Return the transition of a position and its derivatives, `(..., n, n)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm.models.trends import motion_over
        >>> motion_over(jnp.asarray(2.0), 3).tolist()
        [[1.0, 2.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]]
    """
    ahead = np.arange(order)[None] - np.arange(order)[:, None]
    factorial = np.array([1.0, 1.0, 2.0])[np.maximum(ahead, 0)]
    # Not 0 ** 0, whose derivative is not a number.
    powers = jnp.stack([jnp.ones_like(gap), gap, gap**2], axis=-1)
    each = powers[..., np.maximum(ahead, 0)]
    return jnp.where(ahead >= 0, each / factorial.astype(gap.dtype), 0)


def integrated_noise(gap: Array, order: int) -> Array:
    """Return the covariance of a Wiener process and its integrals over a gap.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm.models.trends import integrated_noise
        >>> integrated_noise(jnp.asarray(1.0), 2).tolist()
        [[0.3333333432674408, 0.5], [0.5, 1.0]]
    """
    left = order - 1 - np.arange(order)
    power = left[:, None] + left + 1
    factorial = np.array([1.0, 1.0, 2.0])[left]
    scale = 1 / (factorial[:, None] * factorial * power)
    return gap[..., None, None] ** power * jnp.asarray(scale, gap.dtype)


def local_level(name: str = "level") -> Model:
    """A random walk seen with noise.

    Args:
        name: What its parameters and states are called after.

    Example:
        >>> import elk_ssm as elk
        >>> elk.models.local_level().parameters.keys()
        dict_keys(['level.variance', 'noise.variance'])
    """
    return Model.of(name, Level())


def local_linear_trend(name: str = "trend") -> Model:
    """A random walk with a slope that is a random walk too, seen with noise.

    Args:
        name: What its parameters and states are called after.

    Example:
        >>> import elk_ssm as elk
        >>> model = elk.models.local_linear_trend()
        >>> model.state_names
        ('trend.level', 'trend.slope')
        >>> smooth = model.fix(**{"trend.level_variance": 0.0})
    """
    return Model.of(name, Trend())


def constant_velocity(axes: int = 1, name: str = "motion") -> Model:
    """A point whose velocity is a Wiener process, its position seen with noise.

    Args:
        axes: Dimensions of space; an emission for each.
        name: What its parameters and states are called after.

    Example:
        >>> import elk_ssm as elk
        >>> elk.models.constant_velocity(2).state_names[:2]
        ('motion.position.x', 'motion.velocity.x')
    """
    return Model.of(name, Motion(_positive_int("axes", axes), 2))


def constant_acceleration(axes: int = 1, name: str = "motion") -> Model:
    """A point whose acceleration is a Wiener process, its position seen with noise.

    Args:
        axes: Dimensions of space; an emission for each.
        name: What its parameters and states are called after.

    Example:
        >>> import elk_ssm as elk
        >>> elk.models.constant_acceleration(2).lgssm().state_dim
        6
    """
    return Model.of(name, Motion(_positive_int("axes", axes), 3))


def _positive_int(name: str, value: int) -> int:
    if not is_count(value):
        raise ValueError(f"{name} must be a positive integer; got {value!r}.")
    return int(value)
