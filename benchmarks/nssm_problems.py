"""Hard smoothing problems: four as usually posed, three of them harder, and data.

The harder ones know little of the first state and see little: prior deviations of
2 rad and rad/s and every tenth step (pendulum), 20 units of place, 1 of velocity and
every fifth step (bearings, turn).
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm.draws import draw_emissions, draw_states
from elk_ssm.linalg.structure import Diagonal, ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.posed import pose


class Problem(NamedTuple):
    """A model, its length, and which emissions are seen, `(T, E)` boolean or `None`."""

    model: NonlinearSSM
    length: int
    seen: Any = None


def pendulum(length: int = 200, step: float = 0.05) -> Problem:
    """Angle and velocity; the sine of the angle is observed to 0.3."""
    Q = 0.05 * jnp.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])

    def dynamics(z, _):
        velocity = z[1] - 9.8 * step * jnp.sin(z[0])
        return jnp.array([z[0] + step * velocity, velocity])

    model = NonlinearSSM(
        initial_mean=jnp.array([1.2, 0.0]),
        initial_covariance=ScaledIdentity(0.1),
        dynamics=dynamics,
        dynamics_covariance=Q,
        emission=lambda z, _: jnp.sin(z[:1]),
        emission_covariance=ScaledIdentity(0.09),
    )
    return Problem(model, length)


SENSORS = np.array([[-20.0, -25.0], [20.0, -25.0]])


def _bearings(z: Any) -> Any:
    east, north = z[0] - SENSORS[:, 0], z[1] - SENSORS[:, 1]
    distance = jnp.hypot(east, north)
    # Directions, not angles: an angle jumps where a target passes behind a sensor.
    return jnp.concatenate([east / distance, north / distance])


def bearings(length: int = 100, step: float = 1.0) -> Problem:
    """A target with nearly constant velocity, seen by its bearings from two sensors."""
    one = np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
    Q = jnp.asarray(np.kron(one, np.eye(2)) * 1e-3)

    def dynamics(z, _):
        return jnp.concatenate([z[:2] + step * z[2:], z[2:]])

    model = NonlinearSSM(
        initial_mean=jnp.array([-10.0, -5.0, 0.3, 0.3]),
        initial_covariance=Diagonal(jnp.array([25.0, 25.0, 0.1, 0.1])),
        dynamics=dynamics,
        dynamics_covariance=Q,
        emission=lambda z, _: _bearings(z),
        emission_covariance=ScaledIdentity(0.05**2),
    )
    return Problem(model, length)


def turn(length: int = 150, step: float = 0.5) -> Problem:
    """A coordinated turn with unknown rate: place, velocity, turn rate; bearings."""
    q, rate = 0.05, 0.02
    one = np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
    Q = np.zeros((5, 5))
    Q[:4, :4] = np.kron(one, np.eye(2)) * q
    Q[4, 4] = step * rate**2

    def dynamics(z, _):
        w = jnp.where(jnp.abs(z[4]) < 1e-6, 1e-6, z[4])
        s, c = jnp.sin(w * step), jnp.cos(w * step)
        x, y, vx, vy = z[:4]
        return jnp.array(
            [
                x + vx * s / w - vy * (1 - c) / w,
                y + vx * (1 - c) / w + vy * s / w,
                vx * c - vy * s,
                vx * s + vy * c,
                z[4],
            ]
        )

    model = NonlinearSSM(
        initial_mean=jnp.array([0.0, -5.0, 1.0, 0.0, 0.1]),
        initial_covariance=Diagonal(jnp.array([9.0, 9.0, 0.25, 0.25, 0.01])),
        dynamics=dynamics,
        dynamics_covariance=jnp.asarray(Q),
        emission=lambda z, _: _bearings(z),
        emission_covariance=ScaledIdentity(0.05**2),
    )
    return Problem(model, length)


def lorenz96(length: int = 100, step: float = 0.05, size: int = 8) -> Problem:
    """Lorenz-96, F = 8, Runge-Kutta; every other entry seen at every second step."""

    def slope(z):
        return (jnp.roll(z, -1) - jnp.roll(z, 2)) * jnp.roll(z, 1) - z + 8.0

    def dynamics(z, _):
        a = slope(z)
        b = slope(z + step / 2 * a)
        c = slope(z + step / 2 * b)
        d = slope(z + step * c)
        return z + step / 6 * (a + 2 * b + 2 * c + d)

    model = NonlinearSSM(
        initial_mean=jnp.full(size, 2.0),
        initial_covariance=ScaledIdentity(9.0),
        dynamics=dynamics,
        dynamics_covariance=ScaledIdentity(0.05),
        emission=lambda z, _: z[::2],
        emission_covariance=ScaledIdentity(0.25),
    )
    seen = np.zeros((length, (size + 1) // 2), bool)
    seen[::2] = True
    return Problem(model, length, seen)


def pendulum_far() -> Problem:
    """The pendulum from anywhere on the circle, seen at every tenth step."""
    return _harder(pendulum(), [4.0, 4.0], 10)


def bearings_far() -> Problem:
    """The target with an unknown first place, seen at every fifth step."""
    return _harder(bearings(), [400.0, 400.0, 1.0, 1.0], 5)


def turn_far() -> Problem:
    """The turn with an unknown first place and rate, seen at every fifth step."""
    return _harder(turn(), [400.0, 400.0, 1.0, 1.0, 0.04], 5)


def _harder(problem: Problem, variances: list[float], every: int) -> Problem:
    first = Diagonal(jnp.array(variances))
    model = replace(problem.model, initial_covariance=first)
    seen = np.zeros((problem.length, 1), bool)
    seen[::every] = True
    return Problem(model, problem.length, seen)


FAR = (pendulum_far, bearings_far, turn_far)
PROBLEMS = {f.__name__: f for f in (pendulum, bearings, turn, lorenz96, *FAR)}


def draw(problem: Problem, seed: Any) -> tuple[Any, Any]:
    """Return a true trajectory and its emissions, NaN where not seen."""
    model, length, seen = problem
    keys = jax.random.split(jax.random.key(seed))
    width = jax.eval_shape(model.emission, model.initial_mean, None).shape[0]
    posed = pose(model, jnp.zeros((length, width)))
    states, _ = draw_states(posed, jax.random.normal(keys[0], posed.shape))
    emissions = draw_emissions(model, posed, keys[1], states)
    return states, emissions if seen is None else jnp.where(seen, emissions, jnp.nan)
