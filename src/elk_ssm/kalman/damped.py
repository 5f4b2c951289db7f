r"""Filter and smoother of the damped affine recurrence, in increments.

    d_t | d_{t-1} ~ N(A_t d_{t-1} + b_t, I),      t = 1, ..., T,   d_0 = 0 known
    0   | d_t     ~ N(d_t, diag(s_t^2))

This is the linear-Gaussian surrogate of a nonlinear recurrence, written for the
difference between its state and the point of linearisation: the pseudo-observation of
"stay where you are" is then zero, and so is the answer once the iteration has
converged, which is what lets float32 reach its rounding floor. The process variance is
one; a common factor q on both variances scales the covariances by q and leaves the
means alone. `s_t^2 = inf` is a missing observation.

Covariances are propagated in covariance form: information and block-tridiagonal forms
lose all accuracy in float32 once s^2 exceeds about 1e6. Observations are diagonal, so
the update conditions on one dimension after another and needs no factorisation. The
smoother is Rauch-Tung-Striebel with the covariance in Joseph form,

    G_t = P_t A_{t+1}^T (A_{t+1} P_t A_{t+1}^T + I)^{-1}
    P_t^s = (I - G_t A_{t+1}) P_t (I - G_t A_{t+1})^T + G_t (I + P_{t+1}^s) G_t^T,

a sum of positive semi-definite terms. The associative versions follow Saerkkae and
Garcia-Fernandez (2021), equations 10 to 20.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.affine import apply
from elk_ssm.kalman.damped_steps import (
    Evidence,
    Marginals,
    condition,
    congruence,
    predict,
    smoother_gain,
)
from elk_ssm.kalman.elements import (
    FilterElement,
    SmootherElement,
    combine_filter_dense,
    combine_filter_diagonal,
    combine_smoother_dense,
    combine_smoother_diagonal,
)
from elk_ssm.linalg.small import matmul
from elk_ssm.linalg.structure import Dense, Diagonal, Operator, to_dense
from elk_ssm.parallel.backend import Backend, by_backend
from elk_ssm.parallel.prefix import prefix_scan

__all__ = [
    "Evidence",
    "Marginals",
    "damped_evidence",
    "damped_filter",
    "damped_filter_means",
    "damped_smoother",
]


def damped_filter(
    operator: Operator, offsets: Array, noise: Array, *, backend: Backend
) -> Marginals:
    """Filter: p(d_t | pseudo-observations up to t).

    Args:
        operator: A_1, ..., A_T, `Dense` of `(T, D, D)` or `Diagonal` of `(T, D)`.
        offsets: b_1, ..., b_T, shape `(T, D)`.
        noise: s_t^2, broadcastable to `(T, D)`, positive, `inf` where nothing is
            observed.
        backend: `"auto"`, `"sequential"` or `"associative"`.

    Returns:
        Filtered marginals in units of the process variance.
    """
    return by_backend(
        backend, _filter_sequential, _filter_associative, operator, offsets, noise
    )


def damped_filter_means(
    operator: Operator, offsets: Array, noise: Array, *, backend: Backend
) -> Array:
    """Return `damped_filter(...).means` without keeping any covariance."""

    def sequential(operator: Operator, offsets: Array, noise: Array) -> Array:
        step, start, entries = filter_step(operator, offsets, noise)

        def means_only(carry: Marginals, entry: tuple) -> tuple[Marginals, Array]:
            carry, _ = step(carry, entry)
            return carry, carry.means

        return jax.lax.scan(means_only, start, entries)[1]

    def associative(operator: Operator, offsets: Array, noise: Array) -> Array:
        return _filter_associative(operator, offsets, noise).means

    return by_backend(backend, sequential, associative, operator, offsets, noise)


def damped_smoother(
    operator: Operator, offsets: Array, noise: Array, *, backend: Backend
) -> Marginals:
    """Smoother: p(d_t | all pseudo-observations); arguments as `damped_filter`."""
    filtered = damped_filter(operator, offsets, noise, backend=backend)
    return by_backend(
        backend, _smooth_sequential, _smooth_associative, operator, offsets, filtered
    )


def damped_evidence(
    operator: Operator, offsets: Array, noise: Array, filtered: Marginals
) -> Evidence:
    """Evidence of the pseudo-observations, from the filtered marginals."""
    predicted = predict(_initial_or_previous(filtered), operator, offsets)
    return condition(predicted, jnp.broadcast_to(noise, offsets.shape))[1]


def _initial_or_previous(filtered: Marginals) -> Marginals:
    """Shift by one step: the marginal before step t, the known zero before step 1."""
    return jax.tree.map(
        lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), filtered
    )


# --------------------------------------------------------------------- sequential


def filter_step(
    operator: Operator, offsets: Array, noise: Array
) -> tuple[Callable, Marginals, tuple]:
    """Return the scan body of the filter, its carry before step 1, and what it scans.

    Noise that does not change over time is not scanned over, which saves a `(T, D)`
    array.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x[0]), operator)
    start = Marginals(jnp.zeros_like(offsets[0]), zeros)
    varies = noise.ndim == 2 and noise.shape[0] == offsets.shape[0] > 1
    constant = jnp.broadcast_to(noise if noise.ndim < 2 else noise[0], offsets.shape[1])

    def step(carry: Marginals, entry: tuple) -> tuple[Marginals, Marginals]:
        operator_t, offset, *changing = entry
        now = jnp.broadcast_to(changing[0], offset.shape) if varies else constant
        carry, _ = condition(predict(carry, operator_t, offset), now)
        return carry, carry

    entries = (operator, offsets, noise) if varies else (operator, offsets)
    return step, start, entries


