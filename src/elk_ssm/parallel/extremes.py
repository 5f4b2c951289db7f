"""The largest of some arrays and the smallest of others, as one reduction.

Reductions of different kinds are kernels of their own on an accelerator, of which large
ones take two each, and on a CPU each of them has its operand written out before. One
reduction of several operands is one kernel, or two, and needs no memory.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax


def extremes(
    largest: tuple[Array, ...], smallest: tuple[Array, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Reduce all axes of arrays of one shape.

    Args:
        largest: Arrays of which the largest is asked for, not negative and not NaN.
        smallest: Arrays of integers of which the smallest is.

    Returns:
        What was asked for of each: 0, or the largest integer, of no entries.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.asarray([[1, 5], [3, 2]])
        >>> largest, smallest = extremes((x,), (x,))
        >>> int(largest[0]), int(smallest[0])
        (5, 1)
    """
    count, arrays = len(largest), (*largest, *smallest)
    begin = [jnp.zeros((), x.dtype) for x in largest]
    begin += [jnp.asarray(jnp.iinfo(x.dtype).max, x.dtype) for x in smallest]

    def join(x: Any, y: Any) -> tuple:
        most = map(jnp.maximum, x[:count], y[:count])
        return *most, *map(jnp.minimum, x[count:], y[count:])

    axes = tuple(range(arrays[0].ndim))
    found = tuple(lax.reduce(arrays, tuple(begin), join, axes))
    return found[:count], found[count:]
