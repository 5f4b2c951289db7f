r"""Conditioning one Gaussian on a whole vector, where that costs no digits.

For x ~ N(m, P) and z = H x + N(0, R), with G = P H', S = H G + R = L L' and
e = z - H m, where R is an eighth of the diagonal of S or more,

    W = G L'^{-1},    w = L^{-1} e
    m <- m + W w,     P <- P - W W',    -2 log N(e; 0, S) = w'w + log det 2 pi S

The difference loses as many digits as R is smaller than S, and three here do not
matter. Of less noise half of all digits are lost at most, with K = W L^{-1} and
A = I - K H, by

    P <- A P A' + K R K'

Errors of K enter this form of the covariance (Joseph's) squared. One step of refinement
does as much for the mean:

    x = S^{-1} e,    rho = e - H K e - R x
    m <- m + K (e + rho),    -2 log N(e; 0, S) = x' (e + rho) + log det 2 pi S

as S lost digits of R where that is small beside H G, and rho did not. Digits are kept
as by scalars, mostly more of them.

Beside next to no noise the factor breaks down, and `scalar_updates` has to do it. S is
no smaller than R, and so are its pivots: where those of R are above sqrt(eps) times the
diagonal of S, all is well. Which way it is, is decided at every step.

A step of many dimensions is up to four times faster on a CPU this way; of fewer than
20, where there is an eighth of noise, the plain differences of `scalar_updates` are as
fast or faster. The factor is LAPACK's, of one matrix: batched calls can hang on a CPU
with few cores, so that a batch takes in scalars, and so do derivatives and
accelerators.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm._jax import unless_batched
from elk_ssm._platforms import by_platform
from elk_ssm.kalman.roundings import LOG_TWO_PI
from elk_ssm.kalman.scalar_updates import (
    PLENTY,
    condition,
    condition_plainly,
    has_plenty_of_noise,
)
from elk_ssm.kalman.whitening import Emission, isolated
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import Operator, to_dense

# Fewer dimensions, or fewer scalars of them, are taken in as fast one by one.
_DIMENSIONS, _SCALARS = 12, 5
# As fast one by one by plain differences are fewer than so many dimensions.
_MANY = 20
# Which types LAPACK has.
_KNOWN = ("float32", "float64")


def by_scalars(
    mean: Array, cov: Array, emission: Emission
) -> tuple[Array, Array, Array]:
    """Condition N(mean, cov) on an emission; see `condition`."""
    return condition(mean, cov, emission.rows())


def in_turn(mean: Array, cov: Array, emission: Emission) -> tuple[Array, Array, Array]:
    """Do the same in the way that is fastest for one step after the other.

    By plain differences, by scalars, or as one vector, as the noise allows. Has no
    derivative in reverse.
    """
    return _emission(mean, cov, emission)


def is_large(state: Array, seen: int) -> bool:
    """Whether so many scalars of a state `(..., D)` are taken in faster at once."""
    many = state.shape[-1] >= _DIMENSIONS and seen >= _SCALARS
    return many and has_factors(state)


def has_factors(state: Array) -> bool:
    """Whether LAPACK has the type of a state."""
    return state.dtype.name in _KNOWN


def by_root(state: Array, seen: int, mixed: bool) -> bool:
    """Whether so many are so even where plain differences would do.

    Also if they are `mixed`, by noise that would have to be decorrelated before.
    """
    return is_large(state, seen) and (mixed or state.shape[-1] >= _MANY)


def alone_on_cpu(by_factor: Callable, scalars: Callable) -> Callable:
    """Return what is `by_factor` for one model on a CPU, and else `scalars`."""

    def alone(*operands: Any) -> Any:
        return by_platform(*operands, cpu=by_factor, default=scalars)

    return unless_batched(alone, scalars)


def _by_factor(
    mean: Array, cov: Array, emission: Emission
) -> tuple[Array, Array, Array]:
    H, seen, whole = to_dense(emission.weights), emission.observed, emission.whole
    R = isolated(emission.covariance, seen)
    pivots = None if whole is None else jnp.where(seen, whole.whitener.variances, 1.0)
    across, total = moments_of(cov, H, R, seen)

    error = jnp.where(seen, emission.values - matvec(H, mean), 0.0)
    table = jnp.concatenate([across, error[None]])
    constant = jnp.where(seen, LOG_TWO_PI, 0.0)

    def plainly() -> tuple[Array, Array, Array]:
        half, scales, _ = solve_by_root(total, table)
        W, w = half[:-1], half[-1]
        log_density = -jnp.sum(0.5 * (w * w + constant) + jnp.log(scales))
        return mean + matvec(W, w), subtracted(cov, W), log_density

    def carefully() -> tuple[Array, Array, Array]:
        # What is missing has no gain, and H need not be cleared of it.
        found, scales = solve_by_factor(total, table)
        K, x = found[:-1], found[-1]
        step = matvec(K, error)
        left = jnp.where(seen, error - matvec(H, step) - R.mv(x), 0.0)
        terms = x * (error + left) + constant
        log_density = -jnp.sum(0.5 * terms + jnp.log(scales))
        return mean + (step + matvec(K, left)), left_after(cov, H, R, K), log_density

    shares = jnp.where(seen, shares_of_noise(cov, H, R, total, pivots), 1.0)
    scalars = partial(by_scalars, mean, cov, emission)
    return by_share(shares, plainly, carefully, scalars)


def _quickly(mean: Array, cov: Array, emission: Emission) -> tuple[Array, Array, Array]:
    size = emission.values.shape[0]
    if by_root(cov, size, emission.covariance.mixes):
        return _by_factor(mean, cov, emission)
    rows = emission.rows()
    plenty = has_plenty_of_noise(cov, rows.weights, rows.variances)
    plainly = partial(condition_plainly, mean, cov, rows)
    otherwise = partial(condition, mean, cov, rows)
    if is_large(cov, size):
        otherwise = partial(_by_factor, mean, cov, emission)
    return lax.cond(jnp.all(plenty | ~rows.observed), plainly, otherwise)


_emission = alone_on_cpu(_quickly, by_scalars)


def moments_of(
    cov: Array, weights: Array, noise: Operator, seen: Array | None = None
) -> tuple[Array, Array]:
    """Return P H' and S = H P H' + R, without what is not `seen`, `(E,)`."""
    across = matmul(cov, transpose(weights))
    inner = matmul(weights, across)
    if seen is not None:
        across = jnp.where(seen[None, :], across, 0.0)
        inner = jnp.where(seen[:, None] & seen[None, :], inner, 0.0)
    return across, inner + to_dense(noise)


def shares_of_noise(
    cov: Array, weights: Array, noise: Operator, total: Array, pivots: Array | None
) -> Array:
    """Return what share of the variance of each scalar is its own noise, `(E,)`.

    Args:
        cov: P.
        weights: H.
        noise: R.
        total: S.
        pivots: Those of R, where they are known beforehand.
    """
    if pivots is None:
        pivots = _pivots(noise)
    sizes = jnp.sum(weights * weights * jnp.diagonal(cov)[None, :], axis=-1)
    sizes = jnp.maximum(sizes + noise.variances(), jnp.diagonal(total))
    return pivots / sizes


def by_share(shares: Array, plainly: Callable, joseph: Callable, scalars: Callable):
    """Call the quickest of three ways that keeps the digits that scalars keep.

    Args:
        shares: Those of noise, `(E,)`.
        plainly: What subtracts, and loses digits as the least share is smaller.
        joseph: What loses half of them where that is sqrt(eps).
        scalars: What always can.
    """
    ways = jnp.where(shares > PLENTY, 2, jnp.where(is_enough(shares), 1, 0))
    return lax.switch(jnp.min(ways), (scalars, joseph, plainly))


def is_enough(shares: Array) -> Array:
    """Whether shares of noise leave half of all digits or more; NaN do not."""
    return shares > jnp.finfo(shares.dtype).eps ** 0.5


def _pivots(noise: Operator) -> Array:
    if not noise.mixes:
        return noise.variances()
    return jnp.diagonal(_root(noise.to_dense())) ** 2


def solve_by_root(total: Array, table: Array) -> tuple[Array, Array, Array]:
    """Return X with X L' = table, where S = L L', the diagonal of L, and L."""
    root = _root(total)
    return _divided(table, root, transposed=True), jnp.diagonal(root), root


def solve_by_factor(total: Array, table: Array) -> tuple[Array, Array]:
    """Return X with X S = table, and the diagonal of the factor of S."""
    half, scales, root = solve_by_root(total, table)
    return _divided(half, root), scales


def gain_and_left(cov: Array, across: Array, total: Array) -> tuple[Array, Array]:
    """Return K = G S^{-1} and P - G S^{-1} G'."""
    half, _, root = solve_by_root(total, across)
    return _divided(half, root), subtracted(cov, half)


