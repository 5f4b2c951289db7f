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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.affine import apply
from elk_ssm.kalman.backend import Backend, by_backend
from elk_ssm.kalman.elements import (
    FilterElement,
    SmootherElement,
    combine_filter_dense,
    combine_filter_diagonal,
    combine_smoother_dense,
    combine_smoother_diagonal,
)
from elk_ssm.kalman.prefix import prefix_scan
from elk_ssm.kalman.small_linalg import matmul, solve
from elk_ssm.kalman.structure import Dense, Diagonal, Operator, to_dense

_UNROLL_UP_TO = 16


class Marginals(NamedTuple):
    """Means `(T, D)` and covariances, `Dense` `(T, D, D)` or `Diagonal` `(T, D)`."""

    means: Array
    covariances: Operator


class Evidence(NamedTuple):
    """What the log-likelihood needs, for any common factor q on the variances.

    log p = -1/2 (observed log(2 pi q) + log_det + mahalanobis / q), all scalars.
    """

    mahalanobis: Array
    log_det: Array
    observed: Array


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
        step, start, entries = _filter_step(operator, offsets, noise)

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
    predicted = _predict(_initial_or_previous(filtered), operator, offsets)
    return _condition(predicted, jnp.broadcast_to(noise, offsets.shape))[1]


def _initial_or_previous(filtered: Marginals) -> Marginals:
    """Shift by one step: the marginal before step t, the known zero before step 1."""
    return jax.tree.map(
        lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), filtered
    )


# ------------------------------------------------------------------ one time step


def _predict(state: Marginals, operator: Operator, offset: Array) -> Marginals:
    mean = apply(operator, state.means) + offset
    if isinstance(operator, Diagonal):
        assert isinstance(state.covariances, Diagonal)
        return Marginals(
            mean, Diagonal(operator.diagonal**2 * state.covariances.diagonal + 1)
        )
    pushed = matmul(operator.matrix, state.covariances[0])
    covariance = matmul(pushed, jnp.swapaxes(operator.matrix, -1, -2))
    # The two products round differently on either side of the diagonal.
    covariance = (covariance + jnp.swapaxes(covariance, -1, -2)) / 2
    return Marginals(
        mean, Dense(covariance + jnp.eye(mean.shape[-1], dtype=mean.dtype))
    )


def _condition(state: Marginals, noise: Array) -> tuple[Marginals, Evidence]:
    """Condition on observing zero with variance `noise`; leading axes are free."""
    if isinstance(state.covariances, Diagonal):
        return _condition_diagonal(state, noise)
    return _condition_dense(state, noise)


def _condition_diagonal(state: Marginals, noise: Array) -> tuple[Marginals, Evidence]:
    variance = state.covariances[0]
    total = variance + noise
    keep = 1 - variance / total
    evidence = _evidence(state.means, total, noise)
    return Marginals(keep * state.means, Diagonal(keep * variance)), evidence


def _evidence(innovation: Array, total: Array, noise: Array) -> Evidence:
    seen = jnp.isfinite(noise)
    finite = jnp.where(seen, total, 1)
    return Evidence(
        jnp.sum(jnp.where(seen, innovation**2 / finite, 0)),
        jnp.sum(jnp.log(finite)),
        jnp.sum(seen),
    )


def _condition_dense(state: Marginals, noise: Array) -> tuple[Marginals, Evidence]:
    size = state.means.shape[-1]
    mean, covariance = state.means, state.covariances[0]
    if size > _UNROLL_UP_TO:
        return _condition_in_a_loop(mean, covariance, noise)
    innovations, totals = [], []
    for i in range(size):
        column = covariance[..., :, i]
        innovations.append(mean[..., i])
        totals.append(column[..., i] + noise[..., i])
        mean, covariance = _rank_one(mean, covariance, column, mean[..., i], totals[-1])
    evidence = _evidence(jnp.stack(innovations, -1), jnp.stack(totals, -1), noise)
    return Marginals(mean, Dense(covariance)), evidence


def _rank_one(
    mean: Array, covariance: Array, column: Array, innovation: Array, total: Array
) -> tuple[Array, Array]:
    """Condition on one dimension, observed as zero with total variance `total`."""
    inverse = (1 / total)[..., None]
    mean = mean - column * (innovation[..., None] * inverse)
    outer = column[..., :, None] * column[..., None, :]
    return mean, covariance - outer * inverse[..., None]


