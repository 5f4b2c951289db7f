"""One decision for a whole batch, so that `vmap` does not turn a branch into both."""

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm._jax import custom_vmap


@custom_vmap
def _anywhere(flag: Array) -> Array:
    return flag


@_anywhere.def_vmap
def _over_a_batch(
    axis_size: int, in_batched: list[bool], flag: Array
) -> tuple[Array, bool]:
    del axis_size, in_batched
    return _anywhere(jnp.any(flag, axis=0)), False


def anywhere(flag: Array) -> Array:
    """Return whether a flag is true for any member of the batch under `vmap`.

    Each of many flags, if there are many.

    A `lax.cond` on a flag that differs between the members of a batch computes both of
    its branches for all of them. What is decided by this function stays one branch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.vmap(anywhere)(jnp.array([False, True])).tolist()
        [True, True]
    """
    return _anywhere(lax.stop_gradient(flag))
