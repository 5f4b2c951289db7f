r"""What every component contributes to the observation, given the whole series.

    c_t = H_t^c x_t^c | y ~ N(H^c m^c, H^c P^c H^c'),    m, P: smoothed, of its block

The contributions add up to the signal, y without its noise. Their errors are correlated
(what is not in the one is in the other), so their variances do not add up to its.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._showing import held
from elk_ssm._trees import static
from elk_ssm._types import Array
from elk_ssm.fitted.bands import check_level, edges
from elk_ssm.fitted.series import Given, Series, given_by
from elk_ssm.kalman.lgssm import LGSSM, emission_offsets
from elk_ssm.kalman.smoothing import SmootherPosterior, lgssm_smoother
from elk_ssm.linalg.structure import as_operator, to_dense


class Band(NamedTuple):
    """A mean, its variance, and the edges of a band around it, each `(T,)`.

    Each `(T, E)` of several emissions.
    """

    mean: Array
    variance: Array
    lower: Array
    upper: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Decomposition:
    """A series as a sum of components, given all of it.

    Each array `(n, T)` for n components, or `(n, T, E)` of several emissions.

    Attributes:
        names: Of the components.
        mean: Smoothed contributions to the observation, the mean of the series with
            that of the level.
        variance: Of the contributions; `inf` where the data leave one open.
        lower: Lower edges of their bands.
        upper: Upper edges.
        signal: The sum: the observation without its noise, with `mean`, `variance`,
            `lower` and `upper`, `(T,)` or `(T, E)`.
        residual: The observation less the mean of the signal, `(T,)` or `(T, E)`; NaN
            where missing.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> model = elk.models.local_level() + elk.models.seasonal(2)
        >>> parts = elk.decompose(elk.Observed(model, jnp.array([1.0, 3.0, 1.1, 3.2])))
        >>> parts.names, parts["seasonal"].mean.shape
        (('level', 'seasonal'), (4,))
    """

    mean: Array
    variance: Array
    lower: Array
    upper: Array
    signal: Band
    residual: Array
    names: tuple[str, ...] = static()

    def __repr__(self) -> str:
        return held(self, "mean", "residual", names=self.names)

    def __getitem__(self, key: str) -> Band:
        """Return the band of a component by its name."""
        if key not in self.names:
            raise KeyError(f"no component {key!r}; there are {', '.join(self.names)}.")
        i = self.names.index(key)
        return Band(self.mean[i], self.variance[i], self.lower[i], self.upper[i])


def decompose(fitted: Any, *, level: float | Array = 0.95) -> Decomposition:
    """Return the smoothed contribution of every component, with bands.

    Args:
        fitted: What `elk_ssm.fit` returned for a model of `elk_ssm.models`, or an
            `elk_ssm.Observed`. Of an `LGSSM` every dimension of the state is a
            component, named `state 0` and on; a bias or inputs of the emission are
            one more, named `offset`.
        level: Probability of each band, in (0, 1).

    Raises:
        TypeError: That is no fit, or its model is not linear and Gaussian.
        ValueError: The level is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> model = elk.models.local_level() + elk.models.seasonal(2)
        >>> y = jnp.array([1.0, 3.2, 0.9, 2.8, 1.3, 3.3, 1.6, 3.9])
        >>> parts = elk.decompose(elk.fit(model, y))
        >>> bool(jnp.allclose(parts.mean.sum(0), parts.signal.mean, atol=1e-5))
        True
    """
    check_level(level)
    found = given_by(fitted, "decompose").run(_smoothed)
    bands = edges(found.mean, found.variance, level)
    around = edges(found.total, found.spread, level)
    signal = Band(found.total, found.spread, *around)
    return Decomposition(
        found.mean, found.variance, *bands, signal, found.residual, found.names
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Smoothed:
    """Contributions, their sum, and what is left; see `Decomposition`."""

    mean: Array
    variance: Array
    total: Array
    spread: Array
    residual: Array
    names: tuple[str, ...] = static()


def _smoothed(given: Given) -> _Smoothed:
    """Return the smoothed contributions of all components."""
    series = given.series()
    found = lgssm_smoother(series.matrices, series.emissions, series.inputs)
    weights = _weights(series)
    slices, rest, home = _places(given.model, series)
    parts = [_seen(weights[..., s], found, s) for s in slices.values()]
    mean, variance = (jnp.stack(x) for x in zip(*parts))
    if home is not None:
        mean = mean.at[home].add(series.shift)
    if rest is not None:
        mean = jnp.concatenate([mean, rest[None]])
        variance = jnp.concatenate([variance, jnp.zeros_like(rest)[None]])
    names = (*slices, "offset") if rest is not None else tuple(slices)
    spread = _seen(weights, found, slice(None))[1]
    total = jnp.sum(mean, axis=0)
    residual = series.emissions + series.shift - total
    mean, variance, spread = map(series.shaped, (mean, variance, spread))
    total, residual = series.shaped(total), series.shaped(residual)
    return _Smoothed(mean, variance, total, spread, residual, names)


def _weights(series: Series) -> Array:
    """Return H of every step, `(T, E, D)`."""
    matrices = series.matrices
    H = to_dense(
        as_operator(matrices.emission_weights, matrices.state_dim, "emission_weights")
    )
    return jnp.broadcast_to(H, (len(series.emissions), *H.shape[-2:]))


def _places(
    model: Any, series: Series
) -> tuple[dict[str, slice], Array | None, int | None]:
    """Return the dimensions of components, what is in none, and who has the shift."""
    if not isinstance(model, LGSSM):
        takes = [c.kind.absorbs_mean for c in model.components]
        return model.slices, None, takes.index(True) if any(takes) else None
    slices = {f"state {i}": slice(i, i + 1) for i in range(model.state_dim)}
    rest = None
    if model.emission_bias is not None or model.emission_input_weights is not None:
        shape, dtype = series.emissions.shape, series.emissions.dtype
        rest = emission_offsets(model, series.inputs, shape, dtype)
    return slices, rest, None


def _seen(H: Array, found: SmootherPosterior, s: slice) -> tuple[Array, Array]:
    """Return mean and variance of H x for some dimensions of the state, `(T, E)`."""
    mean = jnp.sum(H * found.smoothed_means[:, None, s], axis=-1)
    cov = to_dense(found.smoothed_covariances)[:, None, s, s]
    # What is not seen may be open, of variance inf, and counts for nothing.
    terms = H[..., :, None] * H[..., None, :]
    terms = jnp.where(terms == 0, 0, terms * jnp.where(terms == 0, 0, cov))
    return mean, jnp.maximum(jnp.sum(terms, axis=(-2, -1)), 0)
