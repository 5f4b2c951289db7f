r"""log p(y) of a sum of components, by the recursion that suits its structure.

On a CPU that is the filter of `kalman/innovations.py`, with what is known of the
zeros of F; on an accelerator the associative one. A series is taken less its mean
where that changes nothing but the first level.
"""

from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax import Array

from elk_ssm.kalman.innovations import Innovations, innovations
from elk_ssm.kalman.lgssm import pose
from elk_ssm.kalman.likelihood import lgssm_log_likelihood
from elk_ssm.linalg.sparsity import Sparsity
from elk_ssm.models.component import Kind, example_of, side_by_side
from elk_ssm.parallel.backend import Backend, by_backend


def evidence(
    model: Any,
    emissions: Array,
    inputs: Any,
    gaps: Array | None,
    mask: Array | None = None,
    backend: Backend = "auto",
) -> Array:
    """Return log p(y), `()`; the diffuse one where a first state is diffuse.

    Args:
        model: A `Model`.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        gaps: `(T,)` or `None`.
        mask: `(T, E)` or `(T,)`, or `None`.
        backend: Which recursion.
    """

    def along(emissions: Array, mask: Any) -> Array:
        return innovations_of(model, emissions, inputs, gaps, mask).log_likelihood

    def at_once(emissions: Array, mask: Any) -> Array:
        matrices, centred = model.assembled(inputs, gaps), model.centred(emissions)
        return lgssm_log_likelihood(matrices, centred, mask=mask, backend="associative")

    return by_backend(backend, along, at_once, emissions, mask)


def innovations_of(
    model: Any,
    emissions: Array,
    inputs: Any,
    gaps: Array | None,
    mask: Array | None = None,
) -> Innovations:
    """Return the innovations of a series, by one scan; arguments as `evidence`."""
    matrices = model.assembled(inputs, gaps)
    problem = pose(matrices, model.centred(emissions), None, mask)
    diffuse, sparsity = structure_of(tuple(c.kind for c in model.components))
    return innovations(problem, diffuse, sparsity)


@lru_cache(maxsize=256)
def structure_of(kinds: tuple[Kind, ...]) -> tuple[np.ndarray, Sparsity]:
    """Return which dimensions of a sum are diffuse, and where F may not be zero."""
    with jax.ensure_compile_time_eval():
        blocks = [example_of(kind) for kind in kinds]
        weights = side_by_side([block.weights for block in blocks]).to_dense()
        pattern = Sparsity.of(np.asarray(weights) != 0)
    return np.concatenate([block.diffuse for block in blocks]), pattern
