r"""Maximum likelihood for linear-Gaussian models by expectation maximisation.

One iteration smooths the series under the present model and moves to the parameters
that maximise the expected log density of states and emissions, in closed form
(Shumway and Stoffer, 1982; Ghahramani and Hinton, 1996): see `kalman/statistics` and
`kalman/maximization`. In exact arithmetic the log likelihood never falls. In floating
point it may, and then the step is not taken but tried again at half its length: EM
moves uphill, so a short enough step rises unless rounding is all that is left.
"""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from elk_ssm._options import check_count
from elk_ssm.kalman.completion import gaps_of
from elk_ssm.kalman.form import Held, chosen_form
from elk_ssm.kalman.freedom import DYNAMICS, EMISSION, check_free, free_parameters
from elk_ssm.kalman.lgssm import LGSSM, pose
from elk_ssm.kalman.maximization import maximized
from elk_ssm.kalman.moves import between, choose, finite_or
from elk_ssm.kalman.statistics import Series, expected_statistics
from elk_ssm.kalman.ties import Ties, tied
from elk_ssm.parallel.backend import Backend, check_backend
from elk_ssm.solution import Status

_HALVINGS = 10


class EMFit(NamedTuple):
    """A model fitted by expectation maximisation.

    Attributes:
        model: The `LGSSM`, every matrix in the structure that it was given in.
        log_likelihoods: Of the first model and of that held after each iteration,
            `(num_iters + 1,)`, NaN past the last one; it never falls.
        num_iters: Iterations done, `()`.
        status: A `Status`, `()`: `converged`, `max_iters_reached`, `nonfinite` if the
            log likelihood of the first model is not finite, and `precision_limit` if no
            step, however short, raised it.
        converged: Whether the status is `converged`, `()`.
        num_refused: Steps that were not taken since the log likelihood fell or was not
            finite, `()`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.EMFit._fields[0]
        'model'
    """

    model: LGSSM
    log_likelihoods: Array
    num_iters: Array
    status: Array
    converged: Array
    num_refused: Array


def lgssm_em(
    model: LGSSM,
    emissions: Array,
    inputs: Array | None = None,
    *,
    mask: Array | None = None,
    num_iters: int = 100,
    tol: float | None = None,
    fixed: Collection[str] = (),
    backend: Backend = "auto",
) -> EMFit:
    """Fit a linear-Gaussian model to one series or to several, which share it.

    Every parameter that is not named in `fixed` and is not `None` is estimated; give
    zeros for a bias or input weights that are to be. Structures stay what they are: a
    `Diagonal` or `BlockDiagonal` covariance or weight stays one, and a `ScaledIdentity`
    is one number. A variance of zero stays zero. Missing entries are integrated out
    exactly, whatever the structure of the noise: what was observed of the same step
    and the states say what the others were. A `Diffuse` start is held, and a
    `Stationary` one needs fixed dynamics. The likelihood of one series grows as
    `initial_covariance` shrinks to the smoothed state's; fix it if that is not wanted.

    Iterations stop when the log likelihood rises by less than `tol` for each observed
    entry, and all that follow, each the same share of the one before, would add no more
    (Aitken's rule; McLachlan and Krishnan, 2008, The EM Algorithm and Extensions,
    section 4.9); or when it rises by less than its rounding, and no more can be seen.

    Args:
        model: First parameters. What varies in time has to be fixed.
        emissions: `(T, E)`, or `(S, T, E)` for S series; NaN where missing. Pad shorter
            series with NaN: padding at the end costs nothing but time.
        inputs: `(T, U)` or `(S, T, U)`, finite.
        mask: As emissions or without their last axis, True where observed.
        num_iters: Iterations at most.
        tol: By default 1e-8 in float64 and 1e-6 in float32.
        fixed: Names of fields of `LGSSM` that are held.
        backend: For the smoother, as for `lgssm_smoother`.

    Returns:
        An `EMFit`. Works under `jit` and `vmap`, as over models to start from.

    Raises:
        ValueError: A shape does not fit, a name is unknown, or what is to be estimated
            has no closed form; the message says what to fix.
        TypeError: A dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.LGSSM(jnp.zeros(1), one, one, one, one, one)
        >>> y = jnp.cumsum(0.1 * jax.random.normal(jax.random.key(0), (200, 1)), axis=0)
        >>> held = ("dynamics_weights", "emission_weights", "initial_covariance")
        >>> found = elk.lgssm_em(model, y, fixed=held)
        >>> bool(found.log_likelihoods[20] > found.log_likelihoods[0])
        True
        >>> found.model.dynamics_covariance.scale < 0.1
        Array(True, dtype=bool)
    """
    check_backend(backend)
    check_count("num_iters", num_iters, 0)
    free = free_parameters(model, fixed)
    model, series, form = _read(model, emissions, inputs, mask)
    check_free(model, free)
    dtype = series.emissions.dtype
    if tol is None:
        tol = 1e-8 if jnp.finfo(dtype).bits > 32 else 1e-6
    how = _How(form, backend)
    return _climb(model, series, jnp.asarray(tol, dtype), free, num_iters, how)


def em_of_variances(
    model: LGSSM, emissions: Array, mask: Any, ties: Ties, limits: tuple[int, Any]
) -> EMFit:
    """Fit some of the variances of a model, of which some are one number.

    Args:
        model: First parameters.
        emissions: `(T, E)`, NaN where missing.
        mask: As for `lgssm_em`.
        ties: Which variances.
        limits: Iterations at most, and the tolerance or `None`.
    """
    names = {"dynamics_covariance": ties.process, "emission_covariance": ties.emission}
    free = frozenset(name for name, labels in names.items() if max(labels) >= 0)
    model, series, form = _read(model, emissions, None, mask)
    check_free(model, free)
    dtype, (num_iters, tol) = series.emissions.dtype, limits
    tol = (1e-8 if jnp.finfo(dtype).bits > 32 else 1e-6) if tol is None else tol
    how = _How(form, "auto", ties)
    return _climb(model, series, jnp.asarray(tol, dtype), free, num_iters, how)


