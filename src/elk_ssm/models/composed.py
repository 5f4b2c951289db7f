"""What linear and nonlinear models have in common: components, states, and scales."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._showing import number, show
from elk_ssm._types import Array, ArrayLike
from elk_ssm.models.component import Component, Scale
from elk_ssm.models.data import as_emissions, gaps_between, scale_of
from elk_ssm.models.parameters import Parametric
from elk_ssm.models.prior import Prior


class Composed(Parametric):
    """Components with states, and what is seen of them."""

    def scale(self, emissions: Array) -> Scale:
        """Return how large a series `(T, E)` is, in units of the states."""
        return scale_of(emissions)

    def check_support(self, values: np.ndarray) -> None:
        """Raise where observed values cannot be of this model; all can."""

    def evidence(
        self, emissions: Array, inputs: Any, gaps: Array | None, mask: Any = None
    ) -> Array:
        """Return log p(y), `()`, of emissions `(T, E)` and gaps for times."""
        raise NotImplementedError

    def log_likelihood(
        self,
        y: ArrayLike,
        inputs: ArrayLike | None = None,
        times: Any = None,
        *,
        mask: Array | None = None,
    ) -> Array:
        """Return log p(y), `()`.

        The diffuse one where a first state is diffuse; of a nonlinear model Laplace's
        approximation, NaN where no mode is found.

        Args:
            y: `(T,)` or `(T, E)`, NaN where missing.
            inputs: `(T, U)`, for regressions.
            times: `(T,)`, increasing; `None` for steps of one.
            mask: `(T, E)` or `(T,)` boolean, True where observed.

        Raises:
            ValueError: Shapes do not fit one another.
        """
        gaps = None if times is None else gaps_between(times)
        return self.evidence(as_emissions(y, self.emission_dim), inputs, gaps, mask)

    @property
    def num_diffuse(self) -> int:
        """How many dimensions of the first state the series alone tells."""
        raise NotImplementedError

    def start(self, y: Array) -> Self:
        """Return the model with free variances that suit the scale of a series.

        Args:
            y: `(T,)` or `(T, E)`, NaN where missing.
        """
        scale = self.scale(as_emissions(y, self.emission_dim))

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
    def num_states(self) -> int:
        """The number of dimensions of the state."""
        return sum(len(c.kind.states) for c in self.components)

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

    def __repr__(self) -> str:
        names = " + ".join(part.name for part in self.components)
        values = {
            name: f"{number(value)}{'' if name in self.free else ' (fixed)'}"
            for name, value in self.parameters.items()
        }
        return show(type(self).__name__, components=names, **values)

    def fit_to(self, *data: Any, **options: Any) -> Any:
        """Return the model fitted to a series; see `fitting.fit_model`."""
        from elk_ssm.models.fitting import fit_model  # which fits models

        return fit_model(self, *data, **options)

    @property
    def dtype(self) -> Any:
        """Of the parameters, and of the matrices made of them."""
        leaves = jax.tree.leaves(self)
        return jnp.result_type(*leaves) if leaves else jnp.zeros(()).dtype

    def astype(self, dtype: Any) -> Self:
        """Return the model with parameters of a float dtype."""
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), self)


def _state_name(component: str, state: str) -> str:
    """Return level, cycle*, arma+1, trend.slope, seasonal-1."""
    return f"{component}.{state}" if state[:1].isalnum() else component + state
