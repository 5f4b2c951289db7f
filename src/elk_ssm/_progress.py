"""How far a solve is, on a terminal, while it runs.

The loop calls back to the host after every pass, in no order that anything waits for.
What is shown is the latest of what arrived; a solve without passes shows its seconds.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._jax import is_traced
from elk_ssm._start import cursor_if_interrupted
from elk_ssm._types import Array, PyTree

_displays: list["Display | Searching"] = []


class Display:
    """What is on the terminal: asked by rich a few times a second.

    Args:
        length: Number of steps T.
    """

    def __init__(self, length: int) -> None:
        self._length, self._begin = length, time.monotonic()
        self._passed: tuple[int, int, float] | None = None

    def passed(self, iteration: int, exact: int, residual: float) -> None:
        """Take in how far a pass has come."""
        if self._passed is None or iteration >= self._passed[0]:
            self._passed = iteration, exact, residual

    def __rich__(self) -> str:
        seconds = f"{time.monotonic() - self._begin:.0f} s"
        if self._passed is None:
            return f"evaluating {self._length:,} steps, {seconds}"
        iteration, exact, residual = self._passed
        share = min(exact / self._length, 1.0)
        return (
            f"pass {iteration:,}, residual {residual:.1e}, first {share:.0%} of "
            f"{self._length:,} steps exact, {seconds}"
        )


class Searching:
    """What is on the terminal while parameters are searched for.

    Args:
        length: Number of steps T.
    """

    def __init__(self, length: int) -> None:
        self._length, self._begin = length, time.monotonic()
        self._step: tuple[int, float, float] | None = None
        self._probe = 0, 0

    def searched(self, found: tuple[int, float, float], probe: tuple[int, int]) -> None:
        """Take in a turn of the search, or of what follows it."""
        # Of several searches at once, the one that is ahead.
        if self._step is None or found[:2] >= self._step[:2]:
            self._step = found
        self._probe = max(self._probe, probe)

    def __rich__(self) -> str:
        seconds = f"{time.monotonic() - self._begin:.0f} s"
        if self._step is None:
            return f"fitting {self._length:,} steps, compiling, {seconds}"
        if self._probe[0]:
            done, total = self._probe
            return f"standard errors, slope {done:,} of {total:,}, {seconds}"
        turn, value, slope = self._step
        return f"step {turn:,}, objective {value:,.3f}, slope {slope:.1e}, {seconds}"


def searched(
    turn: Array, value: Array, slope: Array, probe: Array, probes: int
) -> None:
    """Tell the display, from inside a program, of a turn of a search."""

    def hear(turn: Any, value: Any, slope: Any, probe: Any) -> None:
        for display in _displays[-1:]:
            if isinstance(display, Searching):
                found = int(turn), float(value), float(slope)
                display.searched(found, (int(probe), probes))

    jax.debug.callback(hear, turn, value, slope, probe)


def passed(iteration: Array, exact: Array, residual: Array) -> None:
    """Tell the display, from inside a program, that a pass is over."""
    jax.debug.callback(_hear, iteration, exact, residual)


@contextlib.contextmanager
def shown(length: int, kind: Any = Display) -> Iterator[Any]:
    """Show on standard error how far what runs in here is; gone when it is over."""
    from rich.console import Console
    from rich.live import Live

    display = kind(length)
    _displays.append(display)
    live = Live(display, console=Console(stderr=True), transient=True)
    try:
        with cursor_if_interrupted(), live:
            yield display
            jax.effects_barrier()
    finally:
        _displays.remove(display)


def searching(asked: bool, data: PyTree) -> contextlib.AbstractContextManager[Any]:
    """Show how far a search in here is, if asked to.

    Args:
        asked: Whether to.
        data: What is fitted, the series `(T, E)` first.
    """
    if not asked:
        return contextlib.nullcontext()
    check_untraced(data)
    return shown(len(jax.tree.leaves(data)[0]), Searching)


def check_untraced(*given: PyTree) -> None:
    """Raise `ValueError` inside a transformation, where nothing runs yet."""
    # A new array is traced under `jit`, whatever is passed in.
    if any(map(is_traced, jax.tree.leaves((given, jnp.zeros(()))))):
        raise ValueError(
            "progress=True shows what runs while it does: run it outside jax.jit, "
            "jax.vmap and derivatives, or leave it away."
        )


def _hear(iteration: Any, exact: Any, residual: Any) -> None:
    for display in _displays[-1:]:
        if isinstance(display, Display):
            display.passed(int(iteration), int(exact), float(residual))
