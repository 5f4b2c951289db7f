"""What travels through the loop, and what it is before the first pass."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from elk_ssm._loop import RUNNING
from elk_ssm._types import Array
from elk_ssm.solution import EMPTY, History
from elk_ssm.solve.anderson import Remembered, remember_nothing
from elk_ssm.solve.method import Method
from elk_ssm.surrogate.policy import first_state


class Carry(NamedTuple):
    """What travels through the loop.

    `scale` is what the last pass was judged by, kept where asking for it again would be
    a message between devices; `mixed` what `anderson` remembers.
    """

    nodes: Array
    scale: Array | None
    accepted: Array | None
    gated: Array | None
    mixed: Remembered | None
    undamped: Array
    merit: Array
    predicted: Array
    policy: Any
    iteration: Array
    exact: Array
    status: Array
    stalls: Array
    refusals: Array
    next_trial: Array
    residual_norm: Array
    step_norm: Array
    history: History | None


class Prefix(NamedTuple):
    """The provably exact prefix: how many nodes, and the state at its end, `(D,)`."""

    exact: Array
    edge: Array


def start(
    method: Method,
    guess: Array,
    history: int,
    policy: Any = None,
    *,
    sharded: bool = False,
) -> Carry:
    """Return the carry before the first pass."""
    unknown = jnp.asarray(jnp.inf, guess.dtype)
    noise = method.noise
    return Carry(
        nodes=guess,
        scale=jnp.zeros_like(guess) if sharded else None,
        accepted=guess if noise is not None and noise.can_reject else None,
        gated=None if method.gate is None else guess,
        mixed=remember_nothing(method.anderson, guess),
        undamped=jnp.asarray(True),
        merit=unknown,
        predicted=unknown,
        policy=first_state(noise, guess.shape, guess.dtype, policy),
        iteration=jnp.asarray(0, jnp.int32),
        exact=jnp.asarray(0, jnp.int32),
        status=jnp.asarray(RUNNING if guess.shape[0] else 0, jnp.int32),
        stalls=jnp.asarray(0, jnp.int32),
        refusals=jnp.asarray(0, jnp.int32),
        next_trial=jnp.asarray(0, jnp.int32),
        residual_norm=unknown if guess.shape[0] else jnp.zeros_like(unknown),
        step_norm=unknown if guess.shape[0] else jnp.zeros_like(unknown),
        history=empty_history(history, guess.dtype),
    )


def empty_history(length: int, dtype: Any) -> History | None:
    """Return an empty history, or None when nothing is to be recorded."""
    empty = jnp.full(length, EMPTY, dtype)
    return History(*[empty] * len(History._fields)) if length else None


def record(history: History, now: History, iteration: Array) -> History:
    """Write what a pass saw; passes beyond the end are not recorded."""
    pairs = zip(history, now, strict=True)
    numbers = ((old, jnp.asarray(x, old.dtype)) for old, x in pairs)
    return History(*(old.at[iteration].set(x, mode="drop") for old, x in numbers))