def _filter_sequential(operator: Operator, offsets: Array, noise: Array) -> Marginals:
    step, start, entries = filter_step(operator, offsets, noise)
    return jax.lax.scan(step, start, entries)[1]


def _smooth_sequential(
    operator: Operator, offsets: Array, filtered: Marginals
) -> Marginals:
    last = jax.tree.map(lambda x: x[-1], filtered)
    later = jax.tree.map(lambda x: x[1:], (operator, offsets))

    def step(carry: Marginals, entry: tuple) -> tuple[Marginals, Marginals]:
        current, (operator_next, offset_next) = entry
        gain, rest, spread = smoother_gain(current, operator_next, offset_next)
        covariance = congruence(gain, carry.covariances)
        carry = Marginals(
            apply(gain, carry.means) + rest,
            jax.tree.map(jnp.add, covariance, spread),
        )
        return carry, carry

    earlier = (jax.tree.map(lambda x: x[:-1], filtered), later)
    smoothed = jax.lax.scan(step, last, earlier, reverse=True)[1]
    return jax.tree.map(lambda s, x: jnp.concatenate([s, x[None]]), smoothed, last)


# -------------------------------------------------------------------- associative


def _filter_associative(operator: Operator, offsets: Array, noise: Array) -> Marginals:
    known = jnp.arange(offsets.shape[0]) == 0
    element = filter_elements(operator, offsets, noise, known)
    if isinstance(operator, Diagonal):
        out = prefix_scan(combine_filter_diagonal, element)
        return Marginals(out.b, Diagonal(out.C))
    out = prefix_scan(combine_filter_dense, element)
    return Marginals(out.b, Dense(out.C))


def filter_elements(
    operator: Operator, offsets: Array, noise: Array, known: Array
) -> FilterElement:
    """Return the associative element of every step.

    Args:
        operator: A_t, leading axis T.
        offsets: b_t, `(T, D)`.
        noise: s_t^2, broadcastable to `(T, D)`.
        known: Whether the state before step t is known to be zero, `(T,)`.
    """
    noise = jnp.broadcast_to(noise, offsets.shape)
    used = jax.tree.map(
        lambda a: jnp.where(known.reshape(-1, *[1] * (a.ndim - 1)), 0, a), operator
    )
    inverse = 1 / (1 + noise)
    keep = jnp.where(jnp.isinf(noise), 1, noise * inverse)
    if isinstance(used, Diagonal):
        a = used.diagonal
        return FilterElement(
            keep * a, keep * offsets, keep, -a * inverse * offsets, a * inverse * a
        )
    a = used.matrix
    transposed = jnp.swapaxes(a, -1, -2)
    return FilterElement(
        keep[..., None] * a,
        keep * offsets,
        to_dense(Diagonal(keep)),
        -apply(Dense(transposed), inverse * offsets),
        matmul(transposed, inverse[..., None] * a),
    )


def _smooth_associative(
    operator: Operator, offsets: Array, filtered: Marginals
) -> Marginals:
    later = jax.tree.map(lambda x: x[1:], (operator, offsets))
    earlier = jax.tree.map(lambda x: x[:-1], filtered)
    gain, rest, spread = smoother_gain(earlier, *later)

    def append(x: Array, end: Array) -> Array:
        return jnp.concatenate([x, end[-1:]])

    element = SmootherElement(
        append(gain[0], jnp.zeros_like(filtered.covariances[0])),
        append(rest, filtered.means),
        append(spread[0], filtered.covariances[0]),
    )
    if isinstance(operator, Diagonal):
        out = prefix_scan(combine_smoother_diagonal, element, reverse=True)
        return Marginals(out.g, Diagonal(out.L))
    out = prefix_scan(combine_smoother_dense, element, reverse=True)
    return Marginals(out.g, Dense(out.L))
