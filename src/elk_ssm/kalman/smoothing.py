r"""The Rauch-Tung-Striebel smoother, sequential or parallel in time.

Given the filter, p(z_t | z_{t+1}, y_{0:t}) = N(m_t + E_t (z_{t+1} - m^p_{t+1}), L_t),
where m^p is the predicted mean, and E_t, L_t come from conditioning N(m_t, P_t) on
z_{t+1} (see `scalar_updates`). With E_{T-1} = 0 and L_{T-1} = P_{T-1},

    m^s_t = m_t + E_t (m^s_{t+1} - m^p_{t+1})
    P^s_t = E_t P^s_{t+1} E_t' + L_t
    Cov(z_t, z_{t+1} | y) = E_t P^s_{t+1}

a sum of PSD terms at every step. In terms of the distance d_t = m^s_t - m_t from the
filter, d_t = E_t d_{t+1} + E_t (m_{t+1} - m^p_{t+1}): what is added up is a
correction, so a large mean costs no digits, and the three recursions are one
associative scan over (E, g, L).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from elk_ssm.kalman.elements import (
    SmootherElement,
    combine_smoother_dense,
    combine_smoother_diagonal,
)
from elk_ssm.kalman.filter_spread import piece_of
from elk_ssm.kalman.filter_steps import transition_into
from elk_ssm.kalman.filtering import filter_problem
from elk_ssm.kalman.lgssm import LGSSM, Problem, pose
from elk_ssm.kalman.scalar_updates import (
    Whitener,
    condition_backward,
    condition_backward_diagonal,
    whitener_of,
)
from elk_ssm.kalman.smooth_spread import smooth_on_mesh, smooth_pieces, static_whitener
from elk_ssm.linalg.small import matmul, matvec, symmetrize
from elk_ssm.linalg.structure import Dense, Diagonal, Operator, at_step
from elk_ssm.parallel.backend import Backend, by_backend, check_backend
from elk_ssm.parallel.mesh import Spread, off_explicit, spread_of
from elk_ssm.parallel.prefix import prefix_scan
from elk_ssm.parallel.time_axis import TimeAxis


class SmootherPosterior(NamedTuple):
    """p(z_t | y_{0:T-1}) for every t, with the filter it came from.

    Covariances are `Dense`, `(T, D, D)`, or for a diagonal model `Diagonal`, `(T, D)`.

    Attributes:
        log_likelihood: log p(y_{0:T-1}), `()`.
        filtered_means: `(T, D)`.
        filtered_covariances: `T` matrices.
        smoothed_means: `(T, D)`.
        smoothed_covariances: `T` matrices.
        cross_covariances: `T - 1` matrices, Cov(z_t, z_{t+1} | y), if asked for.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> found = elk.lgssm_smoother(model, jnp.ones((3, 1)), cross_covariances=True)
        >>> found.smoothed_means.shape, found.cross_covariances.diagonal.shape
        ((3, 1), (2, 1))
    """

    log_likelihood: Array
    filtered_means: Array
    filtered_covariances: Operator
    smoothed_means: Array
    smoothed_covariances: Operator
    cross_covariances: Operator | None = None


def lgssm_smoother(
    model: LGSSM,
    emissions: Array,
    inputs: Array | None = None,
    *,
    mask: Array | None = None,
    cross_covariances: bool = False,
    backend: Backend = "auto",
    mesh: Mesh | None = None,
    axis_name: str = "time",
) -> SmootherPosterior:
    """Smooth a series: p(z_t | y_{0:T-1}) for every t.

    Rauch, Tung and Striebel (1965); Särkkä and García-Fernández (2021), section IV.B,
    for the parallel form.

    Args:
        model: the model.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)`; the row t acts on the transition into t and on emission t.
        mask: `(T, E)` or `(T,)`, True where observed.
        cross_covariances: whether to return Cov(z_t, z_{t+1} | y) too.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.
        mesh: Devices over which time is spread, as for `lgssm_filter`. Of the results
            only `cross_covariances`, whose T - 1 entries fit no even sharding, is not.
        axis_name: Name of the axis of the mesh for time.

    Returns:
        The filtered and smoothed posterior.

    Raises:
        ValueError: a shape does not fit, or the backend is unknown.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm.linalg.structure import ScaledIdentity
        >>> one = ScaledIdentity(1.0)
        >>> model = LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> posterior = lgssm_smoother(model, jnp.array([[jnp.nan], [3.0]]))
        >>> posterior.smoothed_means[:, 0].tolist()
        [1.0, 2.0]
    """
    check_backend(backend)
    spread = spread_of(mesh, axis_name)
    data = model, emissions, inputs, mask
    if spread is not None:
        data = off_explicit(data, "lgssm_smoother")
    return smooth_problem(pose(*data), backend, bool(cross_covariances), spread)


@partial(jax.jit, static_argnames=("backend", "cross", "spread"))
def smooth_problem(
    problem: Problem,
    backend: Backend,
    cross: bool = False,
    spread: Spread | None = None,
) -> SmootherPosterior:
    """Smooth a model that has been posed against its data."""
    if spread is not None:
        return _smooth_on_mesh(problem, backend, cross, spread)
    evidence, means, covs = filter_problem(problem, backend)
    wrap = Diagonal if problem.is_diagonal else Dense
    run = partial(_sequential, cross=cross), partial(_associative, cross=cross)
    smoothed, spreads, lagged = by_backend(backend, *run, problem, means, covs[0])
    crosses = wrap(lagged[:-1]) if cross else None
    return SmootherPosterior(evidence, means, covs, smoothed, wrap(spreads), crosses)


def _smooth_on_mesh(
    problem: Problem, backend: Backend, cross: bool, spread: Spread
) -> SmootherPosterior:
    wrap = Diagonal if problem.is_diagonal else Dense
    evidence, moments = smooth_on_mesh(problem, backend, spread, cross)
    means, covs, smoothed, spreads, *lagged = moments
    crosses = wrap(lagged[0][1:]) if cross else None
    posterior = evidence, means, wrap(covs), smoothed, wrap(spreads), crosses
    return SmootherPosterior(*posterior)


def smooth_piece(
    axis: TimeAxis, problem: Problem, exists: Array | None, backend: Backend
) -> SmootherPosterior:
    """Smooth this device's piece of a series, from inside `jax.shard_map`.

    Args:
        axis: Where time lives.
        problem: What this device holds, posed as if it were a series of its own.
        exists: Which of its steps are steps of the series, `None` for all.
        backend: For the passes inside the device.
    """
    wrap = Diagonal if problem.is_diagonal else Dense
    piece = piece_of(axis, problem, exists)
    found, evidence = smooth_pieces(axis, piece, backend, False)
    means, covs, smoothed, spreads = found
    return SmootherPosterior(evidence, means, wrap(covs), smoothed, wrap(spreads))


def backward_step(
    problem: Problem, whitener: Whitener | None, step: Array, mean: Array, cov: Array
) -> SmootherElement:
    """Return E, m^p of the next step, and L for a step with that filtered moment.

    The last step has E = 0 and L = P. `g` holds the predicted mean m^p_{t+1}.
    """
    last = step == problem.num_steps - 1
    following = jnp.minimum(step + 1, problem.num_steps - 1)
    F, c, Q = transition_into(problem, following)
    if problem.is_diagonal:
        E, L = condition_backward_diagonal(cov, F, Q)
    else:
        if whitener is None:
            whitener = whitener_of(at_step(problem.covariance, following))
        E, L = condition_backward(cov, F, whitener)
    predicted = (F * mean if problem.is_diagonal else matvec(F, mean)) + c
    return SmootherElement(jnp.where(last, 0.0, E), predicted, jnp.where(last, cov, L))


def _sequential(problem: Problem, means: Array, covs: Array, cross: bool):
    whitener = static_whitener(problem)
    product = _product(problem)

    def step(carry, filtered):
        mean_next, cov_next = carry
        index, mean, cov = filtered
        E, predicted, L = backward_step(problem, whitener, index, mean, cov)
        smoothed = mean + _times(E, mean_next - predicted)
        lagged = product(E, cov_next)
        spread = product(lagged, E if E.ndim == 1 else E.T)
        spread = (spread if E.ndim == 1 else symmetrize(spread)) + L
        return (smoothed, spread), (smoothed, spread, lagged if cross else None)

    steps = jnp.arange(problem.num_steps)
    start = (means[-1], covs[-1])
    return lax.scan(step, start, (steps, means, covs), reverse=True)[1]


def _associative(problem: Problem, means: Array, covs: Array, cross: bool):
    backward = partial(backward_step, problem, static_whitener(problem))
    E, predicted, L = jax.vmap(backward)(jnp.arange(problem.num_steps), means, covs)
    gap = _times(E, _following(means) - predicted)
    diagonal = problem.is_diagonal
    combine = combine_smoother_diagonal if diagonal else combine_smoother_dense
    elements = SmootherElement(E, gap, L)
    combined = prefix_scan(combine, elements, reverse=True)
    lagged = _product(problem)(E, _following(combined.L)) if cross else None
    return means + combined.g, combined.L, lagged


def _following(moments: Array) -> Array:
    """Shift by one step; the last entry is repeated, and met by E = 0."""
    return jnp.concatenate([moments[1:], moments[-1:]])


def _times(E: Array, vector: Array) -> Array:
    return E * vector if E.ndim == vector.ndim else matvec(E, vector)


def _product(problem: Problem):
    return jnp.multiply if problem.is_diagonal else matmul