def subtracted(cov: Array, half: Array) -> Array:
    """Return P - W W'."""
    return symmetrize(cov - matmul(half, transpose(half)))


def _divided(table: Array, root: Array, transposed: bool = False) -> Array:
    return lax.linalg.triangular_solve(
        root, table, left_side=False, lower=True, transpose_a=transposed
    )


def unit_rows(weights: Array, noise: Array) -> Array:
    """Return weights of independent scalars of variance one; NaN of a singular R."""
    root = _root(noise)
    return lax.linalg.triangular_solve(root, weights, left_side=True, lower=True)


def _root(matrix: Array) -> Array:
    # LAPACK goes by columns: the transpose of an array that lies by rows is as it is.
    return lax.linalg.cholesky(transpose(matrix), symmetrize_input=False)


def left_after(cov: Array, weights: Array, noise: Operator, gain: Array) -> Array:
    """Return A P A' + K R K'."""
    A = jnp.eye(cov.shape[0], dtype=cov.dtype) - matmul(gain, weights)
    kept = matmul(matmul(A, cov), transpose(A))
    return symmetrize(kept + matmul(times(gain, noise), transpose(gain)))


def times(gain: Array, noise: Operator) -> Array:
    """Return K R."""
    if noise.mixes:
        return matmul(gain, noise.to_dense())
    return gain * noise.variances()[None, :]
