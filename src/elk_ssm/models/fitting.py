r"""Fitting a model of `elk_ssm.models` to a series.

maximise log p(y; v(x)) + log prior(x) over unconstrained x, from one start or several.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from elk_ssm._options import check_count, check_tolerance
from elk_ssm._progress import searching
from elk_ssm._types import Array, ArrayLike
from elk_ssm.models.checks import check_series
from elk_ssm.models.closed_form import fit_variances
from elk_ssm.models.composed import Composed
from elk_ssm.models.data import as_emissions, as_times, gaps_between
from elk_ssm.models.descent import Search, climb
from elk_ssm.models.errors import errors_at
from elk_ssm.models.fit import ModelFit
from elk_ssm.models.prior import Prior

if TYPE_CHECKING:
    import optax

LogPrior = Prior | Callable[[Mapping[str, Array]], Array]


class _Data(NamedTuple):
    emissions: Array
    inputs: Any
    gaps: Array | None
    mask: Array | None


class _How(NamedTuple):
    """The choices of a fit, which are static."""

    search: Search
    log_prior: Callable | None
    num_starts: int


def fit_model(
    model: Composed,
    y: ArrayLike,
    inputs: ArrayLike | None = None,
    *,
    times: ArrayLike | None = None,
    mask: Array | None = None,
    prior: LogPrior | bool = False,
    method: "str | optax.GradientTransformation" = "auto",
    start: str | Mapping[str, ArrayLike] = "data",
    num_starts: int = 1,
    key: Array | None = None,
    max_iters: int = 200,
    tol: float | None = None,
    standard_errors: bool = True,
    progress: bool = False,
) -> ModelFit:
    r"""Fit a model to a series by its marginal likelihood; what `elk_ssm.fit` does.

    Parameters stay finite whatever happens: a step to where the objective is not is
    refused, halved and counted. `jax.vmap` fits many series at once; what is wrong with
    the values of a series is said where they are not traced.

    Args:
        model: A sum of `elk_ssm.models`.
        y: `(T,)` or `(T, E)`, NaN where missing.
        inputs: `(T, U)`, for regressions.
        times: `(T,)`, increasing, for components in continuous time.
        mask: `(T, E)` or `(T,)` boolean, True where observed.
        prior: Added to the log likelihood: a function of the unconstrained parameters
            by name, a `Prior`, or True for `model.default_prior(y)`.
        method: `"lbfgs"`, an optax transformation, or `"auto"`: L-BFGS. `"em"`:
            expectation maximisation, for sums whose free parameters are variances of
            states and noise; without a prior, times or several starts.
        start: `"data"` for variances that suit the scale of the series, `"model"` for
            the parameters of the model, or constrained values by name.
        num_starts: How many starts, all at once; the best end is returned.
        key: For the starts but the first, drawn around it as widely as a weak prior.
        max_iters: Steps at most.
        tol: Gain in log likelihood, promised by a step, below which it has converged;
            about 1e-9 in float64 and 1e-4 in float32, and roundings.
        standard_errors: Whether to find them.
        progress: Whether to show the search on standard error while it runs.

    Returns:
        The fit.

    Raises:
        ValueError: The series is constant, too short or not observed at all, a shape or
            an option does not fit, or nothing is free.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.sin(jnp.arange(30.0)) + jnp.arange(30.0) % 3
        >>> fitted = elk.fit(elk.models.autoregressive(2), y - y.mean())
        >>> fitted.standard_errors["autoregressive.ar"].shape
        (2,)
    """
    y = as_emissions(y, model.emission_dim)
    model = model.astype(jnp.result_type(y))
    gaps = None if times is None else gaps_between(times)
    check_series(model, y, inputs, gaps, mask)
    check_count("max_iters", max_iters, 0)
    check_tolerance("tol", tol, zero=True)
    if not model.free:
        raise ValueError("nothing is left to fit: every parameter is fixed.")
    if num_starts > 1 and key is None:
        raise ValueError(f"num_starts={num_starts} needs a key for the other starts.")
    if isinstance(method, str) and method not in ("auto", "lbfgs", "em"):
        known = "auto, lbfgs, em, an optax transformation"
        raise ValueError(f"method must be one of {known}; got {method!r}.")
    if start not in ("data", "model") and isinstance(start, str):
        raise ValueError(f"start must be 'data', 'model' or values; got {start!r}.")
    begin = model.start(y) if start == "data" else model
    begin = begin.replace(**start) if isinstance(start, Mapping) else begin
    chosen: Any = model.default_prior(y) if prior is True else prior or None
    data_prior = chosen if isinstance(chosen, Prior) else None
    by_user = None if isinstance(chosen, Prior) else chosen
    tool = None if isinstance(method, str) else method
    search = Search(tool, max_iters, tol, standard_errors, bool(progress))
    how = _How(search, by_user, num_starts)
    data = _Data(y, inputs if inputs is None else jnp.asarray(inputs), gaps, mask)
    if method != "em":
        with searching(progress, data):
            found = _fit(begin, data, data_prior, key, how)
        return found._replace(times=as_times(times))
    _check_em(chosen, times, num_starts)
    limits = max_iters, tol
    begin, path = fit_variances(begin, y, inputs, mask, limits)
    # No steps from there: what is left are the slope and the standard errors.
    how = how._replace(search=search._replace(tool=None, max_iters=0))
    found = _fit(begin, data, None, None, how)
    return found._replace(
        status=path.status, num_iters=path.num_iters, num_refused=path.num_refused
    )


def _check_em(prior: Any, times: Any, num_starts: int) -> None:
    for name, given in (
        ("prior", prior is not None),
        ("times=", times is not None),
        ("several starts", num_starts > 1),
    ):
        if given:
            raise ValueError(f"method='em' takes no {name}; fit by L-BFGS.")


@partial(jax.jit, static_argnames="how")
def _fit(
    model: Composed, data: _Data, prior: Prior | None, key: Array | None, how: _How
) -> ModelFit:
    x, unravel = ravel_pytree(model.unconstrained)

    def at(x: Array) -> Composed:
        return model.with_unconstrained(unravel(x))

    def log_prior(x: Array) -> Array:
        chosen = how.log_prior if prior is None else prior
        return jnp.zeros((), x.dtype) if chosen is None else chosen(unravel(x))

    def objective(x: Array) -> Array:
        return at(x).evidence(*data) + log_prior(x)

    search = partial(climb, objective, how=how.search)
    if how.num_starts == 1:
        found, objectives = search(x), None
    else:
        found = jax.vmap(search)(_starts(model, x, key, how.num_starts))
        objectives = found.value
        best = jnp.argmax(jnp.where(jnp.isfinite(objectives), objectives, -jnp.inf))
        found = jax.tree.map(lambda leaf: leaf[best], found)
    fitted, prior_value = at(found.x), log_prior(found.x)
    errors: dict[str, Array] = {}
    boundary: dict[str, Array] = {}
    if how.search.information:
        own = found.information + jax.hessian(log_prior)(found.x)
        errors, boundary = _errors(own, at, unravel, found.x)
    seen = ~jnp.isnan(data.emissions)
    seen = seen if data.mask is None else seen & data.mask.reshape(len(seen), -1)
    return ModelFit(
        fitted,
        errors,
        boundary,
        found.value - prior_value,
        prior_value,
        found.status,
        found.num_iters,
        found.num_refused,
        jnp.max(jnp.abs(found.slope)),
        found.value[None] if objectives is None else objectives,
        jnp.sum(seen),
        jnp.where(seen, data.emissions, jnp.nan),
        data.inputs,
        data.gaps,
    )


def _starts(model: Composed, x: Array, key: Array | None, count: int) -> Array:
    """Return the start and draws around it, `(count, n)`."""
    assert key is not None
    widths = model.default_widths
    spread, _ = ravel_pytree(
        {
            k: jnp.broadcast_to(widths[k], v.shape)
            for k, v in model.unconstrained.items()
        }
    )
    noise = jax.random.normal(key, (count - 1, *x.shape), x.dtype)
    return jnp.concatenate([x[None], x + spread.astype(x.dtype) * noise / 2])


def _errors(
    information: Array, at: Callable, unravel: Callable, x: Array
) -> tuple[dict, dict]:
    _, restore = ravel_pytree(at(x).parameters)

    def constrained(x: Array) -> Array:
        return ravel_pytree(at(x).parameters)[0]

    found = errors_at(information, constrained, x)
    # `unravel` casts to floats, which flags survive.
    flags = unravel(found.at_boundary.astype(x.dtype))
    return restore(found.standard), {k: v > 0 for k, v in flags.items()}
