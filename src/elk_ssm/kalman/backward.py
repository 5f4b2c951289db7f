r"""Smoothing, once the transitions backwards in time are known.

    x_{t-1} | x_t, y_{<t} ~ N(E_t x_t + g_t, L_t)

An entry is about the state before its step, so a shard asks no other one for a row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jax import Array

from elk_ssm.kalman.elements import SmootherElement, combine_smoother
from elk_ssm.linalg.structure import Operator
from elk_ssm.parallel.every_step import at_every_step
from elk_ssm.parallel.recursion import Recursion


class Marginals(NamedTuple):
    """Means `(T, D)` and covariances, T matrices of the operator's structure."""

    means: Array
    covariances: Operator


@dataclass(frozen=True)
class Backward(Recursion[Marginals, SmootherElement]):
    """Backwards from the last state; `transition` reads the one of an entry."""

    entries: Any
    initial: Marginals
    transition: Callable[[Any], Any]

    def prepared(self) -> "Backward":
        """Find the transitions once for both runs through the steps."""
        entries = at_every_step(self.transition, self.entries)
        return replace(self, entries=entries, transition=lambda element: element)

    def step(self, state: Marginals, entry: Any) -> tuple[Marginals, Any]:
        """Go one step back in time."""
        state = self.act(self.element(entry), state)
        return state, state

    def element(self, entry: Any) -> SmootherElement:
        """Return the transition."""
        return self.transition(entry)

    def combine(
        self, earlier: SmootherElement, later: SmootherElement
    ) -> SmootherElement:
        """Join two runs, of which `earlier` is the later one in time."""
        return combine_smoother(earlier, later)

    def known(self, state: Marginals) -> SmootherElement:
        """Return the transition to `state` from whatever state."""
        return SmootherElement(state.covariances.zeros(), *state)

    def state(self, element: SmootherElement) -> Marginals:
        """Return where a run ends that depends on no state."""
        return Marginals(element.g, element.L)

    def nothing(self) -> SmootherElement:
        """Return the transition from a state to itself."""
        none = self.initial.covariances.zeros()
        return SmootherElement(none.shift(1), none.variances(), none)

    def act(self, run: SmootherElement, state: Marginals) -> Marginals:
        """Return the moments before a run, from those after it in time."""
        E, g, L = run
        covariances = E.congruence(state.covariances).add(L)
        return Marginals(E.mv(state.means) + g, covariances)
