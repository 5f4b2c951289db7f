"""Moves from one linear-Gaussian model to another of the same structure."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.lgssm import LGSSM


def between(held: LGSSM, target: LGSSM, share: Array) -> LGSSM:
    """Go a share of the way; covariances between two PSD ones are PSD."""

    def one(a: Array, b: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        moved = a + share * (b - a)
        return jnp.where((share < 1) & (a != b), moved, b)

    return jax.tree.map(one, held, target)


def choose(condition: Array, chosen: Any, other: Any) -> Any:
    """Return one of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def finite_or(model: LGSSM, other: LGSSM) -> LGSSM:
    """Return a model whose parameters are those of another where not finite."""
    fields = {}
    for name, value in model._asdict().items():
        leaves = jax.tree.leaves(value)
        fine = jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
        old = getattr(other, name)
        fields[name] = choose(jnp.all(fine), value, old) if leaves else value
    return model._replace(**fields)
