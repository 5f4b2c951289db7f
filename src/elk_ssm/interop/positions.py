"""Whether the state of a sampler is a function of its position alone.

That of blackjax's samplers is: beside the position it holds the log density there, and
perhaps its gradient. Of another kernel with the same fields it may not be (a noisy
estimate of the density is kept until a proposal is accepted), and nothing but its whole
state says how it goes on. The same holds of a start that was not made by `init`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._showing import known
from elk_ssm._types import PyTree

_FOLLOWING = {"position", "logdensity", "logdensity_grad"}


def follows_from_position(kernel: Any, state: PyTree) -> bool:
    """Whether a state of a kernel follows from its position."""
    return may_follow(kernel, state) and is_not_false(agrees(kernel, state))


def may_follow(kernel: Any, state: PyTree) -> bool:
    """Whether states of this kind follow from positions, if `init` makes them.

    Args:
        kernel: With a `step` and perhaps an `init`.
        state: One state.
    """
    fields = set(getattr(state, "_fields", ()))
    if kernel.init is None or "position" not in fields or fields - _FOLLOWING:
        return False
    if not (getattr(kernel.init, "__module__", None) or "").startswith("blackjax."):
        return False
    try:
        found = jax.eval_shape(kernel.init, state.position)
    except (TypeError, ValueError, AttributeError):
        return False  # an init that needs more than a position
    return same_kind(found, state)


def is_not_false(conditions: Any) -> bool:
    """Whether conditions all hold, or cannot be read here."""
    values = known(conditions)
    return values is None or bool(values.all())


def agrees(kernel: Any, state: PyTree) -> jax.Array:
    """Whether `init` makes a state of its position, up to rounding, `()`."""
    pairs = zip(jax.tree.leaves(kernel.init(state.position)), jax.tree.leaves(state))

    def close(a: Any, b: Any) -> jax.Array:
        a, b = jnp.asarray(a), jnp.asarray(b)
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return jnp.all(a == b)
        slack = jnp.finfo(a.dtype).eps ** 0.5
        return jnp.allclose(a, b, rtol=slack, atol=slack, equal_nan=True)

    return jnp.all(jnp.stack([close(a, b) for a, b in pairs]))


def same_structure(found: PyTree, state: PyTree) -> bool:
    """Whether two states agree in structure."""
    structure: Any = jax.tree.structure(found)
    return structure == jax.tree.structure(state)


def same_kind(found: PyTree, state: PyTree) -> bool:
    """Whether two states agree in structure, shapes and dtypes."""
    return same_structure(found, state) and all(
        jnp.shape(a) == jnp.shape(b) and jnp.result_type(a) == jnp.result_type(b)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state))
    )
