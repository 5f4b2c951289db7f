"""A function of one step, of all steps at once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from elk_ssm._platforms import by_platform
from elk_ssm.kernels.entries import entry_by_entry

# Most entries that a function computes which is written out. Written out or not it runs
# once: some tens of kernels are saved, and compiling it takes seconds.
_LARGEST = 3200


def at_every_step(function: Callable, *operands: Any, written: bool = True) -> Any:
    """Return `jax.vmap(function)(*operands)`, in few kernels on an accelerator.

    Args:
        function: Of one entry of each operand.
        *operands: Leaves with a leading axis T.
        written: Whether to write a small function out for that; see `Recursion.rare`.
    """
    plainly = jax.vmap(function)
    if not written:
        return plainly(*operands)
    return by_platform(*operands, cpu=plainly, default=partial(_written_out, function))


def _written_out(function: Callable, *operands: Any) -> Any:
    one = jax.eval_shape(lambda *x: jax.tree.map(lambda leaf: leaf[0], x), *operands)
    entries = entry_by_entry(function, *one, largest=_LARGEST)
    return (jax.vmap(function) if entries is None else entries)(*operands)
