"""Components with their parameters by name: replaced, fixed, and unconstrained."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from elk_ssm._types import Array, ArrayLike
from elk_ssm.models.component import Component, Parameter


@dataclass(frozen=True)
class Parametric:
    """Components and a noise, whose parameters have names such as `level.variance`."""

    components: tuple[Component, ...]
    noise: Component | None = None

    @property
    def parts(self) -> tuple[Component, ...]:
        """The components, and the noise if there is some."""
        return self.components if self.noise is None else (*self.components, self.noise)

    @property
    def parameters(self) -> dict[str, Array]:
        """All parameters by name, such as `"level.variance"`, constrained."""
        return {f"{c.name}.{k}": c.values[k] for c in self.parts for k in c.kind.specs}

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the parameters that a fit may change."""
        return tuple(f"{c.name}.{key}" for c in self.parts for key in c.free)

    def replace(self, **values: ArrayLike) -> Self:
        """Return the model with other values of some parameters.

        Args:
            **values: Constrained values by name: `replace(**{"level.variance": 0.1})`.

        Raises:
            ValueError: There is no parameter of a name, or a value is not allowed.
        """
        self._check_names(values)

        def one(part: Component) -> Component:
            prefix = f"{part.name}."
            own = {k: values[prefix + k] for k in part.values if prefix + k in values}
            return part.with_values(own)

        return self._map(one)

    def with_parameters(self, parameters: Mapping[str, ArrayLike]) -> Self:
        """Return the model with other values of some parameters, as `replace`."""
        return self.replace(**parameters)

    def fix(self, *names: str, **values: ArrayLike) -> Self:
        """Return the model with some parameters that a fit leaves alone.

        Args:
            *names: Parameters that stay what they are.
            **values: Parameters with the values that they are fixed at.

        Raises:
            ValueError: There is no parameter of a name, or a value is not allowed.
        """
        return self.replace(**values)._fixing({*names, *values}, True)

    def release(self, *names: str) -> Self:
        """Return the model with parameters free again that had been fixed.

        Args:
            *names: Parameters.

        Raises:
            ValueError: There is no parameter of a name.
        """
        return self._fixing(set(names), False)

    @property
    def specs(self) -> dict[str, Parameter]:
        """What each parameter may be, by name."""
        return {f"{c.name}.{k}": v for c in self.parts for k, v in c.kind.specs.items()}

    @property
    def unconstrained(self) -> dict[str, Array]:
        """The free parameters by name, as any real numbers (see `bijections`)."""
        found = {}
        for part in self.parts:
            for key in part.free:
                inverse = part.kind.specs[key].bijection.inverse
                found[f"{part.name}.{key}"] = inverse(part.values[key])
        return found

    def with_unconstrained(self, unconstrained: Mapping[str, Array]) -> Self:
        """Return the model with other free parameters, given as any real numbers."""

        def one(part: Component) -> Component:
            values = dict(part.values)
            for key in part.free:
                forward = part.kind.specs[key].bijection.forward
                values[key] = forward(unconstrained[f"{part.name}.{key}"])
            return dataclasses.replace(part, values=values)

        return self._map(one)

    def _fixing(self, names: set[str], fixed: bool) -> Self:
        self._check_names(names)

        def one(part: Component) -> Component:
            own = {key for key in part.values if f"{part.name}.{key}" in names}
            return dataclasses.replace(
                part, fixed=part.fixed | own if fixed else part.fixed - own
            )

        return self._map(one)

    def _map(self, function: Callable[[Component], Component]) -> Self:
        noise = None if self.noise is None else function(self.noise)
        return dataclasses.replace(
            self, components=tuple(map(function, self.components)), noise=noise
        )

    def _check_names(self, names: Iterable[str]) -> None:
        known = self.parameters
        for name in names:
            if name not in known:
                raise ValueError(
                    f"there is no parameter {name!r}; there are {', '.join(known)}."
                )
