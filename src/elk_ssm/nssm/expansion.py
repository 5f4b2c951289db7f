r"""Linear-Gaussian expansions of a model around a trajectory, in increments.

Around x the increments d_t = z_t - x_t follow

    d_0 ~ N(m - x_0, P)
    d_t ~ N(F_t d_{t-1} + f_t - x_t, Q_t)             transitions
    rows_t: h_ti . d_t observed as v_ti with variance r_ti, independent scalars

*Taylor* takes f and h with their Jacobians at x. *Sigma points* take the mean, the
regression matrix and the covariance of its error under N(x_t, P_t), P_t the posterior
covariance of the last pass:

    xi_j, w_j with sum w xi xi' = I;  F = sum w f(x + S xi) xi' S^-1,  S S' = P
    Q <- Q + sum w (f - f_bar)(f - f_bar)' - F P F'

A log density with gradient g and negative Hessian M in its predictor eta = h(z) enters
by Newton weights: M, made PSD, is L diag(c) L', its rows are L' H with variances 1 / c
and values L^-1 g / c. The surrogate then has the gradient of the true log density
whatever was done to M, so the fixed points do not move. A little of g g' is added to M
during the iteration: it is the scale that the density itself suggests (its mean is
the Fisher information) and keeps the step finite where the density is flat.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.backend import Backend
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.lgssm import pose as pose_model
from elk_ssm.kalman.scalar_updates import square_root
from elk_ssm.kalman.small_linalg import matmul
from elk_ssm.kalman.smoothing import SmootherPosterior, lgssm_smoother, smooth_piece
from elk_ssm.kalman.structure import Dense, Diagonal, Operator, to_dense
from elk_ssm.nssm.densities import (
    Factor,
    factor_of,
    log_normal,
    observed_factor,
    time_axis,
)
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.sigma import Linearization, regress

_OUTER_SHARE = 0.1


class Rows(NamedTuple):
    """Independent scalar observations of the increments.

    `weights: (T, K, D)`, `variances`, `values` and boolean `observed`, all `(T, K)`.
    """

    weights: Array
    variances: Array
    values: Array
    observed: Array


class Expansion(NamedTuple):
    """The linear-Gaussian model of the increments.

    Attributes:
        first: m - x_0, `(D,)`.
        initial_covariance: P, `(D, D)`.
        weights: F, `(T, D, D)`; entry 0 is not used.
        offsets: f_t - x_t, `(T, D)`; entry 0 is not used.
        covariance: Q, static or with T entries.
        rows: The observations.
    """

    first: Array
    initial_covariance: Array
    weights: Array
    offsets: Array
    covariance: Operator
    rows: Rows

    def with_rows(self, extra: Rows) -> "Expansion":
        """Append observations."""
        joined = (jnp.concatenate(pair, axis=1) for pair in zip(self.rows, extra))
        return self._replace(rows=Rows(*joined))

    def without_data(self) -> "Expansion":
        """Return the model whose posterior mean is zero: all residuals are zero."""
        values = jnp.zeros_like(self.rows.values)
        return self._replace(
            first=jnp.zeros_like(self.first),
            offsets=jnp.zeros_like(self.offsets),
            rows=self.rows._replace(values=values),
        )

    def model(self) -> LGSSM:
        """Return the `LGSSM`; its emissions are `rows.values`."""
        return LGSSM(
            initial_mean=self.first,
            initial_covariance=self.initial_covariance,
            dynamics_weights=Dense(self.weights),
            dynamics_covariance=self.covariance,
            emission_weights=Dense(self.rows.weights),
            emission_covariance=Diagonal(self.rows.variances),
            dynamics_bias=self.offsets,
        )

    def log_joint_at_zero(self, posed: Posed) -> Array:
        """Return the log density of no increments together with the rows' values."""
        first = log_normal(self.first, factor_of(Dense(self.initial_covariance)))
        if posed.axis.is_spread:
            first = jnp.where(posed.axis.place == 0, first, 0)
        axis = time_axis(self.covariance)
        covariance = self.covariance
        if axis == 0:
            covariance = type(covariance)(posed.into(covariance[0]))
        terms = jax.vmap(lambda r, Q: log_normal(r, factor_of(Q)), in_axes=(0, axis))(
            posed.into(self.offsets), covariance
        )
        rows = jax.vmap(lambda z, v, ok: log_normal(z, Factor(None, v), ok))(
            self.rows.values, self.rows.variances, self.rows.observed
        )
        terms = posed.masked(terms)
        return posed.axis.total(first + jnp.sum(terms) + jnp.sum(rows))


