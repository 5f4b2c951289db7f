"""Parts of a method as values: they compare, hash, and check the numbers they hold.

A part holds numbers, which are data and may be traced, and choices, which are static.
Two parts are equal when their choices are and their numbers are the same numbers, be
they written as floats or as arrays, so that a method may be a static argument of
`jax.jit` and an attribute of a module. JAX rebuilds parts around whatever stands for
their numbers (gradients, axes, shapes), so checks belong to construction alone.
"""

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced

VARIANCE = "is a variance and must be positive (inf is allowed)"

_C = TypeVar("_C", bound=type)


class Value:
    """Compares by the numbers and choices of its fields, and hashes by them."""

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        return bool(_key(self, strict=False) == _key(other, strict=False))

    def __hash__(self) -> int:
        return hash(_key(self, strict=True))


def register_part(part: _C) -> _C:
    """Register a frozen dataclass as a pytree that is rebuilt without its checks."""
    names = [f.name for f in fields(part) if not f.metadata.get("static")]
    choices = [f.name for f in fields(part) if f.metadata.get("static")]

    def flatten(value: Any) -> tuple[list, tuple]:
        held = tuple(getattr(value, name) for name in choices)
        return [getattr(value, name) for name in names], held

    def flatten_with_keys(value: Any) -> tuple[list, tuple]:
        data, held = flatten(value)
        keys = map(jax.tree_util.GetAttrKey, names)
        return list(zip(keys, data, strict=True)), held

    def unflatten(held: tuple, data: Any) -> Any:
        value: Any = object.__new__(part)
        for name, x in zip((*names, *choices), (*data, *held), strict=True):
            object.__setattr__(value, name, x)
        return value

    jax.tree_util.register_pytree_with_keys(part, flatten_with_keys, unflatten, flatten)
    return part


def check_number(name: str, value: Any, rule: str, *, least: float = 0.0) -> None:
    """Raise unless known numbers are all positive, or at least `least` if that is.

    `rule` says so in words, after the name: "must be positive".

    Raises:
        TypeError: `value` is no real number and no array of such.
        ValueError: It is one that is NaN or too small.
    """
    if is_traced(value):
        return
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return
    try:
        numbers = np.asarray(value)
    except Exception as error:
        raise TypeError(f"{name} {rule}; got {value!r}.") from error
    if isinstance(value, bool) or numbers.dtype.kind not in "iuf":
        raise TypeError(f"{name} {rule}; got {value!r}.")
    fine = numbers >= least if least else numbers > 0
    if not np.all(fine):
        raise ValueError(f"{name} {rule}; got {numbers[~fine].flat[0]}.")


def _key(value: Any, *, strict: bool) -> Any:
    """Return what identifies a value: equal keys for equal choices and numbers."""
    if is_traced(value):
        if not strict:
            return id(value)
        raise TypeError(
            "A method that holds a traced number cannot be hashed: pass it as an "
            "ordinary argument of jit, not as a static one."
        )
    if isinstance(value, type):
        return value
    if is_dataclass(value):
        held = (getattr(value, f.name) for f in fields(value))
        return type(value), tuple(_key(x, strict=strict) for x in held)
    if isinstance(value, tuple | list):
        return tuple(_key(x, strict=strict) for x in value)
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        how = str(jax.random.key_impl(value))
        return how, _key(jax.random.key_data(value), strict=strict)
    if isinstance(value, jax.Array | np.ndarray | np.generic | float):
        array = np.asarray(value)
        kind = "b" if array.dtype.kind == "b" else "number"
        return kind, array.shape, array.astype(float).tobytes()
    if isinstance(value, int) and not isinstance(value, bool):
        return "number", (), np.asarray(value, float).tobytes()
    return value


def check_count(name: str, value: Any, at_least: int) -> None:
    """Raise unless `value` is traced or an integer that is large enough."""
    if is_traced(value):
        return
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer; got {value!r}.")
    if int(value) < at_least:
        raise ValueError(f"{name} must be at least {at_least}; got {value}.")