class _How(NamedTuple):
    """What is static of an iteration."""

    form: Held
    backend: Backend
    ties: Ties | None = None


def _read(
    model: LGSSM, emissions: Any, inputs: Any, mask: Any
) -> tuple[LGSSM, Series, Held]:
    """Check model and data, and bring both into one form."""
    emissions = jnp.asarray(emissions)
    if emissions.ndim not in (2, 3):
        raise ValueError(
            f"emissions must be (T, E) or (S, T, E); got shape {emissions.shape}."
        )
    if emissions.ndim == 2:
        emissions = emissions[None]
        inputs, mask = (None if x is None else x[None] for x in (inputs, mask))
    for name, given in (("inputs", inputs), ("mask", mask)):
        if given is not None and jnp.shape(given)[:1] != emissions.shape[:1]:
            raise ValueError(
                f"{name} must have the {emissions.shape[0]} series of emissions; "
                f"got shape {jnp.shape(given)}."
            )
    if 0 in emissions.shape[:2]:
        raise ValueError(
            "emissions must have at least one series of at least one step; "
            f"got shape {emissions.shape}."
        )
    posed = [
        pose(model, y, *(None if x is None else x[i] for x in (inputs, mask)))
        for i, y in enumerate(emissions)
    ]
    form = chosen_form("auto", model, posed[0], smooth=True)
    # What needs no care now may need some later.
    form = "covariance" if form == "quick" else form
    dtype, observed = posed[0].values.dtype, jnp.stack([x.observed for x in posed])
    gaps = gaps_of(observed.reshape(-1, observed.shape[-1]))
    emissions = jnp.where(observed, emissions, 0).astype(dtype)
    inputs = None if inputs is None else jnp.asarray(inputs, dtype)
    return _as_dtype(model, dtype), Series(emissions, inputs, observed, gaps), form


def _as_dtype(model: LGSSM, dtype: Any) -> LGSSM:
    def one(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, model)


class _State(NamedTuple):
    held: LGSSM
    target: LGSSM
    share: Array  # of the way from the one to the other that is tried next
    log_likelihoods: Array
    num_iters: Array
    num_refused: Array
    status: Array


@partial(jax.jit, static_argnames=("free", "num_iters", "how"))
def _climb(
    model: LGSSM,
    series: Series,
    tol: Array,
    free: frozenset[str],
    num_iters: int,
    how: _How,
) -> EMFit:
    equations = not free.isdisjoint(DYNAMICS), not free.isdisjoint(EMISSION)
    dtype, count = tol.dtype, jnp.sum(series.observed)

    def going(state: _State) -> Array:
        return (state.status < 0) & (state.num_iters <= num_iters)

    def step(state: _State) -> _State:
        tried = between(state.held, state.target, state.share)
        found = expected_statistics(tried, series, equations, how[:2])
        value, i = found.log_likelihood, state.num_iters
        before = jnp.where(i > 0, state.log_likelihoods[i - 1], -jnp.inf)
        gain = value - before
        rounding = 4 * jnp.finfo(dtype).eps * (jnp.abs(value) + count)
        slack = 16 * rounding
        rises, refused = gain >= 0, ~(gain >= -slack)
        enough = jnp.maximum(tol * count, rounding)
        left = _left_after(gain, state.log_likelihoods, i)
        little = ~refused & (gain <= enough) & ((left <= enough) | (gain <= rounding))
        held = choose(rises, tried, state.held)
        best = maximized(tried, found, free)
        best = best if how.ties is None else tied(best, tried, how.ties)
        target = finite_or(best, tried)
        share = jnp.where(refused, state.share / 2, 1)
        highest = jnp.where(rises, value, before)
        return _State(
            held,
            choose(rises, target, state.target),
            share,
            state.log_likelihoods.at[i].set(jnp.where(i > 0, highest, value)),
            i + 1,
            state.num_refused + (refused & (i > 0)),
            _status(i, value, (little, state.share < 1, share)),
        )

    start = _State(
        model,
        model,
        jnp.ones((), dtype),
        jnp.full(num_iters + 1, jnp.nan, dtype),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.full((), -1, jnp.int32),
    )
    end = lax.while_loop(going, step, start)
    out = jnp.asarray(int(Status.max_iters_reached), jnp.int32)
    status = jnp.where(end.status < 0, out, end.status)
    done = status == int(Status.converged)
    return EMFit(
        end.held, end.log_likelihoods, end.num_iters - 1, status, done, end.num_refused
    )


def _left_after(gain: Array, values: Array, i: Array) -> Array:
    """Return what later iterations would add, each the same share of the one before."""
    before = values[i - 1] - values[i - 2]
    share = jnp.where((i > 1) & (before > 0), gain / before, 0)
    return jnp.where(share < 1, gain * share / (1 - share), jnp.inf)


def _status(i: Array, value: Array, judged: tuple[Array, Array, Array]) -> Array:
    """Return the status to end with, or -1 to go on."""
    little, shortened, share = judged
    spent = (little & shortened) | (share < 2.0**-_HALVINGS)
    status = jnp.where(spent, int(Status.precision_limit), -1)
    status = jnp.where(little & ~shortened, int(Status.converged), status)
    first = jnp.where(jnp.isfinite(value), -1, int(Status.nonfinite))
    return jnp.where(i > 0, status, first).astype(jnp.int32)
