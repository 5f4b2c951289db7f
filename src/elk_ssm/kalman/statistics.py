r"""Expected sufficient statistics of a linear-Gaussian model, for its M-step.

Both equations of the model are regressions, of z_t on (z_{t-1}, u_t, 1) and of y_t on
(z_t, u_t, 1). With the residual r = y - W x of the present weights W, all that an
M-step needs of one is

    S = sum E[r r'],      G = sum E[r x'],      X = sum E[x x'],      n,

expectations over the smoothed states. For new weights W + V the first becomes
S - V G' - G V' + V X V'. Around the present weights nothing large cancels where the
weights hardly move any more, and a series may be far from zero.

The sum runs over the steps up to the last one at which something was observed: what
comes after says nothing, and the likelihood of the rest is the same without it. Series
of unequal lengths are padded with missing steps, so that nothing is lost by padding.
Missing entries of a step are completed, see `completion`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.completion import (
    Completed,
    GapRows,
    Gaps,
    completed,
    without_infinite,
)
from elk_ssm.kalman.form import Held
from elk_ssm.kalman.lgssm import LGSSM, emission_dim, pose
from elk_ssm.kalman.smoothing import SmootherPosterior, smooth_problem
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import Operator, as_operator
from elk_ssm.parallel.backend import Backend


class Regression(NamedTuple):
    """Sums over steps of one of a model's two equations, around its present weights.

    Attributes:
        squares: E[r r'], `(N, N)`.
        slopes: E[r x'], `(N, K)`.
        regressors: E[x x'], `(K, K)`.
        num_steps: Number of steps, `()`.
    """

    squares: Array
    slopes: Array
    regressors: Array
    num_steps: Array


class Start(NamedTuple):
    """The smoothed first state of every series: means `(S, D)`, mean covariance."""

    means: Array
    covariance: Array


class Statistics(NamedTuple):
    """What an M-step needs; `None` for an equation of which nothing is asked."""

    log_likelihood: Array
    start: Start
    dynamics: Regression | None
    emission: Regression | None


class Series(NamedTuple):
    """S series of T steps of one model.

    Attributes:
        emissions: `(S, T, E)`.
        inputs: `(S, T, U)`, or `None`.
        observed: `(S, T, E)`.
        gaps: Those of the `S T` steps that are incomplete, `None` if there are none.
    """

    emissions: Array
    inputs: Array | None
    observed: Array
    gaps: Gaps | None

    @property
    def counted(self) -> Array:
        """The steps up to the last with an observation, `(S, T)` boolean."""
        some = jnp.any(self.observed, axis=2)
        return jnp.flip(jnp.cumsum(jnp.flip(some, 1), axis=1), 1) > 0


class _Found(NamedTuple):
    """The series as posed and smoothed.

    `offsets: (S, T, D)`, `values` and `observed: (S, T, E)` are those of a `Problem`,
    `drive: (S, T, U + 1)` the inputs and a one, `counted: (S, T)`.
    """

    offsets: Array
    values: Array
    observed: Array
    posterior: SmootherPosterior
    drive: Array
    counted: Array


def expected_statistics(
    model: LGSSM,
    series: Series,
    equations: tuple[bool, bool],
    how: tuple[Held, Backend],
) -> Statistics:
    """Smooth the series and sum up.

    Args:
        model: The model.
        series: The series.
        equations: Whether the statistics of dynamics and emission are asked for.
        how: How it is held and the backend of the smoother.
    """
    form, backend = how

    def smoothed(entry: tuple) -> tuple:
        problem = pose(model, *entry)
        posterior = smooth_problem(problem, backend, True, None, form)
        return problem.offsets, problem.values, problem.observed, posterior

    entries = series.emissions, series.inputs, series.observed
    if series.emissions.shape[0] == 1:
        found = smoothed(jax.tree.map(lambda x: x[0], entries))
        found = jax.tree.map(lambda x: jnp.asarray(x)[None], found)
    else:
        found = jax.vmap(smoothed)(entries)
    offsets, values, observed, posterior = found
    ones = jnp.ones((*values.shape[:2], 1), values.dtype)
    inputs = ones[..., :0] if series.inputs is None else series.inputs
    drive = jnp.concatenate([inputs.astype(ones.dtype), ones], axis=-1)
    every = _Found(offsets, values, observed, posterior, drive, series.counted)
    covariances = posterior.smoothed_covariances
    first = covariances.like(jnp.mean(covariances.array[:, 0], axis=0)).to_dense()
    return Statistics(
        jnp.sum(posterior.log_likelihood),
        Start(posterior.smoothed_means[:, 0], first),
        _dynamics(model, every) if equations[0] else None,
        _emission(model, every, series.gaps) if equations[1] else None,
    )


def _dynamics(model: LGSSM, found: _Found) -> Regression:
    F = as_operator(model.dynamics_weights, model.state_dim, "dynamics_weights")
    F = F.at(slice(1, None))
    posterior, counted = found.posterior, found.counted[:, 1:]
    before, after = posterior.smoothed_means[:, :-1], posterior.smoothed_means[:, 1:]
    residuals = after - matvec(F.to_dense(), before) - found.offsets[:, 1:]
    around = _regression(residuals, (before, found.drive[:, 1:]), counted)
    spreads, lagged = posterior.smoothed_covariances, posterior.cross_covariances
    assert lagged is not None
    P = spreads.like(spreads.array[:, :-1])
    (FP, FPF), (FC, _) = (_through(F, x, counted) for x in (P, lagged))
    later = _total(spreads.like(spreads.array[:, 1:]), counted)
    spread = later - FC - transpose(FC) + FPF
    across = transpose(_total(lagged, counted)) - FP
    return _spread(around, spread, across, _total(P, counted))


def _emission(model: LGSSM, found: _Found, gaps: Gaps | None) -> Regression:
    E, D = emission_dim(model), model.state_dim
    H = as_operator(model.emission_weights, D, "emission_weights")
    R = as_operator(model.emission_covariance, E, "emission_covariance")
    means, counted = found.posterior.smoothed_means, found.counted
    gap = found.values - matvec(H.to_dense(), means)
    residuals = jnp.where(found.observed, gap, 0)
    spreads = found.posterior.smoothed_covariances
    if gaps is None:
        HP, HPH = _through(H, spreads, counted)
        spread, across = HPH, -HP
    elif R.mixes:
        left = residuals, without_infinite(R), gaps
        residuals, spread, across = _completed(H, found, *left)
    else:
        spread, across = _independent(H, without_infinite(R), found)
    around = _regression(residuals, (means, found.drive), counted)
    return _spread(around, spread, across, _total(spreads, counted))


def _completed(
    H: Operator, found: _Found, residuals: Array, R: Operator, gaps: Gaps
) -> Completed:
    """Complete the steps with gaps, and sum over all of them."""
    spreads, rows = found.posterior.smoothed_covariances, gaps.rows
    shape = residuals.shape
    flat = residuals.reshape(-1, shape[2])
    place = jnp.unravel_index(rows, shape[:2])
    weights = H.to_dense()
    own = weights[place[1]] if H.varies else weights
    own = jnp.broadcast_to(own, (rows.shape[0], *weights.shape[-2:]))
    covariances = spreads.like(spreads.array[place]).to_dense()
    given = GapRows(flat[rows], own, covariances, found.counted[place])
    filled = completed(gaps, R, given)
    HP, HPH = _through(H, spreads, found.counted.at[place].set(False))
    residuals = flat.at[rows].set(filled.residuals).reshape(shape)
    return Completed(residuals, HPH + filled.spread, filled.across - HP)


def _independent(H: Operator, R: Operator, found: _Found) -> tuple[Array, Array]:
    """Return spread and across of independent entries; the first is a diagonal."""
    seen = found.observed & found.counted[..., None]
    missing = found.counted[..., None] & ~seen
    spreads, weights = found.posterior.smoothed_covariances.to_dense(), H.to_dense()
    if H.varies:
        HP = jnp.where(seen[..., None], matmul(weights, spreads), 0)
        across = jnp.sum(HP, axis=(0, 1))
        spread = jnp.sum(HP * weights, axis=(0, 1, 3))
    else:
        flat = spreads.reshape(-1, weights.shape[1] ** 2)
        chosen = seen.reshape(-1, weights.shape[0]).astype(flat.dtype)
        each = matmul(transpose(chosen), flat).reshape(*weights.shape, -1)
        across = matvec(each, weights)
        spread = jnp.sum(across * weights, axis=1)
    spread = spread + R.variances() * jnp.sum(missing, axis=(0, 1))
    return jnp.diag(spread), -across


def _regression(
    residuals: Array, regressors: tuple[Array, Array], counted: Array
) -> Regression:
    """Sum products of means, `(S, T, N)` and `(S, T, K)`, over steps that count."""
    x = jnp.concatenate(regressors, axis=-1)
    r, x = (
        jnp.where(counted[..., None], part, 0).reshape(-1, part.shape[-1])
        for part in (residuals, x)
    )
    products = matmul(transpose(r), r), matmul(transpose(r), x), matmul(transpose(x), x)
    return Regression(*products, jnp.sum(counted).astype(r.dtype))


def _spread(around: Regression, squares: Array, slopes: Array, P: Array) -> Regression:
    """Add what the covariances of the states add to products of their means."""
    size = P.shape[0]
    return around._replace(
        squares=symmetrize(around.squares + squares),
        slopes=around.slopes.at[:, :size].add(slopes),
        regressors=around.regressors.at[:size, :size].add(P),
    )


def _total(operators: Operator, counted: Array) -> Array:
    """Sum matrices over the `(S, T)` that count, as a full one."""
    shape = (*counted.shape, *[1] * operators.axes)
    kept = jnp.where(counted.reshape(shape), operators.array, 0)
    return operators.like(jnp.sum(kept, axis=(0, 1))).to_dense()


def _through(weights: Operator, inner: Operator, counted: Array) -> tuple[Array, Array]:
    """Return the sums of W X and W X W' over the `(S, T)` that count."""
    if not weights.varies:
        left, total = weights.to_dense(), _total(inner, counted)
        once = matmul(left, total)
        return once, matmul(once, transpose(left))
    left = weights.to_dense()
    once = jnp.where(counted[..., None, None], matmul(left, inner.to_dense()), 0)
    twice = matmul(once, transpose(left))
    return jnp.sum(once, axis=(0, 1)), jnp.sum(twice, axis=(0, 1))
