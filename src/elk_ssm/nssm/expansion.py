r"""Linear-Gaussian expansions of a model around a trajectory, in increments.

Around x the increments d_t = z_t - x_t follow

    d_0 ~ N(m - x_0, P)
    d_t ~ N(F_t d_{t-1} + f_t - x_t, Q_t)             transitions
    rows_t: h_ti . d_t observed as v_ti with variance r_ti          emissions, see rows

*Taylor* takes f and h with their Jacobians at x. *Sigma points* take the mean, the
regression matrix and the covariance of its error under N(x_t, P_t), P_t the posterior
covariance of the last pass:

    xi_j, w_j with sum w xi xi' = I;  F = sum w f(x + S xi) xi' S^-1,  S S' = P
    Q <- Q + sum w (f - f_bar)(f - f_bar)' - F P F'
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.lgssm import pose as pose_model
from elk_ssm.kalman.observations import Factor, factor_of, log_normal
from elk_ssm.kalman.scalar_updates import Rows
from elk_ssm.kalman.smoothing import SmootherPosterior, lgssm_smoother, smooth_piece
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.structure import Dense, Diagonal, Operator, to_dense
from elk_ssm.nssm.densities import initial_term
from elk_ssm.nssm.posed import Posed, time_axis
from elk_ssm.nssm.rows import Weights, sigma_rows, taylor_rows
from elk_ssm.nssm.slopes import Linearization, regress, value_and_jacobian
from elk_ssm.parallel.backend import Backend


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
        first = initial_term(posed, self.first)
        axis = time_axis(self.covariance)
        covariance = self.covariance
        if axis == 0:
            covariance = covariance.like(posed.into(covariance.array))
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
    if not posed.axis.is_sharded:
        return lgssm_smoother(model, rows.values, mask=rows.observed, backend=backend)
    return smooth_piece(posed.axis, pose_model(*data), posed.exists, backend)


def expand(
    posed: Posed,
    states: Array,
    covariances: Array | None = None,
    linearization: Linearization = "taylor",
    *,
    emission_points: Array | None = None,
    kind: Weights = "positive",
) -> Expansion:
    """Expand a model around a trajectory.

    Args:
        posed: The model with its data.
        states: x, `(T, D)`.
        covariances: P_t, `(T, D, D)`, for sigma points.
        linearization: How.
        emission_points: Where to expand the emissions, if not at `states`.
        kind: What is done to the Newton weights of a log density; see `rows`.
    """
    points = states if emission_points is None else emission_points
    if linearization == "taylor":
        weights, means = _taylor_dynamics(posed, states)
        covariance = process_covariance(posed, states)
        rows = taylor_rows(posed, points, kind)
    else:
        assert covariances is not None
        if posed.exists is not None:
            eye = jnp.eye(states.shape[1], dtype=states.dtype)
            covariances = jnp.where(posed.exists[:, None, None], covariances, eye)
        roots = jax.vmap(square_root)(covariances)
        weights, means, excess = _sigma_dynamics(posed, states, roots, linearization)
        covariance = Dense(to_dense(process_covariance(posed, states)))
        covariance = covariance.add(Dense(excess))
        if posed.is_gaussian:
            rows = sigma_rows(posed, points, roots, linearization)
        else:
            rows = taylor_rows(posed, points, kind)
    offsets = posed.at_steps(means) - states
    return Expansion(
        posed.initial_mean - states[0],
        posed.initial_covariance,
        posed.at_steps(weights),
        offsets,
        covariance,
        rows,
    )


def process_covariance(posed: Posed, states: Array) -> Operator:
    """Return Q along a trajectory, static or with T entries; entry 0 is not used."""
    if posed.dynamics_covariance is not None:
        return posed.dynamics_covariance
    into = jax.vmap(lambda x, u: posed.call("dynamics_covariance", x, u))(
        posed.shift(states), posed.inputs_into
    )
    return Dense(posed.at_steps(into))


def _taylor_dynamics(posed: Posed, states: Array) -> tuple[Array, Array]:
    def one(state: Array, entry: PyTree) -> tuple[Array, Array]:
        return value_and_jacobian(lambda x: posed.call("dynamics", x, entry), state)

    means, weights = jax.vmap(one)(posed.shift(states), posed.inputs_into)
    return weights, means


def _sigma_dynamics(posed: Posed, states, roots, kind: Linearization):
    def one(state: Array, root: Array, entry: PyTree):
        return regress(lambda x: posed.call("dynamics", x, entry), state, root, kind)

    eye = jnp.eye(states.shape[1], dtype=states.dtype)
    weights, means, excess = jax.vmap(one)(
        posed.shift(states), posed.shift(roots, eye), posed.inputs_into
    )
    return weights, means, posed.at_steps(excess)
