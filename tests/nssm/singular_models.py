"""Models with less noise than dimensions."""

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm.linalg.structure import Diagonal, LowRank, ScaledIdentity
from elk_ssm.nssm.model import NonlinearSSM

STEP = 0.5


def push(z, _):
    """The state as it is."""
    return z


def tracking(P, Q):
    """Place and velocity, the place observed."""
    F = jnp.array([[1.0, STEP], [0.0, 1.0]])
    push = np.array([STEP**2 / 2, STEP])
    Q = {
        "velocity": np.diag([0.0, 0.3]),
        "acceleration": 0.3 * np.outer(push, push),
        "nothing": np.zeros((2, 2)),
    }[Q]
    P = {"free": np.eye(2), "known": np.zeros((2, 2)), "half": np.diag([0.0, 2.0])}[P]
    mean = jnp.array([0.3, -0.2])
    R = ScaledIdentity(0.5)
    dynamics = lambda z, _: F @ z  # noqa: E731
    covariances = jnp.asarray(P), dynamics, jnp.asarray(Q)
    return NonlinearSSM(mean, *covariances, lambda z, _: z[:1], R), F


def bearings(steps):
    """A target in the plane whose acceleration alone is noise, seen from two places."""
    push = np.kron(np.array([[STEP**2 / 2], [STEP]]), np.eye(2)) * 0.3
    F = np.kron(np.array([[1, STEP], [0, 1]]), np.eye(2))
    mean, root = np.array([3.0, 4.0, -0.5, 0.2]), np.sqrt(np.array([1, 1, 0.1, 0.1]))

    def states_of(noise):
        def step(z, w):
            z = F @ z + push @ w
            return z, z

        first = mean + root * noise[:4]
        rest = jax.lax.scan(step, first, noise[4:].reshape(-1, 2))[1]
        return jnp.concatenate([first[None], rest])

    def emission(z, _):
        return jnp.array([jnp.arctan2(z[1] + 1, z[0]), jnp.arctan2(z[1], z[0] + 2)])

    rng = np.random.default_rng(5)
    truth = rng.normal(size=4 + 2 * (steps - 1))
    y = np.array(jax.vmap(lambda z: emission(z, None))(states_of(truth)))
    y += 0.05 * rng.normal(size=y.shape)
    y[4] = y[7, 0] = np.nan
    model = NonlinearSSM(
        jnp.asarray(mean),
        Diagonal(jnp.asarray(root**2)),
        lambda z, _: jnp.asarray(F) @ z,
        LowRank(jnp.asarray(push)),
        emission,
        ScaledIdentity(0.05**2),
    )
    return model, jnp.asarray(y), truth, states_of


def lorenz_step(z, _):
    """One step of Euler's."""
    return z + 0.02 * jnp.array(
        [10 * (z[1] - z[0]), z[0] * (28 - z[2]) - z[1], z[0] * z[1] - 8 / 3 * z[2]]
    )


def lorenz(steps, known):
    """Chaos without noise, one coordinate observed, and the noise of the truth."""
    truth = np.array([1.0, 2.0, 20.0])
    states = [truth]
    for _ in range(steps - 1):
        states.append(np.asarray(lorenz_step(states[-1], None)))
    rng = np.random.default_rng(2)
    y = np.array(states)[:, :1] + 0.5 * rng.normal(size=(steps, 1))
    mean = truth if known else np.array([0.0, 0.0, 25.0])
    model = NonlinearSSM(
        jnp.asarray(mean),
        Diagonal(jnp.full(3, 0.0 if known else 50.0)),
        lorenz_step,
        Diagonal(jnp.zeros(3)),
        lambda z, _: z[:1],
        ScaledIdentity(0.25),
    )
    return model, jnp.asarray(y), (truth - mean) / 50**0.5


def counts(parameters, singular=True):
    """Counts whose log rate is a second-order autoregression, in companion form."""
    phi1, phi2, q = parameters

    def log_density(h, y, _):
        rate = h + 1
        return jnp.sum(y * rate - jnp.exp(rate) - jax.scipy.special.gammaln(y + 1))

    return NonlinearSSM(
        jnp.zeros(2),
        ScaledIdentity(1.0),
        lambda z, _: jnp.array([phi1 * z[0] + phi2 * z[1], z[0]]),
        Diagonal(jnp.array([1.0, 0.0]) * q),
        lambda z, _: z[:1],
        log_density=log_density,
        singular=singular,
    )


def noisy_gain(steps, *, lags=False):
    """Noise that grows with the state; with `lags` the second state is the last one."""
    rng = np.random.default_rng(4)

    def gain(z):
        return 0.2 + 0.1 * z[0] ** 2

    def dynamics(z, _):
        second = z[0] if lags else 0.5 * z[1] + 0.1 * jnp.sin(z[0])
        return jnp.array([0.8 * z[0] + 0.1 * z[1], second])

    def covariance(z, _):
        if lags:
            return LowRank(gain(z) * jnp.array([[1.0], [0.0]]))
        return gain(z) ** 2 * jnp.array([[1.0, 0.3], [0.3, 0.5]])

    model = NonlinearSSM(
        jnp.zeros(2),
        ScaledIdentity(1.0),
        dynamics,
        covariance,
        lambda z, _: z[:1],
        ScaledIdentity(0.1),
    )
    return model, jnp.asarray(rng.normal(size=(steps, 1)))


def heavy_tails(dtype):
    """An integrated random walk seen with Student's t of three degrees of freedom."""

    def log_density(h, y, _):
        return jnp.sum(-2 * jnp.log1p((y - h) ** 2 / 3))

    return NonlinearSSM(
        jnp.zeros(2, dtype),
        ScaledIdentity(4.0),
        lambda z, _: jnp.array([z[0] + z[1], z[1]]),
        Diagonal(jnp.array([0.0, 0.05], dtype)),
        lambda z, _: z[:1],
        log_density=log_density,
    )
