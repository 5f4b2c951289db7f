r"""The Kalman filter, sequential or parallel in time, and the marginal likelihood.

With F_0 = 0, c_0 = m and Q_0 = P, step 0 is a step like the others:

    predict    m^p = F_t m_{t-1} + c_t        P^p = F_t P_{t-1} F_t' + Q_t
    condition  on y_t, one scalar at a time (see `scalar_updates`)

and log p(y_{0:T-1}) is the sum of the log densities met on the way. Sequentially this
is one `lax.scan`. In parallel, the elements of all steps are combined by an
associative scan (see `runs`), and then one more predict-and-condition step from
every combined posterior, all steps at once, gives the likelihood terms, and restores
the positive semidefiniteness and the last digits that the combination lost. Both
backends thus return what the same step function returned.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from elk_ssm.kalman.alike import filter_unless_alike
from elk_ssm.kalman.apart import evidence_of, filter_apart
from elk_ssm.kalman.delicate import has_exact_emissions
from elk_ssm.kalman.exactly import filter_exactly
from elk_ssm.kalman.form import COVARIANCES, Form, Held, chosen_form, unless_exact
from elk_ssm.kalman.forward import Filtered, filter_of
from elk_ssm.kalman.lgssm import LGSSM, Problem, pose
from elk_ssm.kalman.places import run_task
from elk_ssm.kalman.reduction import reduced
from elk_ssm.kalman.settled import filter_quickly
from elk_ssm.linalg.structure import Dense, Operator
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.parallel.backend import Backend, by_backend, check_backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.mesh import Shards, off_explicit, shards_of
from elk_ssm.parallel.time_axis import TimeAxis


class FilterPosterior(NamedTuple):
    """p(z_t | y_{0:t}) for every t.

    The covariances are `Dense`, `(T, D, D)`, or, when the whole model is diagonal,
    `Diagonal`, `(T, D)`, or, when it has the same blocks throughout, `BlockDiagonal`;
    `to_dense` and `variances_of` read all.

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
    form: Form = "auto",
    backend: Backend = "auto",
    mesh: Mesh | None = None,
    axis_name: str = "time",
) -> FilterPosterior:
    """Filter a series: p(z_t | y_{0:t}) for every t, and the marginal likelihood.

    Särkkä and García-Fernández (2021), section IV, for the parallel form; Kalman's
    update, one scalar at a time, for the arithmetic. Covariances may be singular; see
    `lgssm_log_likelihood` for exact emissions and diffuse priors. What has come to rest
    is not computed again: where steps repeat, all but some tens of them are products
    with constant matrices; on an accelerator, all but the first 512. Nor, on a CPU, is
    what recurs: the covariances of gaps, or of matrices, whose patterns come again.

    Args:
        model: the model.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)`; the row t acts on the transition into t and on emission t.
        mask: `(T, E)` or `(T,)`, True where observed; NaN is missing all the same.
        form: `"covariance"`; `"square_root"`, which keeps the initial state apart and
            is right for any prior variance, in float32 too, at 1.2 to 2 times the cost
            from D = 4 on and much more below (see `kalman/apart.py`), but where
            emissions have less noise than the rounding of the variance that process
            noise adds up to, held as a covariance; or `"auto"`: the second where the
            prior is so wide that the first would lose it, which is seen of values that
            are not traced. Exact emissions are right in either, step after step.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.
        mesh: Devices over which time is sharded, one piece of the series on each; the
            emissions may be sharded so already. See `elk_ssm.evaluate`.
        axis_name: Name of the axis of the mesh for time.

    Returns:
        The filtered posterior, in the common dtype of model and data.

    Raises:
        ValueError: a shape does not fit, the backend or the form is unknown, or values
            that are not traced are no model: NaN, or a matrix that is no covariance.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> posterior = elk.lgssm_filter(model, jnp.array([[1.0], [jnp.nan]]))
        >>> posterior.filtered_means[:, 0].tolist()
        [0.5, 0.5]
        >>> posterior.filtered_covariances.diagonal[:, 0].tolist()
        [0.5, 1.5]
    """
    check_backend(backend)
    shards = shards_of(mesh, axis_name)
    data = model, emissions, inputs, mask
    if shards is not None:
        data = off_explicit(data, "lgssm_filter")
    problem = pose(*data)
    return filter_problem(problem, backend, shards, chosen_form(form, model, problem))


@partial(jax.jit, static_argnames=("backend", "shards", "form"))
def filter_problem(
    problem: Problem,
    backend: Backend,
    shards: Shards | None = None,
    form: Held = "covariance",
) -> FilterPosterior:
    """Filter a model that has been posed against its data."""
    if problem.num_steps == 0:
        raise ValueError("emissions must have at least one step; got T = 0.")
    way = _filter_group if form in COVARIANCES else _filter_apart
    way = partial(way, held=form)
    task = partial(way, backend=backend)
    (means, covs), evidence = run_task(task, problem, shards)
    return FilterPosterior(evidence, means, covs)


def _filter_apart(
    problem: Problem, axis: TimeAxis, backend: Backend, held: Held
) -> tuple[tuple[Array, Dense], Array]:
    def apart(problem: Problem) -> Filtered:
        means, covs, evidence = filter_apart(problem, axis, backend)[1]
        return means, covs, evidence_of(problem, axis, evidence)

    def exactly(problem: Problem) -> Filtered:
        means, covs, terms = filter_exactly(problem, diffuse=True)
        return means, covs, jnp.sum(terms)

    means, covs, evidence = unless_exact(held, apart, exactly, problem, axis)
    return (means, Dense(covs)), evidence


def _filter_group(
    problem: Problem, axis: TimeAxis, backend: Backend, held: Held
) -> tuple[tuple[Array, Dense], Array]:
    if axis.is_sharded:
        found = run(filter_of(problem), backend=backend, axis=axis)
    else:
        ways = (partial(way, held) for way in (_filter_by_steps, _filter_at_once))
        found = by_backend(backend, *ways, problem)
    means, covs, terms = found
    return (means, Dense(covs)), axis.total(jnp.sum(terms))


def _filter_by_steps(held: Held, problem: Problem) -> Filtered:
    """Filter step by step, taking care only where it is called for.

    Most models never meet an innovation whose variance is lost in rounding, and the
    scan that looks for none is up to a fifth faster, or several times where XLA
    compiles its whole loop at once.
    """
    if held == "careful":
        return filter_exactly(problem)
    few = reduced(problem)
    return _unless_exact(problem, few.completed(filter_quickly(few.problem)), held)


def _filter_at_once(held: Held, problem: Problem) -> Filtered:
    """Filter by prefix scans, or all at once where steps are alike."""
    general = partial(filter_by_prefixes, held)
    return (
        general(problem) if held == "careful" else filter_unless_alike(general, problem)
    )


def filter_by_prefixes(held: Held, problem: Problem) -> Filtered:
    """Filter by combining elements, then one step from every posterior.

    Where an emission has next to no noise, the order in which evidence is taken in
    decides on how much of it is left, and a model is filtered step after step.
    """
    few = reduced(problem)
    found = few.completed(run(filter_of(few.problem), backend="associative"))
    return _unless_exact(problem, found, held, ahead=True)


def _unless_exact(
    problem: Problem, found: Filtered, held: Held, ahead: bool = False
) -> Filtered:
    if held == "quick":
        return found
    return lax.cond(
        anywhere(has_exact_emissions(problem, found[1], ahead=ahead)),
        lambda problem, _: filter_exactly(problem),
        lambda _, found: found,
        problem,
        found,
    )
