r"""Samples of whole trajectories from the posterior.

Backwards in time, with E_t, L_t of the smoother (see `smoothing`) and the filtered
mean m_t as the origin, e_t = z_t - m_t obeys

    e_t = E_t e_{t+1} + E_t (m_{t+1} - m^p_{t+1}) + N(0, L_t),      E_{T-1} = 0

an affine recurrence, run by a scan of either kind. E_t, L_t and a square root of L_t
do not depend on the sample and are computed once for all of them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.affine import affine_scan
from elk_ssm.kalman.filtering import filter_problem
from elk_ssm.kalman.lgssm import LGSSM, Problem, pose
from elk_ssm.kalman.scalar_updates import safe_sqrt, square_root
from elk_ssm.kalman.smoothing import backward_step, static_whitener
from elk_ssm.linalg.small import matvec
from elk_ssm.linalg.structure import Dense, Diagonal, Operator
from elk_ssm.parallel.backend import Backend, check_backend


def lgssm_sample(
    key: Array,
    model: LGSSM,
    emissions: Array,
    inputs: Array | None = None,
    *,
    num_samples: int | None = None,
    mask: Array | None = None,
    backend: Backend = "auto",
) -> Array:
    """Draw trajectories from p(z_{0:T-1} | y_{0:T-1}).

    Forward filtering, backward sampling (Frühwirth-Schnatter, 1994).

    Args:
        key: a JAX random key.
        model: the model.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        num_samples: how many; `None` for one without a leading axis.
        mask: `(T, E)` or `(T,)`, True where observed.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.

    Returns:
        `(T, D)`, or `(num_samples, T, D)`.

    Raises:
        ValueError: a shape does not fit, or the backend is unknown.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from elk_ssm.linalg.structure import ScaledIdentity
        >>> one, zero = ScaledIdentity(1.0), ScaledIdentity(0.0)
        >>> model = LGSSM(jnp.zeros(1), one, one, one, one, zero)  # observed exactly
        >>> lgssm_sample(jax.random.key(0), model, jnp.array([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
    """
    check_backend(backend)
    problem = pose(model, emissions, inputs, mask)
    count = 1 if num_samples is None else int(num_samples)
    samples = sample_problem(key, problem, count, backend)
    return samples[0] if num_samples is None else samples


@partial(jax.jit, static_argnames=("count", "backend"))
def sample_problem(key: Array, problem: Problem, count: int, backend: Backend) -> Array:
    """Sample the states of a model that has been posed against its data."""
    _, means, covs = filter_problem(problem, backend)
    gains, drift, roots = _backward(problem, means, covs[0])
    shape = (count, *means.shape)
    noise = jax.random.normal(key, shape, means.dtype)
    shocks = drift + (roots * noise if problem.is_diagonal else matvec(roots, noise))
    run = partial(affine_scan, gains, backend=backend)
    # affine_scan runs forwards, so time is turned round.
    return means + jax.vmap(lambda shock: run(shock[::-1])[::-1])(shocks)


def _backward(
    problem: Problem, means: Array, covs: Array
) -> tuple[Operator, Array, Array]:
    """Return E with time reversed, the drift, and the square roots of L."""
    whitener = static_whitener(problem)

    def one(inputs):
        index, mean, cov, mean_next = inputs
        E, predicted, L = backward_step(problem, whitener, index, mean, cov)
        if problem.is_diagonal:
            return E, E * (mean_next - predicted), safe_sqrt(L)
        return E, matvec(E, mean_next - predicted), square_root(L)

    following = jnp.concatenate([means[1:], means[-1:]])
    steps = jnp.arange(problem.num_steps)
    E, drift, roots = jax.vmap(one)((steps, means, covs, following))
    wrap = Diagonal if problem.is_diagonal else Dense
    return wrap(E[::-1]), drift, roots
