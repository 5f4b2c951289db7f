r"""What was observed, and what missing means.

An entry is missing that is NaN or False in a mask. It is made independent of the others
and has variance one, so that a covariance C of what is there is decorrelated by
elimination (no LAPACK call), and it is left out of every sum: with V C V' = diag(v) and
w = V r,

    log N(r; 0, C) = -1/2 sum_i (w_i^2 / v_i + log 2 pi v_i)         i observed.

Another log density sees a step as a whole: one with a missing entry is missing, and
what it counts is steps, not entries.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from elk_ssm._jax import deliberate_nans
from elk_ssm.kalman.checks import check_emissions
from elk_ssm.kalman.scalar_updates import Rows
from elk_ssm.kalman.whitening import isolated, whiten
from elk_ssm.linalg.small import inverse_of, matmul, matvec, raised
from elk_ssm.linalg.structure import Operator


class Factor(NamedTuple):
    """`inverse @ C @ inverse.T = diag(variances)`; no `inverse` for diagonals."""

    inverse: Array | None
    variances: Array

    def whiten(self, vector: Array) -> Array:
        """Decorrelate a vector `(E,)`."""
        return vector if self.inverse is None else matvec(self.inverse, vector)

    def whiten_rows(self, matrix: Array) -> Array:
        """Decorrelate the rows of a matrix `(E, D)`."""
        return matrix if self.inverse is None else matmul(self.inverse, matrix)


def factor_of(covariance: Operator) -> Factor:
    """Decorrelate one covariance."""
    if not covariance.mixes:
        return Factor(None, covariance.variances())
    return Factor(*whiten(covariance.to_dense()))


def log_normal(residual: Array, factor: Factor, observed: Any = True) -> Array:
    """Return log N(residual; 0, C), over the observed entries."""
    terms = factor.whiten(residual) ** 2 * inverse_of(factor.variances)
    terms = terms + jnp.log(2 * jnp.pi * factor.variances)
    return -0.5 * jnp.sum(jnp.where(observed, terms, 0))


class Observations(NamedTuple):
    """Emissions of all steps, or of one step without the time axis.

    Attributes:
        values: `(T, E)`, finite; what is missing holds a stand-in.
        observed: `(T, E)` boolean, or `(T, 1)` where steps are seen as a whole.
    """

    values: Array
    observed: Array

    @classmethod
    def of(cls, emissions: Array, mask: Any, *, whole: bool = False) -> "Observations":
        """Find what is missing in `(T, E)`: NaN, and False in a mask.

        Raises:
            ValueError: The mask is neither `(T, E)` nor `(T,)`, or what is observed is
                infinite.
            TypeError: The mask is not boolean.
        """
        observed = ~jnp.isnan(emissions) & _checked(mask, emissions.shape)
        check_emissions(emissions, observed)
        if not whole:
            return cls(jnp.where(observed, emissions, 0), observed)
        observed = jnp.all(observed, axis=1, keepdims=True)
        # A log density may be undefined at zero: a value that occurs is a safe
        # stand-in. Picked by a sum: indexing would gather emissions that are sharded.
        first = jnp.arange(observed.shape[0])[:, None] == jnp.argmax(observed[:, 0])
        stand_in = jnp.sum(jnp.where(first & observed, emissions, 0), axis=0)[None]
        return cls(jnp.where(observed, emissions, stand_in), observed)

    def only(self, condition: Array) -> "Observations":
        """Count what does not fulfil a condition as missing too."""
        condition = raised(condition, self.observed.ndim)
        return self._replace(observed=self.observed & condition)

    def minus(self, means: Array) -> "Observations":
        """Return what is left when the means are subtracted; zero where missing."""
        left = jnp.where(self.observed, self.values - means, 0)
        return self._replace(values=left)

    def num_observed(self) -> Array:
        """Return how many entries were observed, or steps, `()`, as a real number."""
        return jnp.sum(self.observed, dtype=self.values.dtype)

    # ------------------------------------------------------------------ of one step

    def whitened(self, mean: Array, weights: Array, covariance: Operator) -> Rows:
        """Return them as independent scalars, less their mean; weights are `(E, D)`."""
        factor = factor_of(isolated(covariance, self.observed))
        values = factor.whiten(self.minus(mean).values)
        rows = factor.whiten_rows(weights)
        return Rows(rows, factor.variances, values, self.observed)

    def log_normal(self, mean: Array, covariance: Operator) -> Array:
        """Return log N(values; mean, covariance)."""
        factor = factor_of(isolated(covariance, self.observed))
        return log_normal(self.minus(mean).values, factor, self.observed)

    def log_density(self, density: Callable[[Array], Array]) -> Array:
        """Return another log density of a step; zero if it is missing."""
        return jnp.where(self.observed[0], density(self.values), 0)


def array_with_gaps(emissions: Any, dtype: Any = None) -> Array:
    """Return emissions as an array, in which NaN mark what is missing."""
    try:
        with deliberate_nans():
            return jnp.asarray(emissions, dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "emissions must be an array of numbers, rows of one length, NaN where "
            f"missing; got {type(emissions).__name__}."
        ) from error


def _checked(mask: Any, shape: tuple[int, ...]) -> Any:
    """Return a mask that fits emissions of this shape, or say what is wrong with it."""
    if mask is None:
        return True
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean, True = observed; got {mask.dtype}.")
    if mask.shape not in (shape, shape[:1]):
        raise ValueError(
            f"mask must have shape {shape} or {shape[:1]}; got {mask.shape}."
        )
    return mask if mask.ndim == 2 else mask[:, None]
