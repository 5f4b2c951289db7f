r"""Coefficients on inputs: states that rest, or drift as random walks.

    H_t = u_t',      b_t = b_{t-1} + N(0, q_i d)      (q = 0 for static ones)

They are diffuse at the start: the likelihood is that of generalised least squares.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array
from elk_ssm.linalg.structure import Diagonal
from elk_ssm.models.bijections import positive
from elk_ssm.models.component import Block, Context, Kind, Parameter, is_count
from elk_ssm.models.model import Model
from elk_ssm.models.trends import gaps_of


@dataclass(frozen=True)
class Regression(Kind):
    """Coefficients on some inputs."""

    count: int
    drifting: bool

    @property
    def num_inputs(self) -> int:  # type: ignore[override]
        """One for every coefficient."""
        return self.count

    @property
    def least_steps(self) -> int:  # type: ignore[override]
        """As many as there are coefficients."""
        return self.count

    @property
    def specs(self) -> dict[str, Parameter]:
        """Variances of a step, if there are steps."""
        if not self.drifting:
            return {}
        return {"variance": Parameter((1.0,) * self.count, positive, 0.01, width=4.0)}

    @property
    def states(self) -> tuple[str, ...]:
        """The coefficients."""
        return tuple(str(i) for i in range(self.count))

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the coefficients."""
        size, dtype = self.count, context.dtype
        if context.inputs is None:
            raise ValueError(f"regression needs inputs of {size} columns; got none.")
        noise = jnp.zeros(size, dtype)
        if self.drifting:
            noise = values["variance"] * gaps_of(context)[..., None]
        return Block(
            Diagonal(jnp.ones(size, dtype)),
            Diagonal(noise),
            context.inputs.astype(dtype)[:, None, :],
            np.ones(size, bool),
            jnp.zeros((size, size), dtype),
        )


def regression(
    count: int = 1, *, drifting: bool = False, name: str = "regression"
) -> Model:
    """Effects of inputs, seen with noise.

    A sum of several takes the columns of the inputs in the order of the components.

    Args:
        count: How many columns of the inputs.
        drifting: Whether the coefficients are random walks.
        name: What its parameters and states are called after.

    Raises:
        ValueError: The count is not a positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> model = elk.models.regression(2).lgssm(inputs=jnp.ones((10, 2)))
        >>> model.emission_weights.shape
        (10, 1, 2)
    """
    if not is_count(count):
        raise ValueError(
            f"regression: count must be a positive integer; got {count!r}."
        )
    return Model.of(name, Regression(int(count), drifting))
