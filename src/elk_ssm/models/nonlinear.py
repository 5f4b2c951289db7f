r"""Models with nonlinear parts: components seen by an emission that is not Gaussian.

    z_t = F_t z_{t-1} + G w_t     or  f(z_{t-1}) + G w_t
    h_t = H_t z_t + mean          or  h(z_t),            log p(y_t | h_t)

The components are linear ones, added up, or one with a motion of its own. Noise may be
missing in some directions (a trend's, a season's, the lags of an autoregression), also
where a fitted variance goes to zero, so a model always counts as singular.

**What is known at the start.** Where a linear component is diffuse, the state has a
proper normal prior here: its deviation is `width` times that of the series on the
scale of the predictor, at least one for log rates and log odds; that of a coefficient
is divided by the root mean square of its input. A level is centred on the series. The
log likelihood contains that prior, so it is not the diffuse one: it may be compared
between parameters of one model, and between models with the same diffuse states.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._trees import static
from elk_ssm._types import Array, ArrayLike
from elk_ssm.linalg.structure import Diagonal
from elk_ssm.models.component import Component, Parameter, Scale
from elk_ssm.models.composed import Composed
from elk_ssm.models.data import as_emissions, gaps_between, scale_of
from elk_ssm.models.emissions import Emission, emission_of
from elk_ssm.models.model import Model
from elk_ssm.models.systems import Motion, System, linear_system
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.smoothing import Smoothed, smooth
from elk_ssm.solution import Status

# Most of the changes of a series on the scale of a predictor are noise.
_STATES_SHARE = 0.1
EMISSION = "emission"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)  # that of Composed
class NonlinearModel(Composed):
    """Components seen by an emission, as `Model.with_emission` makes them.

    A pytree whose numbers are its parameters, constrained; those of the emission are
    called `emission.*`.

    Attributes:
        components: What moves.
        noise: The emission.
        width: Of the prior of a diffuse state, in deviations of the series.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> model = elk.models.local_level().with_emission("poisson")
        >>> model = model.replace(**{"level.variance": 0.05})
        >>> smoothed = model.smooth(jnp.array([3.0, 5.0, 2.0, 0.0, 1.0]))
        >>> bool(smoothed.converged), smoothed.means.shape
        (True, (5, 1))
    """

    width: float = static(default=10.0)

    @property
    def emission(self) -> Component:
        """What is seen, and how."""
        assert self.noise is not None
        return self.noise

    @property
    def is_linear(self) -> bool:
        """Whether the components are linear."""
        return not isinstance(self.components[0].kind, Motion)

    @property
    def num_diffuse(self) -> int:
        """How many dimensions of the first state have a wide prior by the series."""
        return Model(self.components).num_diffuse if self.is_linear else 0

    def scale(self, emissions: Array) -> Scale:
        """Return how large a series is on the scale of the predictor."""
        kind = self.emission.kind
        if not isinstance(kind, Emission):
            return scale_of(emissions)
        found = scale_of(kind.on_scale(emissions))
        return found._replace(changes=_STATES_SHARE * found.changes)

    def start(self, y: Array) -> "NonlinearModel":
        """Return the model with free parameters that suit the scale of a series.

        Args:
            y: `(T,)` or `(T, E)`, NaN where missing.
        """
        begun, part = super().start(y), self.emission
        if not isinstance(part.kind, Emission):
            return begun
        near = part.kind.begin(part.values, as_emissions(y, self.emission_dim))
        kept = {k: near[k] if k in part.free else v for k, v in part.values.items()}
        return dataclasses.replace(begun, noise=dataclasses.replace(part, values=kept))

    def check_support(self, values: np.ndarray) -> None:
        """Raise where observed values cannot be of this emission."""
        if isinstance(self.emission.kind, Emission):
            self.emission.kind.check(values)

    def nonlinear(
        self,
        y: ArrayLike | None = None,
        inputs: ArrayLike | None = None,
        times: Any = None,
    ) -> NonlinearSSM:
        """Return the model as functions and matrices.

        With inputs or times it takes inputs itself: those that `entries` returns.

        Args:
            y: `(T,)` or `(T, E)`, whose scale the prior of diffuse states has; without
                one it has mean zero and deviation `width`.
            inputs: `(T, U)`, for regressions.
            times: `(T,)`, increasing; `None` for steps of one.

        Raises:
            ValueError: Inputs or times do not fit, or a component has none.
        """
        emissions = None if y is None else as_emissions(y, self.emission_dim)
        gaps = None if times is None else gaps_between(times)
        return self._model(self.system(emissions, inputs, gaps))

    def entries(self, inputs: ArrayLike | None = None, times: Any = None) -> Any:
        """Return the inputs of `nonlinear(y, inputs, times)`, for `smooth`, `sample`.

        `None` where neither transition nor predictor varies in time.
        """
        gaps = None if times is None else gaps_between(times)
        return self.system(None, inputs, gaps).entries

    def smooth(
        self,
        y: ArrayLike,
        inputs: ArrayLike | None = None,
        times: Any = None,
        **options: Any,
    ) -> Smoothed:
        """Return the states that a series suggests; see `elk_ssm.smooth`.

        Args:
            y: `(T,)` or `(T, E)`, NaN where missing.
            inputs: `(T, U)`, for regressions.
            times: `(T,)`, increasing; `None` for steps of one.
            **options: Of `elk_ssm.smooth`.
        """
        emissions = as_emissions(y, self.emission_dim)
        gaps = None if times is None else gaps_between(times)
        system = self.system(emissions, inputs, gaps)
        emissions = emissions.astype(self.dtype)
        return smooth(self._model(system), emissions, system.entries, **options)

    def evidence(
        self, emissions: Array, inputs: Any, gaps: Array | None, mask: Any = None
    ) -> Array:
        """Return log p(y), `()`, as `log_likelihood`, given gaps for times."""
        system = self.system(emissions, inputs, gaps)
        emissions = emissions.astype(self.dtype)
        found = smooth(self._model(system), emissions, system.entries, mask=mask)
        mode = found.converged | (found.status == Status.precision_limit)
        return jnp.where(mode, found.log_likelihood, jnp.nan)

    def system(
        self, emissions: Array | None, inputs: Any, gaps: Array | None
    ) -> System:
        """Return motion and predictor, with gaps for times."""
        if not self.is_linear:
            one = self.components[0]
            if gaps is not None:
                one.kind.check_times()
            assert isinstance(one.kind, Motion)
            return one.kind.system(one.values, self.dtype)
        return linear_system(self, emissions, inputs, gaps)

    def _model(self, system: System) -> NonlinearSSM:
        kind, values = self.emission.kind, self.emission.values
        common = system[:4]
        if not isinstance(kind, Emission):
            R = jnp.broadcast_to(values["variance"], (self.emission_dim,))
            return NonlinearSSM(*common, system.predictor, Diagonal(R), singular=True)
        return NonlinearSSM(
            *common,
            lambda z, u: kind.predictor(values, system.predictor(z, u)),
            log_density=lambda h, y, u: kind.log_density(values, h, y),
            draw=lambda key, h, u: kind.draw(values, key, h),
            singular=True,
        )


def observed(
    model: Model,
    emission: Any,
    *,
    parameters: Mapping[str, Parameter] | None = None,
    draw: Callable | None = None,
    on_scale: Callable[[Array], Array] | None = None,
    mean: bool | None = None,
    width: float = 10.0,
) -> NonlinearModel:
    """Return a linear model seen by an emission; what `Model.with_emission` does.

    Args:
        model: Its observation noise is dropped.
        emission: A name, or `log_density(h, y, parameters) -> ()`.
        parameters: Of a log density function, by name: `elk.models.Parameter(default,
            bijection)` with a bijection of `elk_ssm.models.bijections`.
        draw: `draw(key, h, parameters) -> y`, to sample with a log density function.
        on_scale: The series on the scale of `h`, roughly, for priors and starts; with a
            log density function, the series itself if `None`.
        mean: Whether a parameter `emission.mean` is added to the predictor; `None`
            for one where the model has no level.
        width: Of the prior of diffuse states, see the module.

    Raises:
        ValueError: There is no emission of the name, or an option does not fit.
    """
    if not isinstance(width, int | float) or not width > 0:
        raise ValueError(f"width must be a positive number; got {width!r}.")
    if any(part.name == EMISSION for part in model.components):
        raise ValueError(
            f"no component may be called {EMISSION!r}, as the emission itself is."
        )
    has_mean = not model.absorbs_mean if mean is None else bool(mean)
    if has_mean and "mean" in (parameters or {}):
        raise ValueError("parameters have a mean already; say mean=False.")
    own = {"parameters": parameters, "draw": draw, "on_scale": on_scale}
    kind = emission_of(emission, model.emission_dim, has_mean, **own)
    return NonlinearModel(model.components, Component.of(EMISSION, kind), float(width))
