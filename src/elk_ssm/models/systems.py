r"""Motion and predictor of a nonlinear model, and what is known at its start.

    z_0 ~ N(m, P),      z_t = f(z_{t-1}, u_t) + N(0, Q_t),      h_t = h(z_t, u_t)

What varies in time is an input: F_t of unequal steps, H_t of a regression.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._types import Array
from elk_ssm.kalman.initial import Diffuse
from elk_ssm.linalg.small import matvec
from elk_ssm.linalg.structure import Dense, Matrix, to_dense
from elk_ssm.models.component import Kind
from elk_ssm.models.data import scale_of
from elk_ssm.models.model import Model


class System(NamedTuple):
    """Motion and predictor of a model; `entries` are inputs with leading axis T."""

    initial_mean: Array
    initial_covariance: Matrix
    dynamics: Callable[[Array, Any], Array]
    covariance: Matrix
    predictor: Callable[[Array, Any], Array]
    entries: Any = None


class Motion(Kind):
    """A component with a motion of its own, the only one of its model."""

    def system(self, values: Mapping[str, Array], dtype: Any) -> System:
        """Return motion and predictor."""
        raise NotImplementedError


def linear_system(
    model: Any, emissions: Array | None, inputs: Any, gaps: Array | None
) -> System:
    """Return the system of linear components seen by the emission of `model`."""
    matrices = Model(model.components).assembled(inputs, gaps)
    matrices = jax.tree.map(
        lambda x: x if x.dtype == bool else x.astype(model.dtype), matrices
    )
    F, H = to_dense(matrices.dynamics_weights), matrices.emission_weights
    varying = {k: x for k, x in (("F", F), ("H", H)) if x.ndim == 3}
    mean, covariance = _first(model, matrices, emissions)
    return System(
        mean,
        covariance,
        lambda z, u: matvec(u["F"] if "F" in varying else F, z),
        matrices.dynamics_covariance,
        lambda z, u: matvec(u["H"] if "H" in varying else H, z),
        varying or None,
    )


def _first(model: Any, matrices: Any, emissions: Array | None) -> tuple[Array, Matrix]:
    """Return mean and covariance of the first state, wide where it is diffuse."""
    known, kind = matrices.initial_covariance, model.emission.kind
    mean = jnp.zeros(matrices.state_dim, model.dtype)
    if not isinstance(known, Diffuse):
        return mean, known
    H = matrices.emission_weights
    H = H if H.ndim == 3 else H[None]
    deviation, level = jnp.ones((), model.dtype), jnp.zeros(H.shape[1], model.dtype)
    if emissions is not None:
        series = kind.on_scale(emissions.astype(model.dtype))  # type: ignore[attr-defined]
        deviation = jnp.sqrt(scale_of(series).variance)
        least = kind.unit or jnp.finfo(model.dtype).tiny ** 0.25  # type: ignore[attr-defined]
        deviation = jnp.maximum(deviation, least)
        seen = jnp.any(~jnp.isnan(series), axis=0)
        level = jnp.where(seen, jnp.nanmean(series, axis=0), 0)
    sizes = jnp.ones_like(mean)
    for part, place in zip(model.components, model.slices.values()):
        if part.kind.num_inputs:
            square = jnp.mean(H[..., place] ** 2, axis=(0, 1))
            sizes = sizes.at[place].set(jnp.where(square > 0, square, 1))
        if part.kind.absorbs_mean:
            mean = mean.at[place].set(matvec(H[0, :, place].T, level))
    wide = (model.width * deviation) ** 2 / sizes
    assert known.dims is not None
    first = to_dense(known.covariance)
    return mean, Dense(first + jnp.diag(jnp.where(known.dims, wide, 0)))