def _condition_in_a_loop(
    mean: Array, covariance: Array, noise: Array
) -> tuple[Marginals, Evidence]:
    """The same for many dimensions, where unrolling would take the compiler long."""

    def body(i: Array, carry: tuple) -> tuple:
        mean, covariance, innovations, totals = carry
        column = jnp.take(covariance, i, axis=-1)
        innovation = jnp.take(mean, i, axis=-1)
        total = jnp.take(column, i, axis=-1) + jnp.take(noise, i, axis=-1)
        moved = _rank_one(mean, covariance, column, innovation, total)
        innovations = innovations.at[..., i].set(innovation)
        return *moved, innovations, totals.at[..., i].set(total)

    zeros = jnp.zeros_like(mean)
    start = (mean, covariance, zeros, zeros)
    mean, covariance, innovations, totals = jax.lax.fori_loop(
        0, mean.shape[-1], body, start
    )
    return Marginals(mean, Dense(covariance)), _evidence(innovations, totals, noise)


# --------------------------------------------------------------------- sequential


def _filter_step(
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
        carry, _ = _condition(_predict(carry, operator_t, offset), now)
        return carry, carry

    entries = (operator, offsets, noise) if varies else (operator, offsets)
    return step, start, entries


def _filter_sequential(operator: Operator, offsets: Array, noise: Array) -> Marginals:
    step, start, entries = _filter_step(operator, offsets, noise)
    return jax.lax.scan(step, start, entries)[1]


def _smooth_sequential(
    operator: Operator, offsets: Array, filtered: Marginals
) -> Marginals:
    last = jax.tree.map(lambda x: x[-1], filtered)
    later = jax.tree.map(lambda x: x[1:], (operator, offsets))

    def step(carry: Marginals, entry: tuple) -> tuple[Marginals, Marginals]:
        current, (operator_next, offset_next) = entry
        gain, rest, spread = _smoother_gain(current, operator_next, offset_next)
        covariance = _congruence(gain, carry.covariances)
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
    noise = jnp.broadcast_to(noise, offsets.shape)
    first = jnp.arange(offsets.shape[0]) == 0
    known = jax.tree.map(
        lambda a: jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), 0, a), operator
    )
    inverse = 1 / (1 + noise)
    keep = jnp.where(jnp.isinf(noise), 1, noise * inverse)
    if isinstance(known, Diagonal):
        a = known.diagonal
        element = FilterElement(
            keep * a, keep * offsets, keep, -a * inverse * offsets, a * inverse * a
        )
        out = prefix_scan(combine_filter_diagonal, element)
        return Marginals(out.b, Diagonal(out.C))
    a = known.matrix
    transposed = jnp.swapaxes(a, -1, -2)
    element = FilterElement(
        keep[..., None] * a,
        keep * offsets,
        to_dense(Diagonal(keep)),
        -apply(Dense(transposed), inverse * offsets),
        matmul(transposed, inverse[..., None] * a),
    )
    out = prefix_scan(combine_filter_dense, element)
    return Marginals(out.b, Dense(out.C))


def _smooth_associative(
    operator: Operator, offsets: Array, filtered: Marginals
) -> Marginals:
    later = jax.tree.map(lambda x: x[1:], (operator, offsets))
    earlier = jax.tree.map(lambda x: x[:-1], filtered)
    gain, rest, spread = _smoother_gain(earlier, *later)

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


# ------------------------------------------------------------------ smoother gain


def _smoother_gain(
    current: Marginals, operator: Operator, offset: Array
) -> tuple[Operator, Array, Operator]:
    """Return G, g, L of d_t | d_{t+1} ~ N(G d_{t+1} + g, L); leading axes are free."""
    predicted = _predict(current, operator, offset)
    if isinstance(operator, Diagonal):
        assert isinstance(current.covariances, Diagonal)
        assert isinstance(predicted.covariances, Diagonal)
        variance = current.covariances.diagonal
        gain = variance * operator.diagonal / predicted.covariances.diagonal
        rest = 1 - gain * operator.diagonal
        spread = rest**2 * variance + gain**2
        return Diagonal(gain), current.means - gain * predicted.means, Diagonal(spread)
    pushed = matmul(operator.matrix, current.covariances[0])
    dense = Dense(jnp.swapaxes(solve(predicted.covariances[0], pushed), -1, -2))
    size = current.means.shape[-1]
    rest = jnp.eye(size, dtype=pushed.dtype) - matmul(dense.matrix, operator.matrix)
    spread = (
        _congruence(Dense(rest), current.covariances)[0]
        + _congruence(dense, Dense(jnp.eye(size, dtype=pushed.dtype)))[0]
    )
    return dense, current.means - apply(dense, predicted.means), Dense(spread)


def _congruence(gain: Operator, covariance: Operator) -> Operator:
    """Return G P G^T."""
    if isinstance(gain, Diagonal):
        return Diagonal(gain.diagonal**2 * covariance[0])
    product = matmul(matmul(gain.matrix, covariance[0]), jnp.swapaxes(gain[0], -1, -2))
    return Dense((product + jnp.swapaxes(product, -1, -2)) / 2)
