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
from jax import Array
from jax.sharding import Mesh

from elk_ssm.kalman.filter_spread import filter_on_mesh
from elk_ssm.kalman.filter_steps import filter_associative, filter_quickly
from elk_ssm.kalman.lgssm import LGSSM, Problem, pose
from elk_ssm.linalg.structure import Dense, Diagonal, Operator
from elk_ssm.parallel.backend import Backend, by_backend, check_backend
from elk_ssm.parallel.mesh import Spread, off_explicit, spread_of


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
    mesh: Mesh | None = None,
    axis_name: str = "time",
) -> FilterPosterior:
    """Filter a series: p(z_t | y_{0:t}) for every t, and the marginal likelihood.

    Särkkä and García-Fernández (2021), section IV, for the parallel form; Kalman's
    update, one scalar at a time, for the arithmetic. Covariances may be singular; see
    `lgssm_log_likelihood` for exact emissions and diffuse priors.

    Args:
        model: the model.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)`; the row t acts on the transition into t and on emission t.
        mask: `(T, E)` or `(T,)`, True where observed; NaN is missing all the same.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.
        mesh: Devices over which time is spread, one piece of the series on each; the
            emissions may be sharded so already. See `elk_ssm.evaluate`.
        axis_name: Name of the axis of the mesh for time.

    Returns:
        The filtered posterior, in the common dtype of model and data.

    Raises:
        ValueError: a shape does not fit, or the backend is unknown.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm.linalg.structure import ScaledIdentity
        >>> one = ScaledIdentity(1.0)
        >>> model = LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> posterior = lgssm_filter(model, jnp.array([[1.0], [jnp.nan]]))
        >>> posterior.filtered_means[:, 0].tolist()
        [0.5, 0.5]
        >>> posterior.filtered_covariances.diagonal[:, 0].tolist()
        [0.5, 1.5]
    """
    check_backend(backend)
    spread = spread_of(mesh, axis_name)
    data = model, emissions, inputs, mask
    if spread is not None:
        data = off_explicit(data, "lgssm_filter")
    return filter_problem(pose(*data), backend, spread)


@partial(jax.jit, static_argnames=("backend", "spread"))
def filter_problem(
    problem: Problem, backend: Backend, spread: Spread | None = None
) -> FilterPosterior:
    """Filter a model that has been posed against its data."""
    if problem.num_steps == 0:
        raise ValueError("emissions must have at least one step; got T = 0.")
    wrap = Diagonal if problem.is_diagonal else Dense
    if spread is not None:
        evidence, means, covs = filter_on_mesh(problem, backend, spread)
        return FilterPosterior(evidence, means, wrap(covs))
    means, covs, terms = by_backend(
        backend, filter_quickly, filter_associative, problem
    )
    return FilterPosterior(jnp.sum(terms), means, wrap(covs))
