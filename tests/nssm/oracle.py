"""Small models, and independent answers: dense Gaussians, SciPy, loops."""

import jax.numpy as jnp
import numpy as np

from elk_ssm.linalg.structure import ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM

STEP = 0.1


def pendulum(q=0.05, r=0.09, gravity=9.8):
    """Angle and velocity, the sine of the angle observed."""
    Q = q * jnp.array([[STEP**3 / 3, STEP**2 / 2], [STEP**2 / 2, STEP]])

    def dynamics(z, _):
        velocity = z[1] - gravity * STEP * jnp.sin(z[0])
        return jnp.array([z[0] + STEP * velocity, velocity])

    return NonlinearSSM(
        initial_mean=jnp.array([1.2, 0.0]),
        initial_covariance=ScaledIdentity(0.1),
        dynamics=dynamics,
        dynamics_covariance=jnp.asarray(Q),
        emission=lambda z, _: jnp.sin(z[:1]),
        emission_covariance=ScaledIdentity(r),
    )


def linear(size=2):
    """A linear model, for which one pass is exact."""
    rng = np.random.default_rng(3)
    F = jnp.asarray(0.8 * np.eye(size) + 0.1 * rng.normal(size=(size, size)))
    H = jnp.asarray(rng.normal(size=(2, size)))
    Q = jnp.asarray(np.eye(size) * 0.3 + 0.1)
    R = jnp.asarray(np.array([[0.5, 0.2], [0.2, 0.4]]))
    return F, H, Q, R


def emissions_of(model, length, seed=0):
    """Simulate with a NumPy loop; nothing is shared with `sample`."""
    rng = np.random.default_rng(seed)
    Q = np.asarray(model.dynamics_covariance)
    root = np.linalg.cholesky(Q)
    state = np.asarray(model.initial_mean) + 0.3 * rng.normal(size=2)
    values = []
    for t in range(length):
        if t:
            state = np.asarray(model.dynamics(state, None)) + root @ rng.normal(size=2)
        values.append(np.asarray(model.emission(state, None)) + 0.3 * rng.normal())
    return jnp.asarray(np.stack(values))


def pendulum_residuals(model, emissions, r=0.09):
    """Return the residual function of the MAP problem, in NumPy only."""
    Q = np.asarray(model.dynamics_covariance)
    whitener = np.linalg.inv(np.linalg.cholesky(Q))
    y = np.asarray(emissions)[:, 0]
    seen = np.isfinite(y)

    def residuals(flat):
        x = flat.reshape(-1, 2)
        velocity = x[:-1, 1] - 9.8 * STEP * np.sin(x[:-1, 0])
        moved = np.stack([x[:-1, 0] + STEP * velocity, velocity], axis=1)
        first = (x[0] - np.asarray(model.initial_mean)) / np.sqrt(0.1)
        seen_part = (y - np.sin(x[:, 0]))[seen] / np.sqrt(r)
        return np.concatenate(
            [first, ((x[1:] - moved) @ whitener.T).ravel(), seen_part]
        )

    return residuals
