r"""Components in a sum: one linear-Gaussian model of all of them.

    y_t = sum_c H_t^c x_t^c + N(0, R),      F and Q block-diagonal, one block for each

A sum has one observation noise or none, whatever its components had. F and Q are
`Diagonal` where every block is, and dense otherwise: an emission that adds components
up makes one group of them all (see `elk_ssm.LGSSM`), so blocks would not stay apart.

Only y's differences matter to a model with a diffuse level, so its likelihood is taken
of the series less its mean: float32 then holds a series around 340 as well as one
around zero.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array, ArrayLike
from elk_ssm.kalman.initial import Diffuse
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.linalg.structure import Dense, Diagonal
from elk_ssm.models.component import Block, Component, Context, Kind, side_by_side
from elk_ssm.models.composed import Composed
from elk_ssm.models.data import (
    gaps_between,
    inputs_of,
    mean_of,
)
from elk_ssm.models.evidence import evidence, structure_of
from elk_ssm.models.noise import Noise

if TYPE_CHECKING:
    from elk_ssm.models.nonlinear import NonlinearModel

NOISE = "noise"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)  # that of Composed
class Model(Composed):
    """A sum of components, as `elk_ssm.models` makes them; `+` adds two.

    A pytree whose numbers are its parameters, constrained.

    Attributes:
        components: What is added up.
        noise: The variance of the observation noise, or `None` without one.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> model = elk.models.local_level() + elk.models.seasonal(4)
        >>> list(model.parameters)
        ['level.variance', 'seasonal.variance', 'noise.variance']
        >>> model = model.replace(**{"level.variance": 0.1}).fix("noise.variance")
        >>> model.lgssm().state_dim
        4
    """

    @classmethod
    def of(cls, name: str, kind: Kind) -> "Model":
        """Return a model of one component.

        Raises:
            ValueError: The name is empty, has a dot, or is that of the noise.
        """
        if not isinstance(name, str) or not name or "." in name or name == NOISE:
            raise ValueError(
                "a component is called by a word without a dot that is not "
                f"{NOISE!r}; got {name!r}."
            )
        noise = Component.of(NOISE, Noise(kind.emissions)) if kind.has_noise else None
        return cls((Component.of(name, kind),), noise)

    def __add__(self, other: "Model") -> "Model":
        """Add the components up; a name that occurs twice gets a number.

        Raises:
            ValueError: The emissions differ in number, or both have a level or a
                harmonic of one period.
        """
        if not isinstance(other, Model):
            return NotImplemented
        if self.emission_dim != other.emission_dim:
            raise ValueError(
                "a sum needs parts with equally many emissions; got "
                f"{self.emission_dim} and {other.emission_dim}."
            )
        levels = [
            c.name for c in (*self.components, *other.components) if c.kind.single
        ]
        if len(levels) > 1:
            raise ValueError(
                "a sum can have one level only, as no data could tell two apart; got "
                f"{' and '.join(levels)}."
            )
        _check_apart(self.components, other.components)
        components = self.components
        for one in other.components:
            taken = {c.name for c in components}
            components = (
                *components,
                dataclasses.replace(one, name=_free_name(one.name, taken)),
            )
        return Model(components, self.noise or other.noise)

    @property
    def num_diffuse(self) -> int:
        """How many dimensions of the first state nothing is known of."""
        return int(structure_of(tuple(c.kind for c in self.components))[0].sum())

    def lgssm(self, inputs: ArrayLike | None = None, times: Any = None) -> LGSSM:
        """Return the model as matrices.

        The inputs of a regression are folded into its emission weights, so the `LGSSM`
        itself takes none.

        Args:
            inputs: `(T, U)`, for regressions.
            times: `(T,)`, increasing; `None` for steps of one.

        Raises:
            ValueError: Inputs or times do not fit, or a component has none.
        """
        gaps = None if times is None else gaps_between(times)
        return self.assembled(inputs, gaps)

    def assembled(self, inputs: ArrayLike | None, gaps: Array | None) -> LGSSM:
        """Return the model as matrices, as `lgssm`, given gaps for times."""
        blocks, dtype = self._blocks(inputs, gaps), self.dtype
        R = jnp.zeros(self.emission_dim, dtype)
        if self.noise is not None:
            variance = self.noise.values["variance"].astype(dtype)
            R = jnp.broadcast_to(variance, R.shape)
        diffuse = np.concatenate([block.diffuse for block in blocks])
        first = side_by_side([Dense(block.initial) for block in blocks])
        lead = jnp.broadcast_shapes(*(block.emission.shape[:-1] for block in blocks))
        H = [
            jnp.broadcast_to(x.emission, (*lead, x.emission.shape[-1])) for x in blocks
        ]
        return LGSSM(
            jnp.zeros(len(diffuse), dtype),
            Diffuse(jnp.asarray(diffuse), first) if diffuse.any() else first,
            side_by_side([block.weights for block in blocks]),
            side_by_side([block.covariance for block in blocks]),
            jnp.concatenate(H, axis=-1),
            Diagonal(R),
        )

    def without_noise(self) -> "Model":
        """Return the model without observation noise: components alone add up to y."""
        return dataclasses.replace(self, noise=None)

    def evidence(
        self, emissions: Array, inputs: Any, gaps: Array | None, mask: Any = None
    ) -> Array:
        """Return log p(y), `()`, of emissions `(T, E)` and gaps for times."""
        return evidence(self, emissions, inputs, gaps, mask)

    def with_emission(
        self, emission: "str | Callable[..., Array]", **options: Any
    ) -> "NonlinearModel":
        """Return a model in which the sum is the predictor of other data than Gaussian.

        The observation noise of the model is dropped; the emission has parameters of
        its own, such as `"emission.dispersion"`.

        Args:
            emission: `"poisson"` and `"negative_binomial"` (log rate), `"bernoulli"`
                (log odds), `"student_t"` (centre), `"volatility"` (log variance), or a
                function `log_density(h, y, parameters) -> ()` of `h` and `y`, `(E,)`.
            **options: See `elk_ssm.models.nonlinear.observed`.

        Example:
            >>> import elk_ssm as elk
            >>> model = elk.models.local_level().with_emission("negative_binomial")
            >>> list(model.parameters)
            ['level.variance', 'emission.dispersion']
        """
        from elk_ssm.models.nonlinear import observed  # whose models hold these

        return observed(self, emission, **options)

    def centred(self, emissions: Array) -> Array:
        """Return emissions `(T, E)` less their means, if that changes nothing."""
        return emissions - self.mean_of(emissions)

    def mean_of(self, emissions: Array) -> Array:
        """Return what `centred` takes off, `(E,)`: means, or zeros."""
        if not self.absorbs_mean:
            return jnp.zeros(emissions.shape[1], emissions.dtype)
        return mean_of(emissions)

    def _blocks(self, inputs: Any, gaps: Array | None) -> list[Block]:
        if gaps is not None:
            gaps = gaps.astype(self.dtype)
            for part in self.components:
                part.kind.check_times()
        columns, begin = inputs_of(inputs, self.num_inputs, gaps), 0
        blocks = []
        for part in self.components:
            end = begin + part.kind.num_inputs
            own = None if columns is None else columns[:, begin:end]
            context = Context(self.dtype, gaps, own)
            values = {k: v.astype(self.dtype) for k, v in part.values.items()}
            blocks.append(part.kind.block(values, context))
            begin = end
        return blocks


def _check_apart(some: tuple[Component, ...], others: tuple[Component, ...]) -> None:
    """Raise where two components repeat with one period."""
    for one, other in product(some, others):
        pairs = product(one.kind.frequencies, other.kind.frequencies)
        both = next((f for f, g in pairs if abs(f - g) < 1e-9), None)
        if both is not None:
            raise ValueError(
                f"{one.name} and {other.name} both have a harmonic of {1 / both:g} "
                "steps, and no data could tell the two apart; give one of them fewer "
                "harmonics, or another period."
            )


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name, or the first of name_2, name_3, ... that is not taken."""
    tried, number = name, 2
    while tried in taken:
        tried, number = f"{name}_{number}", number + 1
    return tried
