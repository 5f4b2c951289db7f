r"""The Kalman filter, sequential or parallel in time, and the marginal likelihood.

With F_0 = 0, c_0 = m and Q_0 = P, step 0 is a step like the others:

    predict    m^p = F_t m_{t-1} + c_t        P^p = F_t P_{t-1} F_t' + Q_t
    condition  on y_t, one scalar at a time (see `scalar_updates`)

and log p(y_{0:T-1}) is the sum of the log densities met on the way. Sequentially this
is one `lax.scan`. In parallel, the elements of all steps are combined by an
associative scan (see `elements`), and then one more predict-and-condition step from
every combined posterior, all steps at once, gives the likelihood terms, and restores
the positive semidefiniteness and the last digits that the combination lost. Both
backends thus return what the same step function returned.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.backend import Backend, by_backend, check_backend
from elk_ssm.kalman.elements import combine_filter_dense, combine_filter_diagonal
from elk_ssm.kalman.lgssm import LGSSM, Problem, pose
from elk_ssm.kalman.prefix import prefix_scan
from elk_ssm.kalman.scalar_updates import (
    Rows,
    WhitenedEmission,
    condition,
    condition_diagonal,
    condition_element,
    condition_element_diagonal,
    emission_rows,
    whiten_emission,
)
from elk_ssm.kalman.small_linalg import matmul, matvec, symmetrize, transpose
from elk_ssm.kalman.structure import Dense, Diagonal, Operator, at_step, to_dense


class FilterPosterior(NamedTuple):
    """p(z_t | y_{0:t}) for every t.

    The covariances are `Dense`, `(T, D, D)`, or, when the whole model is diagonal,
    `Diagonal`, `(T, D)`; `to_dense` and `variances_of` read both.

    Attributes:
        log_likelihood: log p(y_{0:T-1}), `()`.
        filtered_means: `(T, D)`.
        filtered_covariances: `T` matrices.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> found = elk.lgssm_filter(model, jnp.ones((3, 1)))
        >>> found.filtered_means.shape, type(found.filtered_covariances).__name__
        ((3, 1), 'Diagonal')
    """

    log_likelihood: Array
    filtered_means: Array
    filtered_covariances: Operator


def lgssm_filter(
    model: LGSSM,
    emissions: Array,
    inputs: Array | None = None,
    *,
    mask: Array | None = None,
    backend: Backend = "auto",
) -> FilterPosterior:
    """Filter a series: p(z_t | y_{0:t}) for every t, and the marginal likelihood.

    Särkkä and García-Fernández (2021), section IV, for the parallel form; Kalman's
    update, one scalar at a time, for the arithmetic.

    Args:
        model: the model.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)`; the row t acts on the transition into t and on emission t.
        mask: `(T, E)` or `(T,)`, True where observed; NaN is missing all the same.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.

    Returns:
        The filtered posterior, in the common dtype of model and data.

    Raises:
        ValueError: a shape does not fit, or the backend is unknown.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm.kalman.structure import ScaledIdentity
        >>> one = ScaledIdentity(1.0)
        >>> model = LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> posterior = lgssm_filter(model, jnp.array([[1.0], [jnp.nan]]))
        >>> posterior.filtered_means[:, 0].tolist()
        [0.5, 0.5]
        >>> posterior.filtered_covariances.diagonal[:, 0].tolist()
        [0.5, 1.5]
    """
    check_backend(backend)
    return filter_problem(pose(model, emissions, inputs, mask), backend)


@partial(jax.jit, static_argnames="backend")
def filter_problem(problem: Problem, backend: Backend) -> FilterPosterior:
    """Filter a model that has been posed against its data."""
    if problem.num_steps == 0:
        raise ValueError("emissions must have at least one step; got T = 0.")
    wrap = Diagonal if problem.is_diagonal else Dense
    means, covs, terms = by_backend(backend, _sequential, _associative, problem)
    return FilterPosterior(jnp.sum(terms), means, wrap(covs))


class Transition(NamedTuple):
    """F, c and Q into one step: matrices, or vectors for a diagonal model."""

    weights: Array
    offset: Array
    noise: Array


def transition_into(problem: Problem, step: Array) -> Transition:
    """Return the transition into a step; into step 0 it is the initial distribution."""
    read = _diagonal_of if problem.is_diagonal else to_dense
    weights = read(at_step(problem.weights, step))
    noise = read(at_step(problem.covariance, step))
    first = step == 0
    return Transition(
        jnp.where(first, 0.0, weights),
        jnp.where(first, problem.initial_mean, problem.offsets[step]),
        jnp.where(first, read(problem.initial_covariance), noise),
    )


def propagate(transition: Transition, mean: Array, cov: Array) -> tuple[Array, Array]:
    """Return the mean and covariance of F z + c + N(0, Q) for z ~ N(mean, cov)."""
    F, c, Q = transition
    if F.ndim == 1:
        return F * mean + c, F * cov * F + Q
    spread = matmul(F, matmul(cov, transpose(F)))
    return matvec(F, mean) + c, symmetrize(spread) + Q


def _sequential(problem: Problem) -> tuple[Array, Array, Array]:
    whole = _static_emission(problem)

    def step(carry, index):
        mean, cov, term = _step(problem, whole, index, *carry)
        return (mean, cov), (mean, cov, term)

    start = _nothing(problem)
    return lax.scan(step, start, jnp.arange(problem.num_steps))[1]


def _associative(problem: Problem) -> tuple[Array, Array, Array]:
    whole = _static_emission(problem)
    steps = jnp.arange(problem.num_steps)
    elements = jax.vmap(lambda index: _element(problem, whole, index))(steps)
    combine = combine_filter_diagonal if problem.is_diagonal else combine_filter_dense
    combined = prefix_scan(combine, elements)
    before = (
        jnp.concatenate([zero[None], leaf[:-1]])
        for zero, leaf in zip(_nothing(problem), (combined.b, combined.C))
    )
    return jax.vmap(partial(_step, problem, whole))(steps, *before)


def _step(problem: Problem, whole: WhitenedEmission | None, step, mean, cov):
    """Predict into `step` and condition on its emission."""
    predicted = propagate(transition_into(problem, step), mean, cov)
    update = condition_diagonal if problem.is_diagonal else condition
    return update(*predicted, _rows(problem, whole, step))


def _element(problem: Problem, whole: WhitenedEmission | None, step):
    build = condition_element_diagonal if problem.is_diagonal else condition_element
    return build(*transition_into(problem, step), _rows(problem, whole, step))


def _rows(problem: Problem, whole: WhitenedEmission | None, step) -> Rows:
    values, observed = problem.values[step], problem.observed[step]
    weights = at_step(problem.emission_weights, step)
    covariance = at_step(problem.emission_covariance, step)
    if problem.is_diagonal:
        variances = jnp.where(observed, _diagonal_of(covariance), 1.0)
        return Rows(_diagonal_of(weights), variances, values, observed)
    return emission_rows(weights, covariance, values, observed, whole)


def _static_emission(problem: Problem) -> WhitenedEmission | None:
    """Decorrelate a static dense R once for all steps that have no gaps."""
    H, R = to_dense(problem.emission_weights), problem.emission_covariance
    if isinstance(R, Diagonal) or R.matrix.ndim > 2 or H.ndim > 2:
        return None
    return whiten_emission(H, R.matrix)


def _nothing(problem: Problem) -> tuple[Array, Array]:
    """Return what stands before step 0, whose F is zero."""
    mean = jnp.zeros_like(problem.initial_mean)
    return mean, jnp.zeros_like(problem.initial_covariance[0])


def _diagonal_of(operator: Operator) -> Array:
    assert isinstance(operator, Diagonal)
    return operator.diagonal
