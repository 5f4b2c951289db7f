r"""Filters and smoothers of steps that are all alike, at once.

Where neither the matrices of a model change nor values are missing, covariances do not
depend on the data, and those of the first n steps are found by doubling (see
`alike_covariances`); by then they rest, or the series ends. What is left are two
recursions with the same matrices, which are constant from the n-th step on,

    m_{t+1} = A_t m_t + F K_t z_t + c_{t+1}          A_t = F (I - K_t H)
    r_t     = A_t' r_{t+1} + H' S_t^{-1} (z_t - H m_t)

of predicted means and of what later values say (Durbin and Koopman, Time Series
Analysis by State Space Methods, section 4.4), and per step

    filtered   m^f_t = m_t + K_t (z_t - H m_t)
    smoothed   m^f_t + P_t F' r_{t+1}

Whether all steps are alike, covariances rest and digits are left is decided when the
program runs, for a whole batch. Derivatives are those of the general way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm._jax import batched_alike
from elk_ssm.kalman.affine import affine_scan
from elk_ssm.kalman.alike_covariances import Covariances, covariances, over_series
from elk_ssm.kalman.doubling import Step
from elk_ssm.kalman.factors import orthonormal, root_of, solve_lower
from elk_ssm.kalman.forward import Filtered
from elk_ssm.kalman.lgssm import Problem
from elk_ssm.kalman.repetition import affine_at_once
from elk_ssm.kalman.roundings import LOG_TWO_PI
from elk_ssm.linalg.small import matmul, matvec, transpose
from elk_ssm.linalg.structure import Dense, to_dense
from elk_ssm.parallel.anywhere import anywhere

# Of fewer dimensions a prefix scan is few kernels as it is; fewer steps are not worth
# it; and so many steps are in a table.
_SMALLEST, _SHORTEST, _TABLE = 4, 32, 512


class Emissions(NamedTuple):
    """What is seen, in units of its noise: rows H `(D, D)`, values z `(T, D)`.

    And what else is in the log densities of the steps, `(T,)`.
    """

    rows: Array
    values: Array
    terms: Array


def filter_unless_alike(
    general: Callable[[Problem], Filtered], problem: Problem
) -> Filtered:
    """Return what a filter does of a problem; all at once if its steps are alike."""
    return _unless_alike(general, problem, smooth=False, cross=False)


def smooth_unless_alike(
    general: Callable[[Problem], tuple[Filtered, Any]], problem: Problem, cross: bool
) -> tuple[Filtered, Any]:
    """Return what a filter and smoother do, all at once if steps are alike.

    Args:
        general: The filter and smoother.
        problem: A dense model with its data.
        cross: Whether Cov(z_{t-1}, z_t | y) is asked for, at entry t.
    """
    return _unless_alike(general, problem, smooth=True, cross=cross)


def _unless_alike(general: Callable, problem: Problem, **how: bool) -> Any:
    if not _may_be_alike(problem):
        return general(problem)

    @jax.custom_jvp
    def chosen(problem: Problem) -> Any:
        return batched_alike(_chosen(general, problem, how), problem)

    @chosen.defjvp
    def _chosen_jvp(primals: tuple, tangents: tuple) -> tuple:
        found, moved = jax.jvp(general, primals, tangents)
        return batched_alike(found, primals), moved

    return chosen(problem)


def _may_be_alike(problem: Problem) -> bool:
    moving = any(operator.varies for operator in problem.operators)
    if moving or problem.exists is not None:
        return False
    size = problem.initial_mean.shape[0]
    return size >= _SMALLEST and problem.num_steps >= _SHORTEST


def _chosen(general: Callable, problem: Problem, how: dict) -> Any:
    length = min(problem.num_steps, _TABLE)

    def prepared(problem: Problem) -> tuple[Emissions, Covariances]:
        seen, prior = _emissions(problem), to_dense(problem.initial_covariance)
        F, Q = to_dense(problem.weights), to_dense(problem.covariance)
        step = Step(F, Q, seen.rows)
        return seen, covariances(prior, step, problem.num_steps, length, **how)

    def nothing(problem: Problem) -> tuple[Emissions, Covariances]:
        shapes = jax.eval_shape(prepared, problem)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def at_once(problem: Problem, seen: Emissions, found: Covariances) -> Any:
        return (_smoothed if how["smooth"] else _filtered)(problem, seen, found)

    gaps = anywhere(~jnp.all(problem.observed))
    with jax.named_scope("covariances"):
        seen, found = lax.cond(gaps, nothing, prepared, problem)
    otherwise = lambda problem, *_: general(problem)  # noqa: E731
    operands = problem, seen, found
    with jax.named_scope("general"):
        return lax.cond(anywhere(~found.sound), otherwise, at_once, *operands)


def _emissions(problem: Problem) -> Emissions:
    """Return what is seen in units of its noise, of no more than D rows."""
    H, values = to_dense(problem.emission_weights), problem.values
    R, size = problem.emission_covariance, problem.initial_mean.shape[0]
    seen = values.shape[1]
    if R.mixes:
        root = root_of(to_dense(R))
        deviations = 1 / jnp.diagonal(root)
        both = solve_lower(root, jnp.append(H, values.T, axis=1))
        H, values = both[:, :size], both[:, size:].T
    else:
        deviations = 1 / jnp.sqrt(R.variances())
        H, values = deviations[:, None] * H, deviations * values
    terms = jnp.sum(jnp.log(deviations)) - seen * LOG_TWO_PI / 2
    terms = jnp.broadcast_to(terms, len(values))
    if seen < size:
        fill = [(0, 0), (0, size - seen)]
        return Emissions(jnp.pad(H.T, fill).T, jnp.pad(values, fill), terms)
    if seen > size:
        basis, H = orthonormal(H)
        few = matmul(values, basis)
        residual = values - matmul(few, transpose(basis))
        values, terms = few, terms - jnp.sum(residual**2, axis=1) / 2
    return Emissions(H, values, terms)


def _filtered(problem: Problem, seen: Emissions, found: Covariances) -> Filtered:
    return _forward(problem, seen, found)[0]


def _forward(
    problem: Problem, seen: Emissions, found: Covariances
) -> tuple[Filtered, Array]:
    """Return the filter, and W_t (z_t - H m_t), independent of variance one."""
    F, H, z = to_dense(problem.weights), seen.rows, seen.values
    steps, n = z.shape[0], len(found.filtered)
    drive = matvec(F, _over_time(found.gains, z))[:-1] + problem.offsets[1:]
    predicted = _affine(found, jnp.concatenate([problem.initial_mean[None], drive]))
    errors = z - matvec(H, predicted)
    means = predicted + _over_time(found.gains, errors)
    white = _over_time(found.halves, errors)
    logs = jnp.sum(jnp.log(jnp.diagonal(found.halves, 0, -2, -1)), axis=-1)
    logs = over_series(logs, steps, n)
    terms = seen.terms + logs - jnp.sum(white**2, axis=1) / 2
    covs = over_series(found.filtered, steps, n)
    return (means, covs, terms), white


def _smoothed(
    problem: Problem, seen: Emissions, found: Covariances
) -> tuple[Filtered, tuple[Array, Array, Array | None]]:
    filtered, white = _forward(problem, seen, found)
    steps, n, F = problem.num_steps, len(found.filtered), to_dense(problem.weights)
    said = matvec(transpose(seen.rows), _over_time(transpose(found.halves), white))
    later = _affine(found, said, reverse=True)
    later = jnp.concatenate([later[1:], jnp.zeros_like(later[:1])])
    means = filtered[0] + _over_time(found.filtered, matvec(transpose(F), later))
    assert found.smoothed is not None
    spreads, lagged = over_series(found.smoothed, steps, n), None
    if found.lagged is not None:
        lagged = over_series(found.lagged, steps, n)
    return filtered, (means, spreads, lagged)


def _over_time(matrices: Array, vectors: Array) -> Array:
    """Multiply T vectors by the matrices of the first n steps and then by the last."""
    n = len(matrices)
    head = matvec(matrices, vectors[:n])
    if len(vectors) == n:
        return head
    return jnp.concatenate([head, matvec(matrices[-1], vectors[n:])])


def _affine(found: Covariances, drive: Array, *, reverse: bool = False) -> Array:
    """Return x_t = A_{t-1} x_{t-1} + b_t, or in reverse x_t = A_t' x_{t+1} + b_t.

    Args:
        found: Has A_t.
        drive: b_t, `(T, D)`.
        reverse: The direction; the state that enters is zero.
    """
    maps, powers = found.maps, found.powers
    n, last = len(maps), maps[-1]
    into = Dense(jnp.concatenate([jnp.zeros_like(maps[:1]), maps[:-1]]))
    scan = partial(affine_scan, into, reverse=reverse, backend="associative")
    if powers is None:
        return scan(drive)
    head, rest = drive[:n], drive[n:]
    if reverse:
        rest = affine_at_once(powers, rest, reverse=True)
        head = head.at[-1].add(matvec(transpose(last), rest[0]))
        return jnp.concatenate([scan(head), rest])
    head = scan(head)
    rest = rest.at[0].add(matvec(last, head[-1]))
    return jnp.concatenate([head, affine_at_once(powers, rest)])
