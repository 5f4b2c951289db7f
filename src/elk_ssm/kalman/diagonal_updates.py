r"""Conditioning for dimensions that never mix: `scalar_updates` and `runs`, `(D,)` all.

Every dimension is a model of its own with one emission, so a variance that was taken
away by an exact observation is exactly zero, and evidence is a number J >= 0.
"""

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.elements import FilterElement
from elk_ssm.kalman.roundings import log_normal, reciprocal, slack_of
from elk_ssm.kalman.scalar_updates import Rows


def condition_diagonal(
    mean: Array, cov: Array, rows: Rows
) -> tuple[Array, Array, Array]:
    """Do `condition` for dimensions that never mix; all arrays `(D,)`."""
    h, r, z, ok = rows
    s = h * h * cov + r
    inverse = reciprocal(s, ok & (s > 0))
    error = z - h * mean
    kept = jnp.where(ok & (s > 0), r * inverse, 1.0)
    slack = slack_of(jnp.zeros_like(s), jnp.abs(z) + jnp.abs(h * mean))
    log_density = jnp.sum(log_normal(error, s, ok, slack))
    return mean + cov * h * inverse * error, kept * cov, log_density


def condition_element_diagonal(
    weights: Array, offset: Array, cov: Array, rows: Rows, scale: Array
) -> FilterElement:
    """Build the element of one step, x = F x_before + c + N(0, Q), and its emission.

    An exact observation of a state that is reached without noise would be infinite
    evidence J; it is given a variance that is next to nothing beside `scale`.
    """
    h, r, z, ok = rows
    a = h * h * cov
    tiny = lax.stop_gradient(jnp.finfo(a.dtype).eps ** 2 * scale * h * h)
    r = jnp.where(a + r < tiny, tiny, r)
    s = a + r
    inverse = reciprocal(s, ok & (s > 0))
    kept = jnp.where(ok & (s > 0), r * inverse, 1.0)
    error, back = z - h * offset, h * weights
    return FilterElement(
        A=kept * weights,
        b=offset + cov * h * inverse * error,
        C=kept * cov,
        eta=back * inverse * error,
        J=back * back * inverse,
    )


def condition_evidence_diagonal(
    mean: Array, cov: Array, eta: Array, J: Array
) -> tuple[Array, Array]:
    """Condition N(mean, cov) on evidence in information form."""
    gain = 1.0 / (1.0 + cov * J)
    return mean + gain * cov * (eta - J * mean), gain * cov
