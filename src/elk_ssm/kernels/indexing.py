r"""Reads and writes of a vector at a known index, as slices and a concatenation.

    x.at[i : i + m].set(v)   ->   [x[:i], v, x[i + m:]]
    x[i : i + m] by gather   ->   x[i : i + m]

The index of `x.at[0]` is an operand of its scatter. Where it is known, it need not be.
"""

from typing import Any

import jax
import numpy as np

_UPDATES = {
    "scatter": lambda _, new: new,
    "scatter-add": jax.lax.add,
    "scatter-mul": jax.lax.mul,
}


def at_known_index(equation: Any, values: list[Any]) -> Any:
    """The result of a gather or scatter of one known stretch of a vector, or None."""
    name = equation.primitive.name
    if name not in _UPDATES and name != "gather":
        return None
    operand, index = equation.invars[0].aval, values[1]
    if len(operand.shape) != 1 or not isinstance(index, np.ndarray) or index.size != 1:
        return None
    of_part = equation.outvars[0] if name == "gather" else equation.invars[2]
    begin, size = int(index[0]), int(np.prod(of_part.aval.shape))
    if begin < 0 or begin + size > operand.shape[0]:
        return None
    found = jax.lax.slice(values[0], (begin,), (begin + size,))
    if name == "gather":
        return jax.lax.reshape(found, of_part.aval.shape)
    update = jax.lax.reshape(values[2], (size,))
    new = _UPDATES[name](found, update)
    before = jax.lax.slice(values[0], (0,), (begin,))
    after = jax.lax.slice(values[0], (begin + size,), operand.shape)
    return jax.lax.concatenate([x for x in (before, new, after) if x.size], 0)
