r"""Leaves of a state that are not floating point, written as floats.

An iteration solves for real numbers. A counter or a key that evolves on its own is an
input of it (see `_recurrence`), but an assignment to a mixture's component, a spin or a
count of acceptances depends on the real part of the state. Such a leaf z is written
in digits of b bits,

    z = z_0 + 2^b z_1 + ... + 2^{b(n-1)} z_{n-1},

each a float without rounding (b = 16 in float32, 32 in float64; the last one keeps the
sign), and read by rounding each digit to a whole number within its range. Between
digits there is no slope, so that Newton's method sees zero columns and rows there, and
the fixed point is the recurrence's own trajectory, exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._jax import used_inputs
from elk_ssm._trees import Split, describe, is_float
from elk_ssm._types import Array, Dynamics, PyTree


@dataclass(frozen=True)
class Digits:
    """How one leaf is written in digits.

    Attributes:
        dtype: Integer or boolean dtype of the leaf.
        float_dtype: Of its digits.
    """

    dtype: Any
    float_dtype: Any

    @property
    def bits(self) -> int:
        """Bits b in a digit."""
        return 32 if self.float_dtype == jnp.float64 else 16

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Least and largest value of each digit, the lowest digit first."""
        if self.dtype == jnp.bool_:
            return [(0, 1)]
        info, b = jnp.iinfo(self.dtype), self.bits
        count = -(-info.bits // b)
        high = int(info.min) >> b * (count - 1), int(info.max) >> b * (count - 1)
        return [(0, (1 << b) - 1)] * (count - 1) + [high]

    def write(self, leaf: Array) -> Array:
        """Return the digits, `(..., n)` for a leaf `(...)`."""
        last = len(self.ranges) - 1
        digits = [leaf]
        if last:
            mask = (1 << self.bits) - 1
            digits = [leaf >> self.bits * i & mask for i in range(last)]
            digits.append(leaf >> self.bits * last)
        return jnp.stack([jnp.asarray(x, self.float_dtype) for x in digits], axis=-1)

    def read(self, digits: Array) -> Array:
        """Return the leaf with these digits, rounded; the inverse of `write`."""
        if self.dtype == jnp.bool_:
            return digits[..., 0] > 0.5
        parts = [
            jnp.clip(jnp.round(digits[..., i]), *bounds).astype(self.dtype)
            for i, bounds in enumerate(self.ranges)
        ]
        leaf = parts[0]
        for i, part in enumerate(parts[1:], start=1):
            leaf = leaf | part << self.bits * i
        return leaf


@dataclass(frozen=True)
class InDigits:
    """Which leaves of a state are written in digits, and how.

    Attributes:
        treedef: Structure of the state.
        leaves: `Digits` of each leaf, None for one that stays as it is.
    """

    treedef: Any
    leaves: tuple[Digits | None, ...]

    def write(self, state: PyTree) -> PyTree:
        """Return the state with digits in the place of some leaves."""
        found = self.treedef.flatten_up_to(state)
        pairs = zip(self.leaves, found)
        return jax.tree.unflatten(
            self.treedef, [x if how is None else how.write(x) for how, x in pairs]
        )

    def read(self, state: PyTree) -> PyTree:
        """Return the state again; the inverse of `write`."""
        found = self.treedef.flatten_up_to(state)
        pairs = zip(self.leaves, found)
        return jax.tree.unflatten(
            self.treedef, [x if how is None else how.read(x) for how, x in pairs]
        )


def in_digits(f: Dynamics, state: PyTree, entry: PyTree) -> InDigits:
    """Find the leaves that must be unknowns although they are not floating point.

    They are those that depend on a floating-point leaf, through other leaves too; all
    of them where there is no floating-point leaf.

    Args:
        f: `f(state, input) -> state`.
        state: x_0.
        entry: One input.

    Raises:
        TypeError: A PRNG key depends on a floating-point leaf.
    """
    split = Split.of(state)
    leaves, treedef = jax.tree.flatten(state)
    floats, _ = split.part(state)
    dtype = jnp.result_type(*floats) if floats else jnp.zeros(()).dtype
    followed = iter(_following(f, split, state, entry))
    hows: list[Digits | None] = []
    for leaf in leaves:
        if is_float(leaf) or not next(followed):
            hows.append(None)
            continue
        if _is_key(leaf):
            raise TypeError(
                "A PRNG key in the state may not depend on its floating-point leaves; "
                f"in {describe(state)} it does. Let the step use its own key."
            )
        hows.append(Digits(jnp.result_type(leaf), dtype))
    return InDigits(treedef, tuple(hows))


def _following(
    f: Callable, split: Split, state: PyTree, entry: PyTree
) -> tuple[bool, ...]:
    """Say of each discrete leaf whether it follows from a floating-point one."""
    floats, discrete = split.part(state)
    if not floats:
        return tuple(not _is_key(leaf) for leaf in discrete)

    def after(floats: list, discrete: list, entry: PyTree) -> list:
        return split.part(f(split.join(floats, discrete), entry))[1]

    jaxpr = jax.make_jaxpr(after)(floats, discrete, entry).jaxpr
    uses = [used_inputs(jaxpr.replace(outvars=[out])) for out in jaxpr.outvars]
    first = len(floats)
    following = [any(used[:first]) for used in uses]
    for _ in discrete:  # as many rounds as the longest way between them
        following = [
            own or any(a and b for a, b in zip(following, used[first:]))
            for own, used in zip(following, uses)
        ]
    return tuple(following)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
