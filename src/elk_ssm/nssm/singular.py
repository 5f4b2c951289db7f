r"""The mode of a singular model, the Gaussian around it, and how it moves.

The search is a regular model's (see `relaxed`), then Newton's method on the noise that
drives the trajectory (see `steering`). Around the mode, with the M of `riccati`,

    log p(y) = log p(y | z) - sum_t [ w_t'w_t + log det M_t ] / 2

Laplace's approximation in the noise. No volume is in it, so it is that of a regular
model as well, and exact for a linear-Gaussian one.

With theta the mode moves by the linear-quadratic problem that is left where the
equation of the mode is differentiated: its dynamics have the gaps df/dtheta, its costs
the slopes of the mixed second derivatives, its curvature is the exact one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._loop import SEARCHING, cut_off, status_of
from elk_ssm._types import Array
from elk_ssm.kalman.filtering import lgssm_filter
from elk_ssm.kalman.roundings import rounding_of
from elk_ssm.kalman.whitening import square_root
from elk_ssm.linalg.small import matvec
from elk_ssm.linalg.structure import to_dense
from elk_ssm.nssm.driven import (
    Driven,
    each_root,
    initial_root,
    log_driven,
    log_emissions,
    log_volume,
    move,
    process_roots,
)
from elk_ssm.nssm.expansion import Expansion, expand
from elk_ssm.nssm.newton import lowest_merit
from elk_ssm.nssm.options import Choices, Limits
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.relaxed import first_path, reach
from elk_ssm.nssm.riccati import (
    EXACT,
    Feedback,
    Linear,
    eliminate,
    perturbed,
    spread,
    tensors,
)
from elk_ssm.nssm.steering import Steered, expand_path, information_of, steer
from elk_ssm.solution import Status


def smooth_singular(
    posed: Posed, guess: Array, limits: Limits, policy: Any, choices: Choices
) -> dict[str, Array]:
    """Return what `Smoothed` holds."""
    held = jax.lax.stop_gradient((posed, limits))
    found = jax.lax.stop_gradient(
        find_mode(held[0], jax.lax.stop_gradient(guess), choices, held[1], policy)
    )
    path = Driven(*attach_path(posed, found.path))
    return {
        "means": path.states,
        "status": found.status,
        "num_iters": found.iteration,
        "step_norm": found.step_norm,
        **gaussian_around_path(posed, path, choices),
    }


def find_mode(
    posed: Posed, guess: Array, choices: Choices, limits: Limits, policy: Any
) -> Steered:
    """Search from a guess `(T, D)`, which need not be a trajectory of the model."""
    path, merit, carry = first_path(posed, guess, choices, limits, policy)
    begin = Steered(
        path=path,
        merit=merit,
        lowest=lowest_merit(posed, merit),
        shift=jnp.zeros_like(merit),
        iteration=carry.iteration,
        stalls=jnp.zeros_like(carry.stalls),
        step_norm=jnp.full_like(merit, jnp.inf),
        status=status_of((~jnp.isfinite(merit), Status.nonfinite), otherwise=SEARCHING),
    )
    return cut_off(steer(posed, begin, *limits[1:]))


def gaussian_around_path(
    posed: Posed, path: Driven, choices: Choices
) -> dict[str, Array]:
    """Return what `Smoothed` holds of the Gaussian around a mode."""
    states = path.states
    taylor = expand(posed, states, kind="exact")
    linear = linear_of(taylor, each_root(posed, states))
    feedback = eliminate(path.noise, linear, None, solver=EXACT)
    half = 0.5 * jnp.sum(path.noise**2) + 0.5 * jnp.sum(jnp.log(feedback.pivots))
    evidence = log_emissions(posed, states) - half
    covariances = spread(linear, feedback)
    expansion = taylor
    exact = posed.is_gaussian and not posed.has_varying_noise
    if choices.linearization != "taylor":
        over = covariances + _little(posed, states)
        kind = choices.linearization
        expansion = expand(posed, states, over, kind, kind="exact")
        linear = linear_of(expansion, _roots_of(expansion))
        covariances = spread(linear, eliminate(path.noise, linear, None, solver=EXACT))
    if not exact:
        expansion = expansion.without_data()
    values, seen = expansion.rows.values, expansion.rows.observed
    filtered = lgssm_filter(
        expansion.model(), values, mask=seen, backend=choices.backend
    )
    if exact and choices.linearization != "taylor":
        evidence = filtered.log_likelihood
    return {
        "covariances": covariances,
        "log_likelihood": evidence,
        "log_posterior": log_driven(posed, path),
        "filtered_means": states + filtered.filtered_means,
        "filtered_covariances": to_dense(filtered.filtered_covariances),
    }


def _little(posed: Posed, states: Array) -> Array:
    """Return a spread over which sigma points may regress where there is none."""
    eps = float(jnp.finfo(states.dtype).eps) ** 0.5
    return jax.lax.stop_gradient(eps * jnp.diag(reach(posed, states)))


def linear_of(expansion: Expansion, roots: Array) -> Linear:
    """Return an expansion as what is eliminated, without residuals."""
    A = expansion.weights.at[0].set(0)
    zero = jnp.zeros_like(expansion.offsets)
    return Linear(A, roots, zero, zero, information_of(expansion.rows))


def _roots_of(expansion: Expansion) -> Array:
    steps, size = expansion.offsets.shape
    Q = jnp.broadcast_to(to_dense(expansion.covariance), (steps, size, size))
    Q = Q.at[0].set(expansion.initial_covariance)
    return jax.vmap(lambda C: square_root(C, rounding_of(jnp.diagonal(C))))(Q)


@jax.custom_jvp
def attach_path(posed: Posed, path: Driven) -> Driven:
    """Return the mode as a function of the model; its value is `path`."""
    return path


@attach_path.defjvp
def _attach_jvp(primals: tuple, tangents: tuple) -> tuple[Driven, Driven]:
    (posed, path), (change, _) = primals, tangents
    # Attached again: what follows moves with the model when it is differentiated.
    mode = Driven(*attach_path(posed, path))
    linear = expand_path(posed, mode)
    feedback = eliminate(mode.noise, linear, tensors(posed, mode), solver=EXACT)

    def terms(posed: Posed) -> tuple:
        return slopes_at(posed, mode, feedback)

    gaps, noise, before, states = jax.jvp(terms, (posed,), (change,))[1]
    linear = linear._replace(gaps=gaps)
    return mode, Driven(*perturbed(linear, feedback, noise, before, states))


def slopes_at(posed: Posed, path: Driven, feedback: Feedback) -> tuple:
    """Return the next states, and the slopes of the Lagrangian along a path.

    The multipliers are the slopes v+ of the feedback, held. Slopes are those in w_t, in
    z_{t-1} and, of the emissions, in z_t.
    """
    root, axis = process_roots(posed)
    first = posed.initial_mean + matvec(initial_root(posed), path.noise[0])

    def one(before, w, entry, after, root):
        def along(before, w):
            cost = jnp.sum(after * move(posed, before, w, entry, root))
            if root is None:
                cost = cost + log_volume(posed.call("dynamics_root", before, entry))
            return cost

        moved = move(posed, before, w, entry, root)
        return moved, *jax.grad(along, (0, 1))(before, w)

    data = path.states[:-1], path.noise[1:], posed.inputs_into, feedback.after[1:]
    moved, before, noise = jax.vmap(one, (0, 0, 0, 0, axis))(*data, root)
    noise_first = matvec(initial_root(posed).T, feedback.after[0])
    emissions = -jax.grad(lambda x: log_emissions(posed, x))(path.states)
    return (
        jnp.concatenate([first[None], moved]),
        jnp.concatenate([noise_first[None], noise]),
        jnp.concatenate([jnp.zeros_like(first)[None], before]),
        emissions,
    )
