r"""Smoothers of a linear-Gaussian model: which recursion a model needs.

| the model | recursion |
|---|---|
| process noise in every direction | Rauch, Tung and Striebel, `rauch_tung_striebel` |
| a singular or relatively small Q | two filters, `future`; step by step, `exactly` |
| steps all alike, at once on an accelerator | two filters by doubling, `alike` |
| exact emissions | two filters from a root of every covariance, `exactly` |
| a prior so wide that covariances lose it | the initial state kept apart, `apart` |
| time sharded over a mesh | two filters, which share what a mesh gathers |

The first is the quicker one. `delicate` tells from the filtered moments whether it is
accurate, and the choice is made for a whole batch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from elk_ssm.kalman.alike import smooth_unless_alike
from elk_ssm.kalman.apart import evidence_of, filter_apart, smooth_apart
from elk_ssm.kalman.delicate import has_exact_dynamics, has_exact_emissions
from elk_ssm.kalman.exactly import smooth_exactly
from elk_ssm.kalman.filtering import filter_by_prefixes
from elk_ssm.kalman.form import COVARIANCES, Form, Held, chosen_form, unless_exact
from elk_ssm.kalman.forward import Filtered, filter_of
from elk_ssm.kalman.future import two_filters
from elk_ssm.kalman.lgssm import LGSSM, Problem, pose
from elk_ssm.kalman.places import by_groups, piece_of, run_task
from elk_ssm.kalman.reduction import reduced
from elk_ssm.kalman.settled import Smoothed, look_back_all, smooth_quickly
from elk_ssm.linalg.small import matmul, transpose
from elk_ssm.linalg.structure import Dense, Operator
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.parallel.backend import Backend, by_backend, check_backend
from elk_ssm.parallel.driver import run, run_both
from elk_ssm.parallel.mesh import Shards, off_explicit, shards_of
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis


class SmootherPosterior(NamedTuple):
    """p(z_t | y_{0:T-1}) for every t, with the filter it came from.

    Covariances are of the structure of the model, as those of `FilterPosterior`.

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
    form: Form = "auto",
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
        form: How the recursion is held, as for `lgssm_filter`.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.
        mesh: Devices over which time is sharded, as for `lgssm_filter`. Of the results
            only `cross_covariances`, whose T - 1 entries fit no even sharding, is not.
        axis_name: Name of the axis of the mesh for time.

    Returns:
        The filtered and smoothed posterior.

    Raises:
        ValueError: a shape does not fit, or the backend is unknown.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> posterior = elk.lgssm_smoother(model, jnp.array([[jnp.nan], [3.0]]))
        >>> posterior.smoothed_means[:, 0].tolist()
        [1.0, 2.0]
    """
    check_backend(backend)
    shards = shards_of(mesh, axis_name)
    data = model, emissions, inputs, mask
    if shards is not None:
        data = off_explicit(data, "lgssm_smoother")
    problem = pose(*data)
    found = chosen_form(form, model, problem, smooth=True)
    return smooth_problem(problem, backend, bool(cross_covariances), shards, found)


@partial(jax.jit, static_argnames=("backend", "cross", "shards", "form"))
def smooth_problem(
    problem: Problem,
    backend: Backend,
    cross: bool = False,
    shards: Shards | None = None,
    form: Held = "covariance",
) -> SmootherPosterior:
    """Smooth a model that has been posed against its data."""
    if problem.num_steps == 0:
        raise ValueError("emissions must have at least one step; got T = 0.")
    way = _smooth_group if form in COVARIANCES else _smooth_apart
    task = partial(way, backend=backend, cross=cross, held=form)
    return _posterior(*run_task(task, problem, shards))


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
    task = partial(_smooth_group, backend=backend, cross=False)
    return _posterior(*by_groups(task, piece_of(axis, problem, exists), axis))


def _posterior(found: tuple, evidence: Array) -> SmootherPosterior:
    *moments, lagged = found
    posterior = SmootherPosterior(evidence, *moments)
    if lagged is None:
        return posterior
    return posterior._replace(cross_covariances=lagged.at(slice(1, None)))


def _smooth_group(
    problem: Problem,
    axis: TimeAxis,
    backend: Backend,
    cross: bool,
    held: Held = "covariance",
) -> tuple[tuple, Array]:
    """Filter and smooth; Cov(z_{t-1}, z_t | y) is at entry t."""
    if axis.is_sharded:
        back = partial(two_filters, problem)
        filtered, found = run_both(filter_of(problem), back, backend=backend, axis=axis)
        smoothed = _two_filters(found, cross, axis)
    else:
        every = _by_steps, _by_prefixes
        ways = (partial(way, cross=cross, held=held) for way in every)
        filtered, smoothed = by_backend(backend, *ways, problem)
    (means, covs, terms), (smoothed_means, spreads, lagged) = filtered, smoothed
    moments = means, Dense(covs), smoothed_means, Dense(spreads)
    found = *moments, None if lagged is None else Dense(lagged)
    return found, axis.total(jnp.sum(terms))


def _smooth_apart(
    problem: Problem, axis: TimeAxis, backend: Backend, cross: bool, held: Held
) -> tuple[tuple, Array]:
    """The same with the initial state kept apart."""

    def apart(problem: Problem) -> tuple[Filtered, Smoothed]:
        kept, (means, covs, evidence) = filter_apart(problem, axis, backend)
        found = smooth_apart(problem, kept, axis, backend)
        filtered = means, covs, evidence_of(problem, axis, evidence)
        return filtered, _two_filters(found, cross, axis)

    def exactly(problem: Problem) -> tuple[Filtered, Smoothed]:
        (means, covs, terms), found = smooth_exactly(problem, diffuse=True)
        return (means, covs, jnp.sum(terms)), _two_filters(found, cross)

    filtered, smoothed = unless_exact(held, apart, exactly, problem, axis)
    (means, covs, evidence), (smoothed_means, spreads, lagged) = filtered, smoothed
    moments = means, Dense(covs), smoothed_means, Dense(spreads)
    crosses = None if lagged is None else Dense(lagged)
    return (*moments, crosses), evidence


def _by_steps(problem: Problem, cross: bool, held: Held) -> tuple[Filtered, Smoothed]:
    """Filter and smooth by scans, in which way the model needs."""
    if held == "careful":
        return _exactly(problem, cross)
    few = reduced(problem)
    filtered, smoothed = smooth_quickly(few.problem, cross)
    quickly = few.completed(filtered), smoothed
    if held == "quick":
        return quickly
    exact = has_exact_emissions(problem, filtered[1])
    return lax.cond(
        # Not with the quick way as a branch: XLA compiles small loops in one piece
        # on a CPU, but not inside of a conditional, where they take ten times longer.
        anywhere(exact | has_exact_dynamics(problem, filtered[1])),
        lambda problem, _: _exactly(problem, cross),
        lambda _, quickly: quickly,
        problem,
        quickly,
    )


def _exactly(problem: Problem, cross: bool) -> tuple[Filtered, Smoothed]:
    filtered, found = smooth_exactly(problem)
    return filtered, _two_filters(found, cross)


def _by_prefixes(
    problem: Problem, cross: bool, held: Held
) -> tuple[Filtered, Smoothed]:
    """Return the same from prefix scans, or all at once where steps are alike."""
    general = partial(_all_prefixes, cross=cross, held=held)
    if held == "careful":
        return general(problem)
    return smooth_unless_alike(general, problem, cross)


def _all_prefixes(
    problem: Problem, cross: bool, held: Held
) -> tuple[Filtered, Smoothed]:
    filtered = filter_by_prefixes(held, problem)
    if held == "quick":
        return filtered, look_back_all(problem, filtered, cross, "associative")
    emissions = anywhere(has_exact_emissions(problem, filtered[1], ahead=True))
    dynamics = anywhere(has_exact_dynamics(problem, filtered[1]))
    which = jnp.where(emissions, 2, jnp.where(dynamics, 1, 0))
    ways = (
        partial(look_back_all, backend="associative", cross=cross),
        # A model that is known to need it is not left with a slower program.
        partial(_look_back, cross=cross, rare=held == "covariance"),
        lambda problem, _: _exactly(problem, cross)[1],
    )
    return filtered, lax.switch(which, ways, problem, filtered)


def _look_back(
    problem: Problem, filtered: Filtered, cross: bool, rare: bool
) -> Smoothed:
    back = two_filters(problem, filtered, rare=rare)
    return _two_filters(run(back, reverse=True, backend="associative"), cross)


def _two_filters(
    found: tuple[Array, Array, Array], cross: bool, axis: TimeAxis = LOCAL
) -> Smoothed:
    means, covs, into = found
    if not cross:
        return means, covs, None
    before = axis.shift(jnp.zeros_like(covs[0]), covs)
    return means, covs, matmul(before, transpose(into))
