"""Loops over time, written out where a round of a loop has launches of its own."""

from collections.abc import Callable
from typing import Any

import jax

from elk_ssm._platforms import by_platform
from elk_ssm._programs import count_equations

_EQUATIONS = 768


def scan_by_platform(
    body: Callable[[Any, Any], tuple],
    carry: Any,
    entries: Any,
    equations: int,
    *,
    reverse: bool = False,
) -> tuple:
    """Run `lax.scan`; on an accelerator with some steps of f written out in a round.

    There every round of a loop has launches of its own: its counter, and the slices of
    its inputs. As many steps are written out as have so many equations together.
    """
    length = jax.tree.leaves(entries)[0].shape[0]
    unroll = min(max(_EQUATIONS // max(equations, 1), 1), length)

    def by(unroll: int) -> Callable[[Any, Any], tuple]:
        def scan(carry: Any, entries: Any) -> tuple:
            return jax.lax.scan(body, carry, entries, unroll=unroll, reverse=reverse)

        return scan

    return by_platform(carry, entries, cpu=by(1), default=by(unroll))


def equations_of(function: Callable, *example: Any) -> int:
    """How many equations a function has."""
    return count_equations(jax.make_jaxpr(function)(*example).jaxpr)
