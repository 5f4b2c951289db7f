"""What fitting a model to a series finds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._showing import arrays, named, number, show
from elk_ssm._types import Array
from elk_ssm.solution import Status

_MESSAGES = {
    Status.converged: "A further step would raise the objective by next to nothing.",
    Status.max_iters_reached: "The search was cut off; raise max_iters.",
    Status.nonfinite: (
        "The objective is not finite where the search begins; start elsewhere, or look "
        "at the series."
    ),
    Status.precision_limit: (
        "Rounding hides every rise that is left; use float64 if the slope is not small."
    ),
}


class ModelFit(NamedTuple):
    """A model fitted to a series.

    Attributes:
        model: The model at the optimum.
        standard_errors: Of every parameter by name, constrained, in its shape; NaN for
            one that is fixed, at a boundary, or where there is no maximum. Empty if not
            asked for.
        at_boundary: By name, whether a free parameter has gone where the likelihood
            does not feel it any more, such as a variance to zero; in its shape.
        log_likelihood: log p(y) at the optimum, `()`, without the prior; the diffuse
            one where a first state is diffuse (see `elk_ssm.Diffuse`).
        log_prior: At the optimum, `()`; zero without one.
        status: Value of an `elk_ssm.Status`: `converged`, `max_iters_reached`,
            `precision_limit` or `nonfinite`.
        num_iters: Steps of the search that led here, `()`.
        num_refused: Steps that it refused and halved, as the objective would have
            fallen or not been finite, `()`.
        slope_norm: Largest entry of the slope of the objective, `()`.
        objectives: log p(y) + log prior where every start led, `(num_starts,)`.
        num_observations: How many values were observed, `()`.
        emissions: The series, `(T, E)`, NaN where missing.
        inputs: As given, or `None`.
        gaps: Times between steps, `(T,)`, or `None`.
        times: As given, or `None`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.array([1.0, 1.4, 0.7, 2.2, 2.6, 1.9, 3.4, 3.1])
        >>> fitted = elk.fit(elk.models.local_level(), y)
        >>> bool(fitted.converged), sorted(fitted.parameters)
        (True, ['level.variance', 'noise.variance'])
    """

    model: Any
    standard_errors: dict[str, Array]
    at_boundary: dict[str, Array]
    log_likelihood: Array
    log_prior: Array
    status: Array
    num_iters: Array
    num_refused: Array
    slope_norm: Array
    objectives: Array
    num_observations: Array
    emissions: Array
    inputs: Any = None
    gaps: Array | None = None
    times: Any = None

    def __repr__(self) -> str:
        return show(
            "ModelFit",
            status=named(self.status, Status),
            num_iters=number(self.num_iters),
            log_likelihood=number(self.log_likelihood),
            model=repr(self.model),
            emissions=arrays(self.emissions),
        )

    @property
    def parameters(self) -> dict[str, Array]:
        """The parameters at the optimum by name, constrained."""
        return self.model.parameters

    @property
    def converged(self) -> Array:
        """Whether the search has converged, `()`."""
        return self.status == Status.converged

    @property
    def message(self) -> str:
        """What the status of one fit means."""
        return _MESSAGES[Status(int(self.status))]

    @property
    def num_parameters(self) -> int:
        """Free parameters, and diffuse dimensions of the first state."""
        free = sum(x.size for x in jax.tree.leaves(self.model.unconstrained))
        return free + self.model.num_diffuse

    @property
    def aic(self) -> Array:
        """Akaike's criterion, 2 k - 2 log p(y), `()`."""
        return 2 * self.num_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> Array:
        """The Bayesian criterion, k log n - 2 log p(y), `()`."""
        n = self.num_observations.astype(self.log_likelihood.dtype)
        return self.num_parameters * jnp.log(n) - 2 * self.log_likelihood
