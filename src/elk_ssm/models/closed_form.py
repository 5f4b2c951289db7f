r"""Expectation maximisation of the variances of a sum of components.

An M-step has a closed form for a parameter that is the variance of some states, each
with noise of its own, and nothing else: not an entry of F, and not of what is known of
the first state, as that of a stationary autoregression is. Whether it is one is read
off the derivatives of the component's block by it.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array
from elk_ssm.expectation_maximization import EMFit, em_of_variances
from elk_ssm.kalman.ties import Ties
from elk_ssm.linalg.structure import as_operator
from elk_ssm.models.component import Context, Kind
from elk_ssm.models.model import Model


def fit_variances(
    model: Any,
    emissions: Array,
    inputs: Any,
    mask: Any,
    limits: tuple[int, Any],
) -> tuple[Model, EMFit]:
    """Return the model that expectation maximisation leads to, and how it went.

    Args:
        model: Where it starts.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        mask: `(T, E)` or `(T,)`, or `None`.
        limits: Iterations at most, and the tolerance or `None`.

    Raises:
        ValueError: A free parameter has no closed form; the message says which.
    """
    if not isinstance(model, Model):
        raise ValueError(
            "method='em' is for linear models with Gaussian noise; a model with "
            "another emission is fitted by L-BFGS."
        )
    ties, places = _ties(model)
    found = em_of_variances(
        model.assembled(inputs, None), model.centred(emissions), mask, ties, limits
    )
    Q = as_operator(found.model.dynamics_covariance, model.num_states, "Q").variances()
    values = {name: Q[at] for name, at in places.items()}
    if max(ties.emission) >= 0:
        R = as_operator(found.model.emission_covariance, model.emission_dim, "R")
        shape = model.parameters["noise.variance"].shape
        values["noise.variance"] = R.variances().reshape(shape)
    return model.replace(**values), found


def _ties(model: Model) -> tuple[Ties, dict[str, np.ndarray]]:
    """Return which variances are free, and where the parameters are among them."""
    labels: list[int] = []
    places: dict[str, np.ndarray] = {}
    for part in model.components:
        own = np.full(len(part.kind.states), -1)
        for key in part.free:
            name = f"{part.name}.{key}"
            dims = variances_of(part.kind, key)
            if dims is None:
                raise ValueError(
                    f"method='em' has no closed form for {name}, which is more than "
                    "the variance of some states; fix it, or fit by L-BFGS."
                )
            begin = max([*labels, *own, -1]) + 1
            used = np.where(dims.any(axis=1), dims.argmax(axis=1) + begin, -1)
            own = np.maximum(own, used)
            first = dims.argmax(axis=0) + len(labels)
            places[name] = first if np.ndim(part.values[key]) else first[0]
        labels.extend(own.tolist())
    noisy = model.noise is not None and "variance" in model.noise.free
    emission = range(model.emission_dim) if noisy else [-1] * model.emission_dim
    return Ties(tuple(labels), tuple(emission)), places


@lru_cache(maxsize=256)
def variances_of(kind: Kind, key: str) -> np.ndarray | None:
    """Return of which states each entry of a parameter is the variance, `(b, n)`.

    `None` if it is something else as well.
    """
    with jax.ensure_compile_time_eval():
        dtype = jnp.zeros(()).dtype
        # Any numbers do at which nothing vanishes that does not vanish elsewhere.
        values = {
            name: spec.bijection.forward(jnp.full(np.shape(spec.default), 0.3, dtype))
            for name, spec in kind.specs.items()
        }
        context = Context(dtype, None, jnp.ones((1, kind.num_inputs), dtype))

        def matrices(value: Array) -> tuple[Array, ...]:
            block = kind.block({**values, key: value}, context)
            F, Q = block.weights.to_dense(), block.covariance.to_dense()
            return Q, F, block.emission, block.initial

        value = values[key]
        Q = matrices(value)[0]
        by, *rest = jax.jacfwd(matrices)(value)
        size = Q.shape[-1]
        if Q.ndim != 2 or any(np.any(np.asarray(x) != 0) for x in rest):
            return None
        slopes = np.asarray(by).reshape(size, size, -1)
        dims = np.einsum("iin->in", slopes)
        told = np.einsum("in,n->i", dims, np.asarray(value).ravel())
    used = dims.any(axis=1)
    plain = np.isin(dims, (0, 1)).all() and (dims.sum(axis=1) <= 1).all()
    apart = (slopes.sum(axis=2) == np.diag(dims.sum(axis=1))).all()
    whole = np.allclose(told[used], np.diagonal(np.asarray(Q))[used], rtol=1e-5)
    return dims > 0 if plain and apart and whole else None
