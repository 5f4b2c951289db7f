r"""Where the mode of a singular model is looked for first.

Like a quadratic penalty, a little noise in every direction makes a singular model
regular:

    Q + rho diag(s),    P + rho diag(s),     s the largest diagonal of what P and Q
                                             reach in up to D steps of the dynamics

(in each dimension the unit of its own). Its iterated smoother (see `iterate`), parallel
in time, may pass trajectories that the singular model cannot take, like the nodes of a
multiple shooting. Its result is near the mode, and from there, from the guess and from
the path without noise, feedback leads to trajectories that the model can take (see
`steering`). The best one is where Newton's method on the noise begins.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._loop import run_passes
from elk_ssm._types import Array
from elk_ssm.linalg.small import matmul, transpose
from elk_ssm.linalg.structure import Dense, to_dense
from elk_ssm.nssm.driven import Driven, noise_between, noise_width, roll
from elk_ssm.nssm.expansion import process_covariance
from elk_ssm.nssm.iterate import MOST_PASSES, Carry, one_pass
from elk_ssm.nssm.iterate import start as start_passes
from elk_ssm.nssm.options import Choices, Limits
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.riccati import transition_slopes
from elk_ssm.nssm.steering import approach, merit_of

_RELAXED = 1e-4


def relax(posed: Posed, states: Array) -> Posed:
    """Return the regular model near a singular one, Q frozen along the states."""
    more = _RELAXED * reach(posed, states)
    Q = process_covariance(posed, states)
    if Q.mixes:
        Q = Dense(to_dense(Q) + jnp.diag(more))
    else:
        Q = Q.diag(Q.variances() + more)
    program = posed.program._replace(dynamics_covariance=None, dynamics_root=None)
    consts = posed.consts._replace(dynamics_covariance=None, dynamics_root=None)
    return replace(
        posed,
        initial_covariance=posed.initial_covariance + jnp.diag(more),
        dynamics_covariance=Q,
        program=program,
        consts=consts,
        roots=None,
    )


def reach(posed: Posed, states: Array) -> Array:
    """Return the variance that a first few steps bring to each dimension, `(D,)`."""
    size = states.shape[1]
    few = min(size, states.shape[0] - 1)
    Q = to_dense(process_covariance(posed, states))
    Q = jnp.broadcast_to(Q, (states.shape[0], size, size))
    width = noise_width(posed)
    still = Driven(states, jnp.zeros((states.shape[0], width), states.dtype))
    A, _ = transition_slopes(posed, still)
    P = posed.initial_covariance
    largest = jnp.diagonal(P)
    for t in range(1, few + 1):
        P = matmul(A[t], matmul(P, transpose(A[t]))) + Q[t]
        largest = jnp.maximum(largest, jnp.diagonal(P))
    largest = jnp.where(jnp.isfinite(largest), largest, 1)
    most = jnp.max(largest)
    # What nothing reaches is told its scale by what is.
    return jnp.where(largest > 0, largest, jnp.where(most > 0, most, 1))


def first_path(
    posed: Posed, guess: Array, choices: Choices, limits: Limits, policy: Any = None
) -> tuple[Driven, Array, Carry]:
    """Return the best path to begin with, its merit, and the relaxed passes' carry."""
    relaxed = relax(posed, guess)
    first = start_passes(relaxed, guess, choices, limits, policy)
    most = jnp.minimum(limits.max_iters, MOST_PASSES)
    carry = run_passes(
        lambda carry: one_pass(relaxed, choices, limits, carry), first, most
    )

    def both(states: Array) -> Driven:
        around = Driven(states, noise_between(posed, states)[0])
        found = roll(posed, around.noise), approach(posed, around)
        return jax.tree.map(lambda *x: jnp.stack(x), *found)

    found = jax.lax.map(both, jnp.stack([guess, carry.states]))
    paths = jax.tree.map(lambda x: x.reshape(4, *x.shape[2:]), found)
    still = roll(posed, jnp.zeros_like(paths.noise[0]))
    paths = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), paths, still)
    merits = jax.lax.map(lambda path: merit_of(posed, path), paths)
    best = jnp.argmin(merits)
    return jax.tree.map(lambda x: x[best], paths), merits[best], carry
