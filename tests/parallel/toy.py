"""A recursion that the library does not have: a running mean, by count and mean.

    n_t = n_{t-1} + 1,      m_t = m_{t-1} + (x_t - m_{t-1}) / n_t

A run of steps is the count and mean of what it saw, and whether it forgot what it was
handed; two runs are joined by the weights of their counts.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from elk_ssm.parallel.recursion import Recursion


@dataclass(frozen=True)
class RunningMean(Recursion):
    """The mean of the entries so far, and of `initial` observations before."""

    entries: Any
    initial: tuple

    def step(self, state, entry):
        """One entry more."""
        count, mean = state
        state = count + 1, mean + (entry - mean) / (count + 1)
        return state, state[1]

    def element(self, entry):
        """One entry alone."""
        return jnp.ones_like(entry), jnp.ones_like(entry), entry

    def combine(self, earlier, later):
        """Keep the earlier run as far as the later one remembers it."""
        remembers, count, mean = later
        n = remembers * earlier[1]
        share = count / jnp.maximum(n + count, 1e-30)
        joined = earlier[2] + share * (mean - earlier[2])
        return remembers * earlier[0], n + count, joined

    def known(self, state):
        """All that is known, and nothing of what enters."""
        return jnp.zeros_like(state[0]), *state

    def state(self, element):
        """The count and mean."""
        return element[1], element[2]

    def nothing(self):
        """No entry."""
        zero = jnp.zeros_like(self.initial[0])
        return jnp.ones_like(zero), zero, zero


def toy(length):
    """Return the recursion with `length` entries."""
    entries = jnp.asarray(np.random.default_rng(length).normal(size=length))
    return RunningMean(entries, (jnp.asarray(2.0), jnp.asarray(5.0)))


def expected(length, reverse):
    """The means by NumPy."""
    entries = np.asarray(toy(length).entries)
    entries = entries[::-1] if reverse else entries
    means = [(10 + entries[: t + 1].sum()) / (3 + t) for t in range(length)]
    return np.array(means[::-1] if reverse else means)


class Counts(RunningMean):
    """The number of entries so far; its elements are (remembers, count)."""

    def step(self, state, entry):
        """One more."""
        return state + entry, state + entry

    def element(self, entry):
        """One entry alone."""
        return jnp.ones_like(entry), entry

    def combine(self, earlier, later):
        """Add what is remembered."""
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    def known(self, state):
        """Forget what enters."""
        return jnp.zeros_like(state), state

    def state(self, element):
        """The count."""
        return element[1]

    def nothing(self):
        """No entry."""
        return jnp.ones_like(self.initial), jnp.zeros_like(self.initial)
