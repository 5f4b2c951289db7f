"""A function of one step, of all steps at once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from elk_ssm._platforms import by_platform
from elk_ssm.kernels.entries import entry_by_entry


def at_every_step(function: Callable, *operands: Any) -> Any:
    """Return `jax.vmap(function)(*operands)`, in few kernels on an accelerator.

    Args:
        function: Of one entry of each operand.
        *operands: Leaves with a leading axis T.
    """
    plainly = jax.vmap(function)
    written = partial(_written_out, function)
    return by_platform(*operands, cpu=plainly, default=written)


def _written_out(function: Callable, *operands: Any) -> Any:
    one = jax.eval_shape(lambda *x: jax.tree.map(lambda leaf: leaf[0], x), *operands)
    entries = entry_by_entry(function, *one)
    return (jax.vmap(function) if entries is None else entries)(*operands)