def posterior_of(
    posed: Posed, expansion: Expansion, backend: Backend
) -> SmootherPosterior:
    """Smooth an expansion, with what the other devices hold."""
    model, rows = expansion.model(), expansion.rows
    data = model, rows.values, None, rows.observed
    if not posed.axis.is_spread:
        return lgssm_smoother(model, rows.values, mask=rows.observed, backend=backend)
    return smooth_piece(posed.axis, pose_model(*data), posed.exists, backend)


def expand(
    posed: Posed,
    states: Array,
    covariances: Array | None = None,
    linearization: Linearization = "taylor",
    *,
    emission_points: Array | None = None,
    iterating: bool = True,
) -> Expansion:
    """Expand a model around a trajectory.

    Args:
        posed: The model with its data.
        states: x, `(T, D)`.
        covariances: P_t, `(T, D, D)`, for sigma points.
        linearization: How.
        emission_points: Where to expand the emissions, if not at `states`.
        iterating: Whether Newton weights are kept positive for the sake of the step.
    """
    points = states if emission_points is None else emission_points
    if linearization == "taylor":
        weights, means = _taylor_dynamics(posed, states)
        covariance = _process_covariance(posed, states)
        rows = _taylor_rows(posed, points, iterating)
    else:
        assert covariances is not None
        if posed.exists is not None:
            eye = jnp.eye(states.shape[1], dtype=states.dtype)
            covariances = jnp.where(posed.exists[:, None, None], covariances, eye)
        roots = jax.vmap(square_root)(covariances)
        weights, means, excess = _sigma_dynamics(posed, states, roots, linearization)
        covariance = Dense(to_dense(_process_covariance(posed, states)) + excess)
        if posed.is_gaussian:
            rows = _sigma_rows(posed, points, roots, linearization)
        else:
            rows = _taylor_rows(posed, points, iterating)
    offsets = posed.at_steps(means) - states
    return Expansion(
        posed.initial_mean - states[0],
        posed.initial_covariance,
        posed.at_steps(weights),
        offsets,
        covariance,
        rows,
    )


def _process_covariance(posed: Posed, states: Array) -> Operator:
    if posed.dynamics_covariance is not None:
        return posed.dynamics_covariance
    into = jax.vmap(lambda x, u: posed.call("dynamics_covariance", x, u))(
        posed.before(states), posed.inputs_into
    )
    return Dense(posed.at_steps(into))


def _taylor_dynamics(posed: Posed, states: Array) -> tuple[Array, Array]:
    def one(state: Array, entry: PyTree) -> tuple[Array, Array]:
        return value_and_jacobian(lambda x: posed.call("dynamics", x, entry), state)

    means, weights = jax.vmap(one)(posed.before(states), posed.inputs_into)
    return weights, means


def value_and_jacobian(function, point: Array) -> tuple[Array, Array]:
    """Return f(x) and df/dx, by one linearisation."""
    value, push = jax.linearize(function, point)
    basis = jnp.eye(point.shape[0], dtype=point.dtype)
    return value, jax.vmap(push, out_axes=-1)(basis)


def _taylor_rows(posed: Posed, points: Array, iterating: bool) -> Rows:
    covariance = posed.emission_covariance
    axes = (0, 0, time_axis(covariance), 0, 0)
    data = (points, posed.inputs, covariance, posed.values, posed.observed)
    return jax.vmap(partial(step_rows, posed, iterating=iterating), axes)(*data)


def step_rows(
    posed: Posed,
    point: Array,
    entry: PyTree,
    covariance: Operator | None,
    value: Array,
    observed: Array,
    iterating: bool = True,
) -> Rows:
    """Expand the emission of one step around a state `(D,)`."""
    mean, H = value_and_jacobian(lambda x: posed.call("emission", x, entry), point)
    if not posed.is_gaussian:
        return _newton_rows(posed, mean, H, entry, value, observed[0], iterating)
    if covariance is None:
        covariance = Dense(posed.call("emission_covariance", point, entry))
    return _gaussian_rows(covariance, H, value - mean, observed)


