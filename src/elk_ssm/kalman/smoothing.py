r"""Smoothers of a linear-Gaussian model: which recursion a model needs.

| the model | recursion |
|---|---|
| process noise in every direction | Rauch, Tung and Striebel, `rauch_tung_striebel` |
| a singular or relatively small Q; exact emissions | two filters, `future` |
| diagonal, or time spread over a mesh | two filters |

The first is the quicker one. `delicate` tells from the filtered moments whether it is
accurate, and the choice is made for a whole batch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from elk_ssm.kalman.anywhere import anywhere
from elk_ssm.kalman.delicate import has_exact_dynamics, has_exact_emissions
from elk_ssm.kalman.filter_spread import piece_of
from elk_ssm.kalman.filter_steps import (
    filter_associative,
    filter_carefully,
    filter_sequential,
)
from elk_ssm.kalman.future import look_back, look_back_everywhere, no_future
from elk_ssm.kalman.lgssm import LGSSM, Problem, pose
from elk_ssm.kalman.rauch_tung_striebel import (
    rauch_tung_striebel,
    rauch_tung_striebel_everywhere,
)
from elk_ssm.kalman.scalar_updates import condition
from elk_ssm.kalman.smooth_spread import smooth_on_mesh, smooth_pieces
from elk_ssm.linalg.small import matmul, transpose
from elk_ssm.linalg.structure import Dense, Diagonal, Operator
from elk_ssm.parallel.backend import Backend, by_backend, check_backend
from elk_ssm.parallel.mesh import Spread, off_explicit, spread_of
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
    for the parallel form. Where the process noise is singular or small beside what is
    known of the state, which that inverts, the two-filter form of Fraser and Potter
    (1969) is run in its stead, at two to four times the cost. In a batch (`jax.vmap`)
    one such model makes all take it. With next to exact emissions besides, a dense
    model is smoothed step after step on the associative backend too.

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
    if problem.num_steps == 0:
        raise ValueError("emissions must have at least one step; got T = 0.")
    wrap = Diagonal if problem.is_diagonal else Dense
    both = smooth_sequential, smooth_associative
    run = (partial(each, cross=cross) for each in both)
    means, covs, terms, smoothed, spreads, lagged = by_backend(backend, *run, problem)
    crosses = wrap(lagged) if cross else None
    moments = means, wrap(covs), smoothed, wrap(spreads), crosses
    return SmootherPosterior(jnp.sum(terms), *moments)


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


def smooth_sequential(problem: Problem, cross: bool) -> tuple:
    """Filter and smooth by scans, in which way the model needs.

    Returns:
        Filtered means and covariances and likelihood terms; smoothed means and
        covariances, and if `cross`, Cov(z_t, z_{t+1} | y) of all but the last.
    """
    if problem.is_diagonal:
        return _look_back(problem, filter_sequential(problem), cross)
    found = filter_sequential(problem, update=condition)
    quickly = (*found, *rauch_tung_striebel(problem, *found[:2], cross))
    exact = has_exact_emissions(problem, found[1])
    return lax.cond(
        # Not with the quick way as a branch: XLA compiles small loops in one piece
        # on a CPU, but not inside of a conditional, where they take ten times longer.
        anywhere(exact | has_exact_dynamics(problem, found[1])),
        lambda problem, _: _look_back(problem, filter_carefully(problem), cross),
        lambda _, quickly: quickly,
        problem,
        quickly,
    )


def _look_back(problem: Problem, found: tuple, cross: bool) -> tuple:
    means, covs, _ = found
    run = look_back(problem, means, covs, no_future(problem))
    return (*found, *_two_filter(run, cross))


def smooth_associative(problem: Problem, cross: bool) -> tuple:
    """Return the same from associative scans."""
    found = filter_associative(problem)

    def everywhere(problem: Problem, means: Array, covs: Array) -> tuple:
        return _two_filter(look_back_everywhere(problem, means, covs), cross)

    def one_by_one(problem: Problem, means: Array, covs: Array) -> tuple:
        return _two_filter(look_back(problem, means, covs, no_future(problem)), cross)

    if problem.is_diagonal:
        return (*found, *everywhere(problem, *found[:2]))
    quickly = partial(rauch_tung_striebel_everywhere, cross=cross)
    emissions = anywhere(has_exact_emissions(problem, found[1], ahead=True))
    dynamics = anywhere(has_exact_dynamics(problem, found[1]))
    which = jnp.where(emissions, 2, jnp.where(dynamics, 1, 0))
    ways = quickly, everywhere, one_by_one
    return (*found, *lax.switch(which, ways, problem, *found[:2]))


def _two_filter(found: tuple, cross: bool) -> tuple[Array, Array, Array | None]:
    means, covs, links = found[1]
    if not cross:
        return means, covs, None
    before, into = covs[:-1], links[1:]
    diagonal = covs.ndim == 2
    return means, covs, before * into if diagonal else matmul(before, transpose(into))
