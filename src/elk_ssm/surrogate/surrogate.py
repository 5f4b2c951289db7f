r"""The linear-Gaussian surrogate of a recurrence around an iterate.

Around the iterate y, with A_t a stand-in for the Jacobian of f at y_{t-1},

    x_t | x_{t-1} ~ N(f(y_{t-1}, u_t) + A_t (x_{t-1} - y_{t-1}),  q I)    x_0 known
    y_t | x_t     ~ N(x_t, q s_t^2)                                       the iterate

Its filtered or smoothed mean is the next iterate of ELK; with s^2 = inf it is DEER's.
The means depend on s^2 only. The process variance q scales the covariances; unless it
is given it is estimated from the iterate as the mean squared residual, its
maximum-likelihood value, so that the bands shrink to nothing as the iteration
converges.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._showing import held, number
from elk_ssm._trees import static
from elk_ssm._types import Array
from elk_ssm.kalman.damped import (
    Marginals,
    damped_evidence,
    damped_filter,
    damped_smoother,
)
from elk_ssm.linalg.structure import Dense, Diagonal, Operator
from elk_ssm.parallel.backend import Backend

if TYPE_CHECKING:
    from elk_ssm.kalman.lgssm import LGSSM


class Posterior(NamedTuple):
    """Gaussian marginals over the flattened states.

    Attributes:
        means: Shape `(T, D)`.
        covariances: `Dense` of `(T, D, D)` or `Diagonal` of `(T, D)`.
        log_likelihood: Log-likelihood of the iterate under the surrogate, `()`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.zeros((9, 2))
        >>> model = elk.linearize(
        ...     lambda x, u: 0.5 * x + u, y, y + 1, initial_state=y[0], noise=1.0
        ... )
        >>> posterior = model.smooth()
        >>> posterior.means.shape, posterior.standard_deviations.shape
        ((9, 2), (9, 2))
    """

    means: Array
    covariances: Operator
    log_likelihood: Array

    def __repr__(self) -> str:
        likelihood = number(self.log_likelihood)
        return held(self, "means", "covariances", log_likelihood=likelihood)

    @property
    def standard_deviations(self) -> Array:
        """Marginal standard deviations, shape `(T, D)`."""
        return jnp.sqrt(self.covariances.variances())


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Surrogate:
    """The model of the module docstring; made by `elk_ssm.linearize`.

    Attributes:
        values: f(y_{t-1}, u_t), shape `(T, D)`.
        operator: A_t in the structure of the linearisation, such as `Dense` of
            `(T, D, D)` or `Diagonal` of `(T, D)`.
        iterate: y_t, shape `(T, D)`.
        initial: x_0, shape `(D,)`.
        noise: s_t^2 in units of q, shape `(T, D)`, `inf` where the iterate is not
            believed at all.
        process_variance: q, scalar, or `(T,)` to scale the covariance of each step.
        layout: How the user's state maps to the flat one.
        backend: Which scans run.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.zeros((9, 2))
        >>> model = elk.linearize(
        ...     lambda x, u: 0.5 * x + u, y, y + 1, initial_state=y[0], noise=1.0
        ... )
        >>> model.residual.shape, model.filter().means.shape
        ((9, 2), (9, 2))
        >>> exact = model.replace(noise=jnp.full((9, 2), jnp.inf)).smooth().means
        >>> exact[:2, 0].tolist()  # f is linear: one step without noise is the answer
        [1.0, 1.5]
    """

    values: Array
    operator: Operator
    iterate: Array
    initial: Array
    noise: Array
    process_variance: Array
    layout: Any = static(default=None)
    backend: Backend = static(default="auto")

    def __repr__(self) -> str:
        q = number(self.process_variance)
        shown = {"noise": number(self.noise), "process_variance": q}
        return held(self, "iterate", "operator", **shown)

    @property
    def residual(self) -> Array:
        """x_t - f(x_{t-1}, u_t) of the iterate, shape `(T, D)`."""
        return self.iterate - self.values

    def filter(self) -> Posterior:
        """Filtered marginals p(x_t | y_1, ..., y_t): the step of filter-ELK."""
        increments = damped_filter(
            self.operator, -self.residual, self.noise, backend=self.backend
        )
        return self._posterior(increments, self._log_likelihood(increments))

    def smooth(self) -> Posterior:
        """Smoothed marginals p(x_t | y_1, ..., y_T): the Levenberg-Marquardt step."""
        offsets = -self.residual
        smoothed = damped_smoother(
            self.operator, offsets, self.noise, backend=self.backend
        )
        return self._posterior(smoothed, self.log_likelihood())

    def log_likelihood(self) -> Array:
        """Log-likelihood of the iterate as observation of the surrogate, `()`."""
        return self._log_likelihood(
            damped_filter(
                self.operator, -self.residual, self.noise, backend=self.backend
            )
        )

    def _log_likelihood(self, filtered: Marginals) -> Array:
        evidence = damped_evidence(self.operator, -self.residual, self.noise, filtered)
        q = jnp.mean(self.process_variance)
        # q is zero for an iterate that is exact: the density is then infinite.
        known = q > 0
        fit = jnp.where(known, evidence.mahalanobis / jnp.where(known, q, 1), 0)
        volume = evidence.observed.astype(q.dtype) * jnp.log(2 * jnp.pi * q)
        volume = jnp.where(evidence.observed > 0, volume, 0)
        return -(fit + volume + evidence.log_det) / 2

    def _posterior(self, increments: Marginals, log_likelihood: Array) -> Posterior:
        covariances = increments.covariances.scaled(self.process_variance)
        return Posterior(self.iterate + increments.means, covariances, log_likelihood)

    def unravel(self, flat: Array) -> Any:
        """Turn flat states `(..., D)` into the floating-point leaves of the state."""
        return flat if self.layout is None else self.layout.unravel(flat)

    def replace(self, **changes: Any) -> "Surrogate":
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def to_lgssm(self) -> "tuple[LGSSM, Array]":
        """Write the surrogate as a general model in absolute states, with emissions.

        Returns:
            The `LGSSM` and its emissions y, NaN where `noise` is infinite.
        """
        from elk_ssm.kalman.lgssm import LGSSM

        q, size = jnp.mean(self.process_variance), self.initial.shape[0]
        before = jnp.concatenate([self.initial[None], self.iterate[:-1]])
        bias = self.values - self.operator.mv(before)
        eye = jnp.eye(size, dtype=q.dtype)
        seen = jnp.isfinite(self.noise)
        return LGSSM(
            initial_mean=self.values[0],
            initial_covariance=q * eye,
            dynamics_weights=Dense(self.operator.to_dense()),
            dynamics_covariance=q * eye,
            emission_weights=eye,
            emission_covariance=Diagonal(jnp.where(seen, q * self.noise, q)),
            dynamics_bias=bias,
        ), jnp.where(seen, self.iterate, jnp.nan)
