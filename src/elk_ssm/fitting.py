r"""Parameters by gradient ascent on the approximate marginal likelihood.

    theta <- optimiser step along d/dtheta [ log p(y; theta) + log prior(theta) ]

log p(y; theta) is `Smoothed.log_likelihood`, the Gaussian approximation at the mode,
and its derivative is implicit at the mode (see `mode`): it contains how the mode moves.
The mode of one step is the guess of the next, so later steps need few passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    Protocol,
    overload,
    runtime_checkable,
)

import jax
import jax.numpy as jnp

from elk_ssm._showing import held, number
from elk_ssm._types import Array, PyTree
from elk_ssm.expectation_maximization import EMFit, lgssm_em
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.observations import Observations, array_with_gaps
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.smoothing import Smoothed, smooth

if TYPE_CHECKING:
    import optax


class Fit(NamedTuple):
    """Fitted parameters.

    Attributes:
        params: The parameters with the largest objective seen.
        objective: log p(y) + log prior at each step, divided by the number of observed
            entries (of observed steps with a log density), `(num_steps,)`.
        statuses: Status of the smoother at each step, `(num_steps,)`.
        smoothed: The smoother's result at `params`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Fit._fields
        ('params', 'objective', 'statuses', 'smoothed')
    """

    params: PyTree
    objective: Array
    statuses: Array
    smoothed: Smoothed

    @property
    def converged(self) -> Array:
        """Whether the states at `params` converged, boolean."""
        return self.smoothed.converged

    def __repr__(self) -> str:
        seen = {"objective": number(self.objective), "smoothed": repr(self.smoothed)}
        return held(self, "params", **seen)


@runtime_checkable
class Fittable(Protocol):
    """What knows by itself how it is fitted, such as a model of `elk_ssm.models`."""

    def fit_to(self, *data: Any, **options: Any) -> Any:
        """Return what fitting finds."""


@overload
def fit(
    build: Callable[[PyTree], NonlinearSSM],
    params: PyTree,
    emissions: Array,
    inputs: PyTree = None,
    **options: Any,
) -> Fit: ...


@overload
def fit(build: LGSSM, *data: Any, method: str = "em", **options: Any) -> EMFit: ...


@overload
def fit(build: Fittable, *data: Any, **options: Any) -> Any: ...


def fit(build: Any, *data: Any, **options: Any) -> Any:
    """Fit a model to data by its marginal likelihood.

    **A model of `elk_ssm.models`**: `fit(model, y, inputs=None, ...)` returns an
    `elk_ssm.models.ModelFit`; its options are those of
    `elk_ssm.models.fitting.fit_model`.

    **A function that builds a `NonlinearSSM`**: `fit(build, params, emissions,
    inputs=None, ...)` returns a `Fit`; its options are those of
    `elk_ssm.fitting.fit_built`.

    **An `LGSSM`**: `fit(lgssm, emissions, inputs=None, ...)` returns an `EMFit`, by
    expectation maximisation, `method="em"`, the only method for one; its other options
    are those of `elk_ssm.lgssm_em`.

    Args:
        build: A model, or `build(params) -> NonlinearSSM`; transform constrained
            parameters there.
        *data: `y` and inputs; or the first parameters, unconstrained and any pytree of
            floats, emissions `(T, E)`, NaN where missing, and inputs, a pytree with
            leading axis T.
        **options: As above.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.array([1.0, 1.4, 0.7, 2.2, 2.6, 1.9, 3.4, 3.1])
        >>> bool(elk.fit(elk.models.local_level(), y).converged)
        True
        >>> one = elk.ScaledIdentity(1.0)
        >>> def build(log_q):
        ...     q = elk.ScaledIdentity(jnp.exp(log_q))
        ...     return elk.NonlinearSSM(jnp.zeros(1), one, lambda z, u: z, q, None, one)
        >>> fitted = elk.fit(build, jnp.zeros(()), jnp.ones((20, 1)), num_steps=30)
        >>> bool(fitted.params < -0.5)
        True
    """
    if isinstance(build, Fittable):
        return build.fit_to(*data, **options)
    if isinstance(build, LGSSM):
        return _fit_lgssm(build, *data, **options)
    if not callable(build):
        raise TypeError(
            "the first argument must be a model, or a function that builds one; got "
            f"{type(build).__name__}. The order is fit(model, y, inputs)."
        )
    return fit_built(build, *data, **options)


def _fit_lgssm(model: LGSSM, *data: Any, method: str = "em", **options: Any) -> EMFit:
    if method not in ("em", "auto"):
        raise ValueError(
            f"an LGSSM is fitted by method='em'; got {method!r}. For gradients write a "
            "log density with lgssm_log_likelihood, or use a model of elk.models."
        )
    return lgssm_em(model, *data, **options)


def fit_built(
    build: Callable[[PyTree], NonlinearSSM],
    params: PyTree,
    emissions: Array,
    inputs: PyTree = None,
    *,
    mask: Array | None = None,
    num_steps: int = 100,
    optimizer: optax.GradientTransformation | float = 0.05,
    log_prior: Callable[[PyTree], Array] | None = None,
    guess: Array | None = None,
    **options: Any,
) -> Fit:
    """Maximise the approximate marginal likelihood with an optax optimiser.

    What `fit` does with a function. A step whose objective or gradient is not finite is
    skipped. A model whose P or Q is singular at the first parameters is taken as
    singular at all of them.

    Args:
        build: `build(params) -> NonlinearSSM`; transform constrained parameters here.
        params: First parameters, unconstrained, any pytree of floats.
        emissions: `(T, E)`, NaN where missing.
        inputs: Pytree with leading axis T.
        mask: `(T, E)` or `(T,)` boolean, True where observed.
        num_steps: Optimiser steps.
        optimizer: An optax transformation, or the learning rate of Adam.
        log_prior: Added to the log likelihood.
        guess: First trajectory `(T, D)` of the first step.
        **options: For `smooth`.
    """
    import optax  # here, so that evaluating a recurrence needs jax and numpy only

    tool = optax.adam(optimizer) if isinstance(optimizer, float) else optimizer
    emissions = array_with_gaps(emissions)
    first = build(params)
    whole = first.log_density is not None
    seen = Observations.of(emissions, mask, whole=whole)
    count = jnp.maximum(seen.num_observed(), 1)
    options = {**options, "mask": mask}

    def made(params: PyTree) -> NonlinearSSM:
        # Zeros that are seen in the first covariances cannot be in traced ones.
        model = build(params)
        return replace(model, singular=True) if first.singular else model

    def loss(params: PyTree, states: Array) -> tuple[Array, Smoothed]:
        result = smooth(made(params), emissions, inputs, guess=states, **options)
        prior = 0.0 if log_prior is None else log_prior(params)
        return -(result.log_likelihood + prior) / count, result

    def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
        params, state, states, best = carry
        (value, result), slope = jax.value_and_grad(loss, has_aux=True)(params, states)
        best = _choose(value < best[0], (value, params), best)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            updates, new_state = tool.update(slope, state, params)
        fine = _finite((value, slope))
        moved = _choose(fine, optax.apply_updates(params, updates), params)
        states = jnp.where(jnp.isfinite(result.means), result.means, states)
        after = (moved, _choose(fine, new_state, state), states, best)
        return after, (-value, result.status)

    if guess is None:
        mean = jnp.asarray(first.initial_mean)
        guess = jnp.broadcast_to(mean, (emissions.shape[0], *mean.shape))
    worst = jnp.asarray(jnp.inf, jax.eval_shape(loss, params, guess)[0].dtype)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=num_steps))
    carry, (objective, statuses) = run(
        (params, tool.init(params), guess, (worst, params))
    )
    smoothed = smooth(made(carry[3][1]), emissions, inputs, guess=carry[2], **options)
    return Fit(carry[3][1], objective, statuses, smoothed)


def _choose(condition: Array, chosen: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def _finite(tree: PyTree) -> Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))
