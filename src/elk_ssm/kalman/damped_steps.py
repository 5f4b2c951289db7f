r"""One step of the damped affine recurrence: predict, condition, look back.

    d_t | d_{t-1} ~ N(A_t d_{t-1} + b_t, I)
    0   | d_t     ~ N(d_t, diag(s_t^2))

Leading axes are free everywhere. Observations are diagonal, so the update conditions on
one dimension after another and needs no factorisation. `advance` does the same to a
whole run of steps, kept as a function of the state that enters the run.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.affine import apply
from elk_ssm.kalman.elements import FilterElement
from elk_ssm.linalg.small import matmul, solve
from elk_ssm.linalg.structure import Dense, Diagonal, Operator

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


def predict(state: Marginals, operator: Operator, offset: Array) -> Marginals:
    """Return the marginal of A d + b + N(0, I)."""
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


def condition(state: Marginals, noise: Array) -> tuple[Marginals, Evidence]:
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


def smoother_gain(
    current: Marginals, operator: Operator, offset: Array
) -> tuple[Operator, Array, Operator]:
    """Return G, g, L of d_t | d_{t+1} ~ N(G d_{t+1} + g, L); leading axes are free."""
    predicted = predict(current, operator, offset)
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
        congruence(Dense(rest), current.covariances)[0]
        + congruence(dense, Dense(jnp.eye(size, dtype=pushed.dtype)))[0]
    )
    return dense, current.means - apply(dense, predicted.means), Dense(spread)


def congruence(gain: Operator, covariance: Operator) -> Operator:
    """Return G P G^T."""
    if isinstance(gain, Diagonal):
        return Diagonal(gain.diagonal**2 * covariance[0])
    product = matmul(matmul(gain.matrix, covariance[0]), jnp.swapaxes(gain[0], -1, -2))
    return Dense((product + jnp.swapaxes(product, -1, -2)) / 2)


def advance(
    run: FilterElement, operator: Operator, offset: Array, noise: Array
) -> FilterElement:
    """Append one step to a run of steps: predict, then condition on each dimension.

    The mean is kept as a function of the state that enters, A x + b; every dimension
    adds its innovation to the evidence (eta, J) about that state.

    Args:
        run: The run so far; `A = I` and zeros for none.
        operator: A_t of the step, without leading axes.
        offset: b_t, `(D,)`.
        noise: s_t^2, `(D,)`.
    """
    if isinstance(operator, Diagonal):
        return _advance_diagonal(run, operator.diagonal, offset, noise)
    predicted = predict(Marginals(run.b, Dense(run.C)), operator, offset)
    pushed = matmul(operator.matrix, run.A)
    table = jnp.concatenate([predicted.means[:, None], pushed], axis=1)

    def take_in(i: Array | int, carry: tuple) -> tuple:
        table, covariance, evidence = carry
        column = covariance[:, i]
        inverse = 1 / (column[i] + noise[i])
        row = table[i]
        evidence = evidence + row[1:, None] * row * inverse
        covariance = covariance - column[:, None] * column * inverse
        return table - column[:, None] * row * inverse, covariance, evidence

    carry = (table, predicted.covariances[0], jnp.zeros_like(table))
    if offset.shape[0] > _UNROLL_UP_TO:
        carry = jax.lax.fori_loop(0, offset.shape[0], take_in, carry)
    else:
        for i in range(offset.shape[0]):
            carry = take_in(i, carry)
    table, covariance, evidence = carry
    eta, J = run.eta - evidence[:, 0], run.J + evidence[:, 1:]
    return FilterElement(table[:, 1:], table[:, 0], covariance, eta, J)


def _advance_diagonal(
    run: FilterElement, a: Array, offset: Array, noise: Array
) -> FilterElement:
    A, b, C = a * run.A, a * run.b + offset, a**2 * run.C + 1
    inverse = 1 / (C + noise)
    keep = 1 - C * inverse
    eta, J = run.eta - A * b * inverse, run.J + A**2 * inverse
    return FilterElement(keep * A, keep * b, keep * C, eta, J)
