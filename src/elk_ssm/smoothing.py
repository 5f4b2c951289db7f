"""Smoothing of nonlinear state-space models: the trajectory that real data suggest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elk_ssm._jax import deliberate_nans
from elk_ssm._options import check_shardable
from elk_ssm._types import Array, ArrayLike, PyTree
from elk_ssm.nssm.driven import log_joint_on
from elk_ssm.nssm.extended import extended_fields, extended_posterior
from elk_ssm.nssm.information import gaussian_around
from elk_ssm.nssm.iterate import iterate
from elk_ssm.nssm.mode import attach
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.options import (
    Choices,
    Limits,
    check_choices,
    check_guess,
    check_limits,
    check_singular,
    check_states,
)
from elk_ssm.nssm.posed import Posed, pose
from elk_ssm.nssm.shards import on_shards
from elk_ssm.nssm.singular import smooth_singular
from elk_ssm.nssm.slopes import Linearization
from elk_ssm.parallel.backend import Backend, check_backend
from elk_ssm.parallel.mesh import Shards, off_explicit, shards_of
from elk_ssm.solution import Smoothed
from elk_ssm.surrogate.noise import GainRatio, NoisePolicy

DEFAULT_NOISE = GainRatio(initial=1e4, grow=10.0, shrink=0.1, minimum=1e-6)


def smooth(
    model: NonlinearSSM,
    emissions: Array,
    inputs: PyTree = None,
    *,
    mask: Array | None = None,
    linearization: Linearization = "taylor",
    noise: NoisePolicy | ArrayLike | None = DEFAULT_NOISE,
    guess: Array | str | None = None,
    tol: float | None = None,
    max_iters: int = 100,
    safeguard: bool = True,
    backend: Backend = "auto",
    mesh: Mesh | None = None,
    axis_name: str = "time",
) -> Smoothed:
    r"""Find the MAP trajectory of a nonlinear model and the Gaussian around it.

    Maximises log p(z_0) + sum log p(z_t | z_{t-1}) + sum log p(y_t | z_t) by iterated
    extended Kalman smoothing (Bell 1994, SIAM J. Optim. 4): each pass is a Kalman
    smoother, parallel in time by the backend. The trust region is an extra observation
    of the previous iterate (Särkkä & Svensson 2020, "Levenberg-Marquardt and
    line-search extended Kalman smoothers"), and a pass is only accepted where the true
    log posterior rises.

    Where these passes end, and after 20 of them, Newton's method with the exact Hessian
    takes over (Nocedal & Wright 2006, sections 3.4 and 4.3), a sequential elimination
    over time. It confirms the mode, in one pass where it is one, goes on where
    Gauss-Newton stalls, and leaves saddles and minima along negative curvature.
    Converged means: the Newton decrement g' (-H)^-1 g of the log posterior is zero but
    for rounding or below tol^2 T D, its Hessian is negative definite (as far as
    rounding tells), and the last undamped step is below `tol`.

    Derivatives with respect to everything in the model, the emissions and the inputs
    are implicit at the mode: they do not depend on the iteration, and are right when it
    has converged, first and second ones. They belong to the mode, so not to what sigma
    points without the safeguard converge to.

    With singular P or Q (see `NonlinearSSM`) these passes run with a little noise in
    every direction; then Newton's method in the noise that drives the trajectory
    (Jacobson & Mayne 1970) goes on among trajectories that the model can take.

    Args:
        model: The model.
        emissions: `(T, E)`, NaN where missing.
        inputs: Pytree with leading axis T; entry t drives the transition into t.
        mask: `(T, E)` or `(T,)` boolean, True where observed.
        linearization: `"taylor"`, or sigma points, `"unscented"` or `"cubature"`. These
            take steps from the spread of the posterior, until such steps cease to
            raise the log posterior; Newton's method then leads to a mode too. Log
            densities are always expanded by Taylor.
        noise: s^2 of the observation of the previous iterate in units of the process
            variance: a number, an array or a policy; `None` is undamped Gauss-Newton.
        guess: First trajectory `(T, D)`; `"extended"` for the extended Kalman smoother
            (a sequential filter finds it; where it diverges, as `None`); `None` for
            the initial mean throughout.
        tol: Largest undamped step relative to the states' size, 1e-8 in float64 and
            1e-4 in float32.
        max_iters: Largest number of passes.
        safeguard: Whether only rises of the log posterior are accepted; then the
            returned one is never below that of the guess. Sigma points without it are
            iterated posterior linearisation, which converges to its own fixed point.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.
        mesh: Devices over which time is sharded, one piece of the series on each, as
            for `evaluate`. Not with `guess="extended"`, nor if the model is singular.
        axis_name: Name of the axis of the mesh for time.

    Returns:
        A `Smoothed`. Its status is `converged`, `max_iters_reached`, `precision_limit`
        (rounding hides every rise that is left, but steps are not small yet; or it is
        more than the deviation of a state given all others), `saddle` (no slope, and
        no way up that rounding does not hide, but not a maximum), `unbounded` (the log
        posterior grows without bound) or `nonfinite` (the log posterior at the guess,
        its derivatives where the iteration stands, or an undamped step). Without the
        safeguard a small undamped step is convergence, and nothing is said about the
        Hessian.

    Raises:
        ValueError: A shape or an option does not fit.
        TypeError: A dtype or a function cannot be used.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.NonlinearSSM(
        ...     jnp.zeros(1), one, lambda z, u: jnp.sin(z), one, lambda z, u: z, one
        ... )
        >>> smoothed = elk.smooth(model, jnp.array([[1.0], [jnp.nan], [2.0]]))
        >>> int(smoothed.status), smoothed.means.shape, smoothed.covariances.shape
        (0, (3, 1), (3, 1, 1))
    """
    shards = shards_of(mesh, axis_name)
    if shards is not None:
        data = off_explicit((emissions, inputs, mask), "smooth")
        emissions, inputs, mask = data
    posed = pose(model, emissions, inputs, mask)
    choices = check_choices(linearization, backend, safeguard)
    limits = check_limits(noise, tol, max_iters, posed)
    if posed.roots is not None:
        check_singular(choices, shards is not None)
    guess = check_guess(guess, posed)
    if shards is None:
        return _smooth(posed, guess, limits, choices=choices)
    if guess is None:
        raise ValueError(
            'guess="extended" goes through time step by step, on one device; with a '
            "mesh pass an array or None."
        )
    check_shardable(limits.noise)
    return _smooth_on_mesh(posed, guess, choices, limits, shards)


def extended_smoother(
    model: NonlinearSSM,
    emissions: Array,
    inputs: PyTree = None,
    *,
    mask: Array | None = None,
    backend: Backend = "auto",
) -> Smoothed:
    """Run one pass of the extended Kalman smoother, without iterating.

    Fast, and the baseline: it may be far from the mode, or diverge. Arguments and
    result as `smooth`; the status is `converged` if all is finite. The log likelihood
    is that of the extended Kalman filter for Gaussian emissions, and a rough one (that
    of the pseudo-observations) for a log density.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.NonlinearSSM(
        ...     jnp.zeros(1), one, lambda z, u: jnp.sin(z), one, lambda z, u: z, one
        ... )
        >>> elk.extended_smoother(model, jnp.ones((4, 1))).means.shape
        (4, 1)
    """
    check_backend(backend)
    found = _extended(pose(model, emissions, inputs, mask), backend)
    with deliberate_nans():  # One pass has no step that could be small.
        return found._replace(step_norm=jnp.full_like(found.step_norm, jnp.nan))


def log_prob(
    model: NonlinearSSM,
    states: Array,
    emissions: Array,
    inputs: PyTree = None,
    *,
    mask: Array | None = None,
) -> Array:
    """Return log p(states, emissions), `()`, without the missing emissions.

    For singular P or Q it is the density on the trajectories that some noise leads to,
    with pseudo-determinants, and -inf for others: where more than sqrt(eps) of the
    largest state of a dimension is left unexplained.

    Args:
        model: The model.
        states: `(T, D)`.
        emissions: `(T, E)`, NaN where missing.
        inputs: Pytree with leading axis T.
        mask: `(T, E)` or `(T,)` boolean, True where observed.

    Raises:
        ValueError: A shape does not fit.
        TypeError: A dtype or a function cannot be used.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> model = elk.NonlinearSSM(
        ...     jnp.zeros(1), one, lambda z, u: z, one, lambda z, u: z, one
        ... )
        >>> round(float(elk.log_prob(model, jnp.zeros((1, 1)), jnp.zeros((1, 1)))), 3)
        -1.838
    """
    posed = pose(model, emissions, inputs, mask)
    return log_joint_on(posed, check_states("states", states, posed))


@partial(jax.jit, static_argnames="choices")
def _smooth(
    posed: Posed,
    guess: Array | None,
    limits: Limits,
    policy: Any = None,
    *,
    choices: Choices,
) -> Smoothed:
    held = jax.lax.stop_gradient((posed, limits))
    if guess is None:
        guess = extended_posterior(held[0], choices.backend).smoothed_means
        # That smoother may diverge where the iteration does not.
        whole = jnp.all(jnp.isfinite(guess))
        guess = jnp.where(whole, guess, held[0].initial_mean)
    if posed.roots is not None:
        return Smoothed(**smooth_singular(posed, guess, limits, policy, choices))
    guess = jax.lax.stop_gradient(guess)
    found = iterate(held[0], guess, choices, held[1], policy)
    found = jax.lax.stop_gradient(found)
    mode = attach(posed, found.states)
    return Smoothed(
        means=mode,
        status=found.status,
        num_iters=found.iteration,
        step_norm=found.step_norm,
        **gaussian_around(posed, mode, found.covariances, choices),
    )


@partial(jax.jit, static_argnames=("choices", "shards"))
def _smooth_on_mesh(
    posed: Posed, guess: Array, choices: Choices, limits: Limits, shards: Shards
) -> Smoothed:
    """Smooth with every device of a mesh doing its shard."""
    run = partial(_smooth, choices=choices)
    return Smoothed(**on_shards(shards, run, posed, guess, limits))


@partial(jax.jit, static_argnames="backend")
def _extended(posed: Posed, backend: Backend) -> Smoothed:
    return Smoothed(**extended_fields(posed, backend))
