"""Ready-made models whose motion or sensors are nonlinear; see `motions` for both."""

from collections.abc import Sequence

import numpy as np

from elk_ssm.models.component import Component
from elk_ssm.models.motions import Bearings, Lorenz, Pendulum, Tracking
from elk_ssm.models.noise import Noise
from elk_ssm.models.nonlinear import NonlinearModel
from elk_ssm.models.systems import Motion


def bearings_only_tracking(
    sensors: Sequence[Sequence[float]] = ((0.0, 0.0), (1.0, 0.0)),
    *,
    step: float = 1.0,
    initial_mean: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    initial_deviations: Sequence[float] = (10.0, 1.0, 10.0, 1.0),
) -> NonlinearModel:
    """A point of nearly constant velocity, of which some sensors see the bearing.

    The states are position and velocity in x, then in y; noise is in the velocities
    only. Emissions are angles in radians, one for each sensor, modulo a turn. One
    sensor that rests cannot tell a distance.

    Args:
        sensors: Their places `(x, y)`.
        step: Time between observations.
        initial_mean: Of the first state.
        initial_deviations: Likewise.

    Raises:
        ValueError: An option has another shape, or a step or deviation is not positive.

    Example:
        >>> import elk_ssm as elk
        >>> model = elk.models.bearings_only_tracking([(0.0, 0.0), (5.0, 0.0)])
        >>> list(model.parameters), model.emission_dim
        (['motion.variance', 'emission.variance'], 2)
    """
    places = np.asarray(sensors, float)
    if places.ndim != 2 or places.shape[1] != 2 or not len(places):
        raise ValueError(
            f"sensors must be places (x, y), (n, 2); got shape {places.shape}."
        )
    begin = _begin(4, step, initial_mean, initial_deviations)
    kind = Tracking(*begin, tuple((float(x), float(y)) for x, y in places))
    return NonlinearModel(
        (Component.of("motion", kind),),
        Component.of("emission", Bearings(len(places))),
    )


def pendulum(
    step: float = 0.05,
    *,
    initial_mean: Sequence[float] = (0.0, 0.0),
    initial_deviations: Sequence[float] = (1.0, 1.0),
) -> NonlinearModel:
    """A pendulum pushed at random, of which the sine of the angle is seen with noise.

    Args:
        step: Time between observations.
        initial_mean: Of angle and velocity.
        initial_deviations: Likewise.

    Raises:
        ValueError: An option has another shape, or a step or deviation is not positive.

    Example:
        >>> import elk_ssm as elk
        >>> list(elk.models.pendulum().parameters)
        ['pendulum.variance', 'pendulum.stiffness', 'noise.variance']
    """
    kind = Pendulum(*_begin(2, step, initial_mean, initial_deviations))
    return _seen_with_noise("pendulum", kind)


def lorenz(
    step: float = 0.02,
    seen: Sequence[int] = (0, 1, 2),
    *,
    initial_mean: Sequence[float] = (0.0, 0.0, 24.0),
    initial_deviations: Sequence[float] = (8.0, 9.0, 9.0),
) -> NonlinearModel:
    """Lorenz's system with noise, of which some coordinates are seen with noise.

    Args:
        step: Time between observations.
        seen: Which of x, y, z: 0, 1, 2.
        initial_mean: Of the first state.
        initial_deviations: Likewise.

    Raises:
        ValueError: An option has another shape, or a step or deviation is not positive.

    Example:
        >>> import elk_ssm as elk
        >>> model = elk.models.lorenz(seen=[0]).fix("lorenz.sigma", "lorenz.beta")
        >>> model.free
        ('lorenz.variance', 'lorenz.rho', 'noise.variance')
    """
    places = tuple(seen)
    if not places or any(i not in (0, 1, 2) for i in places):
        raise ValueError(f"seen must be some of 0, 1, 2; got {seen!r}.")
    kind = Lorenz(*_begin(3, step, initial_mean, initial_deviations), places)
    return _seen_with_noise("lorenz", kind)


def _seen_with_noise(name: str, kind: Motion) -> NonlinearModel:
    noise = Component.of("noise", Noise(kind.emissions))
    return NonlinearModel((Component.of(name, kind),), noise)


def _begin(
    size: int, step: float, mean: Sequence[float], deviations: Sequence[float]
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    for name, given in (("initial_mean", mean), ("initial_deviations", deviations)):
        if np.shape(given) != (size,):
            raise ValueError(f"{name} must be ({size},); got {np.shape(given)}.")
    if not step > 0 or not min(deviations) > 0:
        raise ValueError(
            f"step and initial_deviations must be positive; got {step} and "
            f"{tuple(deviations)}."
        )
    return float(step), tuple(map(float, mean)), tuple(map(float, deviations))
