r"""The skeleton of every iteration: passes while it goes on, and how it ended.

    carry = body(carry)      while carry.status == going and carry.iteration < max_iters

A carry has a `status` and an `iteration`. A status below zero goes on: `RUNNING`, or
`SEARCHING` where the passes of another loop take over. The others are of a `Status`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from elk_ssm._platforms import by_platform
from elk_ssm._types import Array
from elk_ssm.solution import Status, int_status

Carry = TypeVar("Carry")
RUNNING, SEARCHING = -1, -2
# So many passes in a row that gain nothing mean that rounding is the limit.
PATIENCE = 3


def run_passes(
    body: Callable[[Any], Any], first: Carry, max_iters: Array, going: int = RUNNING
) -> Carry:
    """Run passes until one of them changes the status, or there are no more."""

    def goes_on(carry: Any) -> Array:
        return (carry.status == going) & (carry.iteration < max_iters)

    # An accelerator is told by the pass itself: a condition that computes is a launch.
    def once(state: tuple) -> tuple:
        carry = body(state[1])
        return goes_on(carry), carry

    def running(state: tuple) -> Array:
        told, computed = (lambda state: state[0]), (lambda state: goes_on(state[1]))
        return by_platform(state, cpu=computed, default=told)

    return jax.lax.while_loop(running, once, (goes_on(first), first))[1]


def in_place_of(old: Array, new: Array) -> Array:
    """Return `new`, for a carry that the same pass reads `old` from, which is not NaN.

    An accelerator copies what is both read and replaced, unless what replaces it is
    also made of it. So a number is made of `old` that no number is lower than.
    """
    return jnp.maximum(new, jnp.minimum(old, jnp.finfo(new.dtype).min))


def cut_off(carry: Any) -> Any:
    """Say of a loop that would go on that it was cut off."""
    limit = int_status(Status.max_iters_reached)
    return carry._replace(status=jnp.where(carry.status < 0, limit, carry.status))


def status_of(*cases: tuple[Array, Status], otherwise: int = RUNNING) -> Array:
    """Return the status of the last case that holds; `otherwise` if none does."""
    status = jnp.asarray(otherwise, jnp.int32)
    for holds, case in cases:
        status = jnp.where(holds, int_status(case), status)
    return status
