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
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array, ArrayLike
from elk_ssm.kalman.initial import Diffuse
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.linalg.structure import Dense, Diagonal
from elk_ssm.models.component import Block, Component, Context, Kind, side_by_side
from elk_ssm.models.data import (
    as_emissions,
    gaps_between,
    inputs_of,
    mean_of,
    scale_of,
)
from elk_ssm.models.evidence import evidence, structure_of
from elk_ssm.models.noise import Noise
from elk_ssm.models.parameters import Parametric
from elk_ssm.models.prior import Prior

NOISE = "noise"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model(Parametric):
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
        """Return a model of one component."""
        noise = Component.of(NOISE, Noise(kind.emissions)) if kind.has_noise else None
        return cls((Component.of(name, kind),), noise)

    def __add__(self, other: "Model") -> "Model":
        """Add the components up; a name that occurs twice gets a number.

        Raises:
            ValueError: The emissions differ in number, or both have a level.
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
        components = self.components
        for one in other.components:
            taken = {c.name for c in components}
            components = (
                *components,
                dataclasses.replace(one, name=_free_name(one.name, taken)),
            )
        return Model(components, self.noise or other.noise)

    def start(self, y: Array) -> "Model":
        """Return the model with free variances that suit the scale of a series.

        Args:
            y: `(T,)` or `(T, E)`, NaN where missing.
        """
        scale = scale_of(as_emissions(y, self.emission_dim))

        def one(part: Component) -> Component:
            values = dict(part.values)
            for key in part.free:
                spec = part.kind.specs[key]
                if spec.share is not None:
                    near = spec.share * scale.changes
                    values[key] = jnp.broadcast_to(near, jnp.shape(values[key]))
            return dataclasses.replace(part, values=values)

        return self._map(one)

    def default_prior(self, y: Array) -> Prior:
        """Return a weak prior of the free parameters that suits the scale of a series.

        Normal in unconstrained coordinates, so log-normal for variances: their median
        is a share of the mean squared difference of neighbours, their standard
        deviation a factor of exp(3) or so.

        Args:
            y: `(T,)` or `(T, E)`, NaN where missing.
        """
        return Prior(self.start(y).unconstrained, self.default_widths)

    @property
    def default_widths(self) -> dict[str, float]:
        """Standard deviations of the default prior, by the names of free parameters."""
        return {
            f"{part.name}.{key}": part.kind.specs[key].width
            for part in self.parts
            for key in part.free
        }

    @property
    def emission_dim(self) -> int:
        """The number of emissions, E."""
        return self.components[0].kind.emissions

    @property
    def num_inputs(self) -> int:
        """How many columns the inputs have."""
        return sum(c.kind.num_inputs for c in self.components)

    @property
    def absorbs_mean(self) -> bool:
        """Whether a constant added to a series changes nothing but its first level."""
        return any(c.kind.absorbs_mean for c in self.components)

    @property
    def num_diffuse(self) -> int:
        """How many dimensions of the first state nothing is known of."""
        return int(structure_of(tuple(c.kind for c in self.components))[0].sum())

    @property
    def state_names(self) -> tuple[str, ...]:
        """A name for every dimension of the state."""
        return tuple(
            _state_name(c.name, s) for c in self.components for s in c.kind.states
        )

    @property
    def slices(self) -> dict[str, slice]:
        """Which dimensions of the state are those of a component, by its name."""
        found, begin = {}, 0
        for one in self.components:
            end = begin + len(one.kind.states)
            found[one.name], begin = slice(begin, end), end
        return found

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

    def log_likelihood(
        self,
        y: Array,
        inputs: ArrayLike | None = None,
        times: Any = None,
        *,
        mask: Array | None = None,
    ) -> Array:
        """Return log p(y), `()`, the diffuse one where a first state is diffuse.

        Args:
            y: `(T,)` or `(T, E)`, NaN where missing.
            inputs: `(T, U)`, for regressions.
            times: `(T,)`, increasing; `None` for steps of one.
            mask: `(T, E)` or `(T,)` boolean, True where observed.

        Raises:
            ValueError: Shapes do not fit one another.
        """
        gaps = None if times is None else gaps_between(times)
        y = as_emissions(y, self.emission_dim)
        return evidence(self, y, inputs, gaps, mask)

    def fit_to(self, *data: Any, **options: Any) -> Any:
        """Return the model fitted to a series; see `fitting.fit_model`."""
        from elk_ssm.models.fitting import fit_model  # which fits models

        return fit_model(self, *data, **options)

    def centred(self, emissions: Array) -> Array:
        """Return emissions `(T, E)` less their means, if that changes nothing."""
        return emissions - self.mean_of(emissions)

    def mean_of(self, emissions: Array) -> Array:
        """Return what `centred` takes off, `(E,)`: means, or zeros."""
        if not self.absorbs_mean:
            return jnp.zeros(emissions.shape[1], emissions.dtype)
        return mean_of(emissions)

    @property
    def dtype(self) -> Any:
        """Of the parameters, and of the matrices made of them."""
        leaves = jax.tree.leaves(self)
        return jnp.result_type(*leaves) if leaves else jnp.zeros(()).dtype

    def astype(self, dtype: Any) -> "Model":
        """Return the model with parameters of a float dtype."""
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), self)

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


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name, or the first of name_2, name_3, ... that is not taken."""
    tried, number = name, 2
    while tried in taken:
        tried, number = f"{name}_{number}", number + 1
    return tried


def _state_name(component: str, state: str) -> str:
    """Return level, cycle*, arma+1, trend.slope, seasonal-1."""
    return f"{component}.{state}" if state[:1].isalnum() else component + state
