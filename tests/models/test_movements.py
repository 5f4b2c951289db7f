"""Ready-made nonlinear models: what they simulate they find again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import elk_ssm as elk

pytestmark = pytest.mark.usefixtures("x64")


def test_bearings_find_the_track_across_the_cut_of_the_angle():
    model = elk.models.bearings_only_tracking(
        [(0.0, 0.0), (10.0, 0.0)],
        initial_mean=(-5.0, 0.0, 5.0, -0.4),
        initial_deviations=(2.0, 0.5, 2.0, 0.5),
    )
    model = model.replace(**{"motion.variance": 1e-3, "emission.variance": 1e-4})
    t, places = np.arange(40.0), np.array([[0.0, 0.0], [10.0, 0.0]])
    states = np.stack([-5 + 0 * t, 0 * t, 5 - 0.4 * t, -0.4 + 0 * t], axis=1)
    angles = np.arctan2(states[:, 2:3] - places[:, 1], states[:, :1] - places[:, 0])
    noise = 0.01 * np.random.default_rng(0).normal(size=angles.shape)
    y = np.angle(np.exp(1j * (angles + noise)))
    # From above the axis to below it, left of both: bearings jump by a turn.
    assert np.abs(np.diff(y[:, 0])).max() > 3
    found = model.smooth(y)
    assert bool(found.converged)
    away = np.asarray(found.means) - states
    deviations = np.sqrt(np.einsum("tii->ti", found.covariances))
    assert (np.abs(away) < 5 * deviations).all()
    assert np.sqrt(np.mean(away[:, [0, 2]] ** 2)) < 0.3


def test_a_pendulum_tells_its_length():
    model = elk.models.pendulum(initial_mean=(1.2, 0.0), initial_deviations=(0.1, 0.1))
    model = model.replace(**{"pendulum.variance": 0.02, "noise.variance": 0.01})
    truth = elk.sample(model.nonlinear(), jax.random.key(1), 200)
    begin = model.replace(**{"pendulum.stiffness": 7.0})
    fitted = elk.fit(begin, truth.emissions, start="model")
    assert bool(fitted.converged), fitted.message
    error = float(fitted.standard_errors["pendulum.stiffness"])
    assert abs(float(fitted.parameters["pendulum.stiffness"]) - 9.8) < 4 * error < 2


def test_lorenz_is_the_differential_equation():
    model = elk.models.lorenz(step=0.01, seen=[0, 2])
    ssm, z = model.nonlinear(), jnp.array([1.0, 2.0, 20.0])

    def slope(_, z):
        x, y, w = z
        return [10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w]

    exact = solve_ivp(slope, (0, 0.01), z, rtol=1e-12, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(ssm.dynamics(z, None), exact, rtol=1e-5)
    np.testing.assert_array_equal(ssm.emission(z, None), z[np.array([0, 2])])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: elk.models.lorenz(seen=[3]), "seen must be some of 0, 1, 2"),
        (lambda: elk.models.pendulum(step=0.0), "step and initial_deviations must be"),
        (lambda: elk.models.pendulum(initial_mean=(1,)), r"must be \(2,\); got \(1,\)"),
        (lambda: elk.models.bearings_only_tracking([1.0]), r"\(n, 2\); got shape"),
    ],
)
def test_mistakes_are_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