def _gaussian_rows(
    covariance: Operator, H: Array, residual: Array, observed: Array
) -> Rows:
    factor = observed_factor(covariance, observed)
    residual = jnp.where(observed, residual, 0)
    return Rows(factor.turn_rows(H), factor.variances, factor.turn(residual), observed)


def _newton_rows(posed, eta, H, entry, value, observed, iterating: bool) -> Rows:
    def density(eta: Array) -> Array:
        return posed.call("log_density", eta, value, entry)

    gradient = jax.grad(density)(eta)
    matrix = -jax.hessian(density)(eta)
    if iterating:
        outer = gradient[:, None] * gradient
        factors, pivots = modified_factors(matrix, replace=True)
        # Of the factored matrix, so that its range contains the gradient.
        matrix = matmul(factors * pivots, factors.T) + _OUTER_SHARE * outer
    factors, pivots = modified_factors(matrix, replace=False)
    ok = observed & (pivots > 0)
    weights = matmul(factors.T, H)
    values = _forward_substitute(factors, gradient)
    variances = jnp.where(ok, 1 / jnp.where(ok, pivots, 1), 1)
    return Rows(weights, variances, jnp.where(ok, values * variances, 0), ok)


def modified_factors(matrix: Array, *, replace: bool) -> tuple[Array, Array]:
    """Factor a symmetric matrix as L diag(c) L', L unit lower triangular, c >= 0.

    A PSD matrix is factored as it is. Otherwise pivots are changed as by Gill and
    Murray (Nocedal & Wright 2006, section 3.4) if `replace`, and else dropped: the
    result is then PSD with a zero row.
    """
    size = matrix.shape[0]
    index = jnp.arange(size)
    diagonal = jnp.max(jnp.abs(jnp.diagonal(matrix)))
    off = jnp.max(jnp.abs(matrix - jnp.diag(jnp.diagonal(matrix))))
    bound = jnp.maximum(diagonal, off / max(1.0, (size**2 - 1) ** 0.5))
    bound = jnp.where(bound > 0, bound, 1)
    rest, columns, pivots = matrix, [], []
    for k in range(size):
        below = jnp.where(index > k, rest[:, k], 0)
        pivot = rest[k, k]
        if replace:
            # Negative curvature counts by its size; a flat direction stays flat.
            largest = jnp.max(jnp.abs(below))
            pivot = jnp.maximum(jnp.abs(pivot), largest**2 / bound)
        else:
            pivot = jnp.where(pivot > 8 * jnp.finfo(matrix.dtype).eps * bound, pivot, 0)
        ratio = jnp.where(pivot > 0, below / jnp.where(pivot > 0, pivot, 1), 0)
        column = ratio + (index == k)
        rest = rest - pivot * column[:, None] * column
        columns.append(column)
        pivots.append(pivot)
    return jnp.stack(columns, axis=1), jnp.stack(pivots)


def _forward_substitute(lower: Array, vector: Array) -> Array:
    """Solve L x = vector, L unit lower triangular."""
    for k in range(vector.shape[0]):
        column = jnp.where(jnp.arange(vector.shape[0]) > k, lower[:, k], 0)
        vector = vector - column * vector[k]
    return vector


def _sigma_dynamics(posed: Posed, states, roots, kind: Linearization):
    def one(state: Array, root: Array, entry: PyTree):
        return regress(lambda x: posed.call("dynamics", x, entry), state, root, kind)

    eye = jnp.eye(states.shape[1], dtype=states.dtype)
    weights, means, excess = jax.vmap(one)(
        posed.before(states), posed.before(roots, eye), posed.inputs_into
    )
    return weights, means, posed.at_steps(excess)


def _sigma_rows(posed: Posed, points: Array, roots: Array, kind: Linearization) -> Rows:
    def one(state, root, entry, covariance, value, observed) -> Rows:
        H, mean, excess = regress(
            lambda x: posed.call("emission", x, entry), state, root, kind
        )
        if covariance is None:
            covariance = Dense(posed.call("emission_covariance", state, entry))
        total = Dense(to_dense(covariance) + excess)
        return _gaussian_rows(total, H, value - mean, observed)

    covariance = posed.emission_covariance
    axes = (0, 0, 0, time_axis(covariance), 0, 0)
    data = (points, roots, posed.inputs, covariance, posed.values, posed.observed)
    return jax.vmap(one, in_axes=axes)(*data)
