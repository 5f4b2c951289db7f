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

_displays: list["Display"] = []


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


def passed(iteration: Array, exact: Array, residual: Array) -> None:
    """Tell the display, from inside a program, that a pass is over."""
    jax.debug.callback(_hear, iteration, exact, residual)


@contextlib.contextmanager
def shown(length: int) -> Iterator[Display]:
    """Show on standard error how far the solve in here is; gone when it is over."""
    from rich.console import Console
    from rich.live import Live

    display = Display(length)
    _displays.append(display)
    live = Live(display, console=Console(stderr=True), transient=True)
    try:
        with cursor_if_interrupted(), live:
            yield display
            jax.effects_barrier()
    finally:
        _displays.remove(display)


def check_untraced(*given: PyTree) -> None:
    """Raise `ValueError` inside a transformation, where nothing runs yet."""
    # A new array is traced under `jit`, whatever is passed in.
    if any(map(is_traced, jax.tree.leaves((given, jnp.zeros(()))))):
        raise ValueError(
            "progress=True shows passes while they run: call evaluate outside jax.jit, "
            "jax.vmap and derivatives, or leave it away."
        )


def _hear(iteration: Any, exact: Any, residual: Any) -> None:
    for display in _displays[-1:]:
        display.passed(int(iteration), int(exact), float(residual))
