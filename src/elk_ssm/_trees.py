"""Pytree states as flat vectors: `(T, D)` is all that the engine ever sees."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree

_LONGEST = 200


@dataclass(frozen=True)
class StateLayout:
    """How a pytree of floating-point leaves is laid out in a vector of length D.

    The vector's dtype is the promotion of the leaves' dtypes, and `unravel` casts each
    leaf back to its own.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, state: PyTree) -> "StateLayout":
        """Read the layout of `state`, whose leaves are arrays or shape structs."""
        leaves, treedef = jax.tree.flatten(state)
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        return cls(treedef, shapes, tuple(jnp.result_type(leaf) for leaf in leaves))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each leaf."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Length D of the flat vector."""
        return sum(self.sizes)

    @property
    def dtype(self) -> Any:
        """Common dtype of the flat vector."""
        return jnp.result_type(*self.dtypes)

    def ravel(self, state: PyTree) -> Array:
        """Flatten one state (or states with leading axes) to `(..., D)`."""
        leaves = self.treedef.flatten_up_to(state)
        flat = [self._flat(*leaf) for leaf in zip(leaves, self.shapes)]
        return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)

    def _flat(self, leaf: Any, shape: tuple[int, ...]) -> Array:
        leaf = jnp.asarray(leaf, self.dtype)
        lead = leaf.shape[: leaf.ndim - len(shape)]
        return leaf if len(shape) == 1 else leaf.reshape(*lead, math.prod(shape))

    def unravel(self, vector: Array) -> PyTree:
        """Rebuild the pytree from `(..., D)`; leading axes are kept on every leaf."""
        leaves, start, lead = [], 0, vector.shape[:-1]
        for shape, size, dtype in zip(self.shapes, self.sizes, self.dtypes):
            part = vector[..., start : start + size]
            leaves.append(part.reshape(*lead, *shape).astype(dtype))
            start += size
        return jax.tree.unflatten(self.treedef, leaves)


@dataclass(frozen=True)
class Split:
    """Which leaves of the state are floating point."""

    treedef: Any
    floating: tuple[bool, ...]
    example: PyTree

    @classmethod
    def of(cls, state: PyTree) -> "Split":
        """Read the kinds of the leaves of `state`."""
        leaves, treedef = jax.tree.flatten(state)
        example = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), state
        )
        return cls(treedef, tuple(is_float(leaf) for leaf in leaves), example)

    def part(self, state: PyTree) -> tuple[list[Any], list[Any]]:
        """Separate the leaves into floating-point and discrete ones."""
        leaves = self.treedef.flatten_up_to(state)
        floats = [x for x, floating in zip(leaves, self.floating) if floating]
        return floats, [x for x, floating in zip(leaves, self.floating) if not floating]

    def join(self, floats: list[Any], discrete: list[Any]) -> PyTree:
        """Put the leaves back in their places."""
        sources = iter(floats), iter(discrete)
        leaves = [next(sources[0 if floating else 1]) for floating in self.floating]
        return jax.tree.unflatten(self.treedef, leaves)


def static(**kwargs: Any) -> Any:
    """Declare a dataclass field that is part of the tree's structure, not its data."""
    return field(metadata={"static": True}, **kwargs)


def describe(tree: PyTree) -> str:
    """Write a pytree as its structure with dtypes and shapes, for error messages."""
    leaves, treedef = jax.tree.flatten(tree)
    names = [f"{jnp.result_type(x).name}{list(jnp.shape(x))}" for x in leaves]
    text = str(jax.tree.unflatten(treedef, names)).replace("'", "")
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]} ... ({len(leaves)} leaves)"


def is_float(leaf: Any) -> bool:
    """Say whether a leaf is a real floating-point array."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
