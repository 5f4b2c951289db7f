r"""Priors of the free parameters, normal in unconstrained coordinates.

    log p(x) = -1/2 sum ((x - centre) / width)^2,

up to a constant, which no optimum and no posterior depends on. A variance v = exp(x) is
then log-normal with median exp(centre). The maximum is that of the density of x.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from elk_ssm._types import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prior:
    """Independent normal distributions of unconstrained parameters.

    Attributes:
        centres: By name, as `Model.unconstrained`.
        widths: Standard deviations by name, numbers or arrays that broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> model = elk.models.local_level()
        >>> prior = model.default_prior(jnp.array([0.0, 1.0, 0.5, 2.0]))
        >>> bool(prior(model.unconstrained) < 0)
        True
    """

    centres: Mapping[str, Array]
    widths: Mapping[str, Array | float]

    def __call__(self, unconstrained: Mapping[str, Array]) -> Array:
        """Return the log density, `()`, up to a constant."""
        terms = [
            jnp.sum(((unconstrained[name] - centre) / self.widths[name]) ** 2)
            for name, centre in self.centres.items()
        ]
        return -0.5 * jnp.sum(jnp.stack(terms)) if terms else jnp.zeros(())
