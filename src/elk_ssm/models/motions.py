r"""Nonlinear motions and sensors, at steps of length d.

tracking    (x, x', y, y'): positions move by d times the velocity, velocities are
random walks with variance q d; sensor i at s_i sees the bearing
atan2(y - s_iy, x - s_ix), a normal error wrapped around the circle
pendulum    v_t = v_{t-1} - d k sin a_{t-1} + N(0, q d),  a_t = a_{t-1} + d v_t;
seen is sin a
lorenz      x' = s (y - x), y' = x (r - z) - y, z' = x y - b z by one step of
Runge and Kutta, with noise N(0, q d) in each; some of x, y, z are seen
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array
from elk_ssm.linalg.structure import Diagonal, LowRank
from elk_ssm.models.bijections import positive
from elk_ssm.models.component import Parameter
from elk_ssm.models.emissions import Emission, Values
from elk_ssm.models.systems import Motion, System


@dataclass(frozen=True)
class Timed(Motion):
    """A motion in equal steps, from a first state that is roughly known."""

    step: float
    mean: tuple[float, ...]
    deviations: tuple[float, ...]
    names: ClassVar[tuple[str, ...]]

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the dimensions of the state."""
        return self.names

    def first(self, dtype: Any) -> tuple[Array, Diagonal]:
        """Return mean and covariance of the first state."""
        variances = jnp.asarray(self.deviations, dtype) ** 2
        return jnp.asarray(self.mean, dtype), Diagonal(variances)

    def check_times(self) -> None:
        """Refuse."""
        raise ValueError(
            f"{type(self).__name__.lower()} has no times=, but steps of {self.step:g}."
        )


@dataclass(frozen=True)
class Tracking(Timed):
    """A point in a plane, seen as bearings from some places."""

    sensors: tuple[tuple[float, float], ...]
    names = ("position.x", "velocity.x", "position.y", "velocity.y")

    @property
    def emissions(self) -> int:  # type: ignore[override]
        """One bearing for every sensor."""
        return len(self.sensors)

    @property
    def specs(self) -> dict[str, Parameter]:
        """The growth of variance of a velocity in a unit of time."""
        return {"variance": Parameter(0.01, positive, width=4.0)}

    def system(self, values: Mapping[str, Array], dtype: Any) -> System:
        """Return the linear motion and the bearings."""
        d, places = self.step, jnp.asarray(self.sensors, dtype)
        F = jnp.asarray(np.kron(np.eye(2), [[1.0, d], [0.0, 1.0]]), dtype)
        G = jnp.asarray(np.kron(np.eye(2), [[0.0], [d**0.5]]), dtype)
        return System(
            *self.first(dtype),
            lambda z, u: F @ z,
            LowRank(jnp.sqrt(values["variance"]) * G),
            lambda z, u: jnp.arctan2(z[2] - places[:, 1], z[0] - places[:, 0]),
        )


@dataclass(frozen=True)
class Bearings(Emission):
    """Angles with normal errors, modulo a turn."""

    @property
    def own(self) -> dict[str, Parameter]:
        """The variance of an angle."""
        return {"variance": Parameter(0.01, positive)}

    def each(self, values: Values, h: Array, y: Array) -> Array:
        """Return the log densities, of the nearest turn."""
        away, variance = _wrapped(y - h), values["variance"]
        return -0.5 * (away**2 / variance + jnp.log(2 * jnp.pi * variance))

    def draw(self, values: Values, key: Array, h: Array) -> Array:
        """Return angles from -pi to pi."""
        noise = jax.random.normal(key, h.shape, h.dtype)
        return _wrapped(h + jnp.sqrt(values["variance"]) * noise)


def _wrapped(angle: Array) -> Array:
    return angle - 2 * jnp.pi * jnp.round(angle / (2 * jnp.pi))


@dataclass(frozen=True)
class Pendulum(Timed):
    """A pendulum that is pushed."""

    names = ("angle", "velocity")

    @property
    def specs(self) -> dict[str, Parameter]:
        """The growth of variance of the velocity, and gravity over length."""
        return {
            "variance": Parameter(0.1, positive, width=4.0),
            "stiffness": Parameter(9.8, positive),
        }

    def system(self, values: Mapping[str, Array], dtype: Any) -> System:
        """Return the motion; the sine of the angle is seen."""
        d, stiffness = self.step, values["stiffness"]
        G = jnp.asarray([[d**1.5], [d**0.5]], dtype)

        def dynamics(z: Array, u: Any) -> Array:
            velocity = z[1] - d * stiffness * jnp.sin(z[0])
            return jnp.stack([z[0] + d * velocity, velocity])

        return System(
            *self.first(dtype),
            dynamics,
            LowRank(jnp.sqrt(values["variance"]) * G),
            lambda z, u: jnp.sin(z[:1]),
        )


@dataclass(frozen=True)
class Lorenz(Timed):
    """Lorenz's convection, chaotic."""

    seen: tuple[int, ...]
    names = ("x", "y", "z")

    @property
    def emissions(self) -> int:  # type: ignore[override]
        """As many as are seen."""
        return len(self.seen)

    @property
    def specs(self) -> dict[str, Parameter]:
        """The growth of variance of a coordinate, and Lorenz's three."""
        return {
            "variance": Parameter(0.1, positive, width=4.0),
            "sigma": Parameter(10.0, positive, width=1.0),
            "rho": Parameter(28.0, positive, width=1.0),
            "beta": Parameter(8 / 3, positive, width=1.0),
        }

    def system(self, values: Mapping[str, Array], dtype: Any) -> System:
        """Return a step of Runge and Kutta, and what is seen."""
        d, seen = self.step, np.asarray(self.seen)
        sigma, rho, beta = values["sigma"], values["rho"], values["beta"]

        def slope(z: Array) -> Array:
            return jnp.stack(
                [
                    sigma * (z[1] - z[0]),
                    z[0] * (rho - z[2]) - z[1],
                    z[0] * z[1] - beta * z[2],
                ]
            )

        def dynamics(z: Array, u: Any) -> Array:
            first = slope(z)
            second = slope(z + d / 2 * first)
            third = slope(z + d / 2 * second)
            fourth = slope(z + d * third)
            return z + d / 6 * (first + 2 * second + 2 * third + fourth)

        spread = jnp.broadcast_to(d * values["variance"], (3,))
        return System(
            *self.first(dtype), dynamics, Diagonal(spread), lambda z, u: z[seen]
        )
