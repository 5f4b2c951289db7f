r"""Variances of an M-step of which some are held and some are one number.

Where a covariance is diagonal in some dimensions, the expected log density of each is
-n/2 (log q + s / q) with the maximum s; of dimensions that share q it is their mean.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm.kalman.lgssm import LGSSM, emission_dim
from elk_ssm.linalg.structure import as_operator, in_structure


class Ties(NamedTuple):
    """A label for each variance: those of one label are equal, those of -1 are held.

    `process` has D labels and `emission` E; a labelled dimension has no covariances
    with others.
    """

    process: tuple[int, ...]
    emission: tuple[int, ...]


def tied(new: LGSSM, old: LGSSM, ties: Ties) -> LGSSM:
    """Return the new model with variances that are held or equal as `ties` has it.

    Example:
        >>> import elk_ssm as elk
        >>> def model(q):
        ...     one = elk.ScaledIdentity(1.0)
        ...     Q = elk.Diagonal(jnp.asarray(q))
        ...     return elk.LGSSM(jnp.zeros(3), one, one, Q, jnp.ones((1, 3)), one)
        >>> ties = Ties((0, 0, -1), (-1,))
        >>> new = tied(model([1.0, 3.0, 5.0]), model([0.0, 0.0, 7.0]), ties)
        >>> new.dynamics_covariance.diagonal.tolist()
        [2.0, 2.0, 7.0]
    """
    changes = {}
    for name, size, labels in (
        ("dynamics_covariance", new.state_dim, ties.process),
        ("emission_covariance", emission_dim(new), ties.emission),
    ):
        if max(labels) >= 0:
            changes[name] = _tied(getattr(new, name), getattr(old, name), size, labels)
    return new._replace(**changes)


def _tied(new: Any, old: Any, size: int, labels: tuple[int, ...]) -> Any:
    group = np.asarray(labels)[:, None] == np.arange(max(labels) + 1)
    one = (group / np.maximum(group.sum(axis=0), 1)).T
    variances = as_operator(new, size, "covariance").variances()
    means = jnp.asarray(group @ one, variances.dtype) @ variances
    held = as_operator(old, size, "covariance").to_dense()
    moved: Array = jnp.where(group.any(axis=1), means, jnp.diagonal(held))
    return in_structure(old, held - jnp.diag(jnp.diagonal(held)) + jnp.diag(moved))
