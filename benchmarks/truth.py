r"""Independent answers for models with a scalar state: quadrature, Newton, NUTS.

None of these uses the package's inference. Quadrature on a fixed grid x_1 .. x_N of
spacing w turns the model into a hidden Markov chain,

    a_t(j) = p(y_t | x_j) sum_i w N(x_j; f(x_i), Q) a_{t-1}(i)      forward
    b_t(i) = sum_j w N(x_j; f(x_i), Q) p(y_t | x_j) b_{t+1}(j)      backward

and because the trapezoid rule converges exponentially for smooth densities, the result
is exact to rounding once w is below the standard deviation of the process noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solveh_banded

from elk_ssm.nssm.model import NonlinearSSM


class GridPosterior(NamedTuple):
    """The smoothing distribution on a grid.

    Attributes:
        points: `(N,)`, equally spaced.
        masses: p(z_t in cell | y), `(T, N)`; rows sum to one.
        log_likelihood: log p(y), `()`.
    """

    points: Any
    masses: Any
    log_likelihood: Any

    @property
    def mean(self) -> np.ndarray:
        """Posterior means, `(T,)`."""
        return np.asarray(self.masses @ self.points)

    @property
    def deviation(self) -> np.ndarray:
        """Posterior standard deviations, `(T,)`."""
        return np.sqrt(np.asarray(self.masses @ self.points**2) - self.mean**2)

    def mass_between(self, low: Any, high: Any) -> np.ndarray:
        """Return the posterior mass between two bounds `(T,)`, by linear cells."""
        width = self.points[1] - self.points[0]
        left = np.asarray(self.points)[:, None] - width / 2

        def below(bound: Any) -> np.ndarray:
            share = np.clip((np.asarray(bound) - left) / width, 0, 1).T
            return np.sum(np.asarray(self.masses) * share, axis=1)

        return below(high) - below(low)


def grid_posterior(
    model: NonlinearSSM, emissions: Any, low: float, high: float, count: int = 400
) -> GridPosterior:
    """Smooth a scalar model with static covariances by quadrature.

    Args:
        model: With a log density, `D = 1` and no inputs.
        emissions: `(T, E)`, none missing.
        low: First grid point.
        high: Last grid point.
        count: N.
    """
    points = jnp.linspace(low, high, count)
    return _grid_posterior(model, emissions, points)


@jax.jit
def _grid_posterior(model: NonlinearSSM, emissions: Any, points: Any) -> GridPosterior:
    log_density = model.log_density
    assert log_density is not None
    states, width = points[:, None], points[1] - points[0]
    moved = jax.vmap(lambda z: model.dynamics(z, None))(states)
    norm = jax.scipy.stats.norm
    Q = jnp.reshape(jnp.asarray(model.dynamics_covariance), ())
    P = jnp.reshape(jnp.asarray(model.initial_covariance), ())
    kernel = width * norm.pdf(states.T, moved, jnp.sqrt(Q))
    prior = width * norm.pdf(points, model.initial_mean, jnp.sqrt(P))
    one_step = jax.vmap(lambda z, y: log_density(z, y, None), (0, None))
    logs = jax.vmap(lambda y: one_step(states, y))(emissions)
    largest = jnp.max(logs, axis=1)
    weights = jnp.exp(logs - largest[:, None])

    def forward(predicted: Any, weight: Any) -> Any:
        joint = predicted * weight
        total = jnp.sum(joint)
        filtered = joint / total
        return filtered @ kernel, (filtered, jnp.log(total))

    def backward(later: Any, weight: Any) -> Any:
        earlier = kernel @ (weight * later)
        return earlier / jnp.max(earlier), later

    _, (filtered, totals) = jax.lax.scan(forward, prior, weights)
    _, later = jax.lax.scan(backward, jnp.ones_like(points), weights, reverse=True)
    masses = filtered * later
    masses = masses / jnp.sum(masses, axis=1, keepdims=True)
    return GridPosterior(points, masses, jnp.sum(totals + largest))


def newton_mode(
    first_variance: float,
    mean: float,
    phi: float,
    variance: float,
    slope_and_curvature: Callable,
    length: int,
) -> np.ndarray:
    """Find the mode of an autoregression with a concave log likelihood, `(T,)`.

    Newton's method on the dense log posterior with a tridiagonal solve by LAPACK,
    halving a step until the gradient norm falls. z_0 ~ N(mean, first_variance).

    Args:
        first_variance: Of z_0.
        mean: m.
        phi: Of z_t - m = phi (z_{t-1} - m) + noise; 1 is a random walk.
        variance: Of the noise.
        slope_and_curvature: d/dz and -d2/dz2 of log p(y_t | z_t), both `(T,)`.
        length: T.
    """
    diagonal = np.full(length, (1 + phi**2) / variance)
    diagonal[-1] = 1 / variance
    diagonal[0] = 1 / first_variance + phi**2 / variance
    off = -phi / variance

    def gradient(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope, curvature = slope_and_curvature(z)
        pull = diagonal * (z - mean)
        pull[1:] += off * (z[:-1] - mean)
        pull[:-1] += off * (z[1:] - mean)
        return slope - pull, curvature

    z = np.full(length, mean, float)
    for _ in range(100):
        g, curvature = gradient(z)
        bands = np.stack([np.full(length, off), diagonal + curvature])
        step = solveh_banded(bands, g)
        share = 1.0
        while np.linalg.norm(gradient(z + share * step)[0]) > np.linalg.norm(g):
            share /= 2
            if share < 1e-6:
                return z
        z = z + share * step
    return z


class Draws(NamedTuple):
    """NUTS draws: a pytree with leading axis n, and how the chain did."""

    positions: Any
    divergences: int
    mean_acceptance: float
    mean_leapfrogs: float


def sample_nuts(
    log_density: Callable, start: Any, draws: int, warmup: int, seed: int = 0
) -> Draws:
    """Run one blackjax NUTS chain with window adaptation, compiled as one scan."""
    import blackjax

    keys = jax.random.split(jax.random.key(seed))
    adapt = blackjax.window_adaptation(blackjax.nuts, log_density)
    (state, parameters), _ = adapt.run(keys[0], start, num_steps=warmup)
    kernel = blackjax.nuts(log_density, **parameters).step

    def one(state: Any, key: Any) -> Any:
        state, info = kernel(key, state)
        kept = (info.is_divergent, info.acceptance_rate, info.num_integration_steps)
        return state, (state.position, kept)

    run = jax.jit(lambda s, k: jax.lax.scan(one, s, k))
    _, (positions, kept) = run(state, jax.random.split(keys[1], draws))
    return Draws(
        positions, int(kept[0].sum()), float(kept[1].mean()), float(kept[2].mean())
    )


def effective_size(draws: Any) -> float:
    """Return the effective number of draws of a scalar chain `(n,)`.

    By Geyer's initial positive sequence of autocorrelations.
    """
    x = np.asarray(draws) - np.mean(draws)
    n = len(x)
    covariances = np.fft.irfft(np.abs(np.fft.rfft(x, 2 * n)) ** 2)[:n]
    rho = covariances / covariances[0]
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(1)
    stop = np.argmax(pairs <= 0) if np.any(pairs <= 0) else len(pairs)
    return float(n / max(2 * pairs[:stop].sum() - 1, 1e-9))
