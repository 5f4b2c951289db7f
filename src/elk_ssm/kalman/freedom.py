"""Which parameters of a linear-Gaussian model are free, and whether that can be.

The maximum of an expected log density has a closed form where what is free is static
and regressed under a covariance that is static too.
"""

from collections.abc import Collection

import jax.numpy as jnp

from elk_ssm._jax import is_traced
from elk_ssm.kalman.initial import Diffuse, Stationary
from elk_ssm.kalman.lgssm import LGSSM, emission_dim
from elk_ssm.linalg.structure import as_operator

START = ("initial_mean", "initial_covariance")
# Weights of the state, of the inputs, the bias; and the covariance.
DYNAMICS = (
    "dynamics_weights",
    "dynamics_input_weights",
    "dynamics_bias",
    "dynamics_covariance",
)
EMISSION = (
    "emission_weights",
    "emission_input_weights",
    "emission_bias",
    "emission_covariance",
)


def free_parameters(model: LGSSM, fixed: Collection[str]) -> frozenset[str]:
    """Return the names of what is to be estimated.

    Raises:
        ValueError: A name is unknown, or a start that follows from the dynamics is to
            be estimated with them.
    """
    names = [fixed] if isinstance(fixed, str) else list(fixed)
    unknown = [name for name in names if name not in LGSSM._fields]
    if unknown:
        known = ", ".join(LGSSM._fields)
        raise ValueError(f"fixed has an unknown name {unknown[0]!r}; known: {known}.")
    there = (name for name, value in model._asdict().items() if value is not None)
    free = frozenset(there) - set(names)
    if isinstance(model.initial_covariance, Diffuse):
        return free - set(START)
    if isinstance(model.initial_covariance, Stationary):
        moving = sorted(free & {"dynamics_weights", "dynamics_covariance"})
        if moving:
            raise ValueError(
                "a Stationary initial covariance has no closed form in the dynamics: "
                f"fix {' and '.join(moving)}, or give a matrix."
            )
        return free - {"initial_covariance"}
    return free


def check_free(model: LGSSM, free: frozenset[str]) -> None:
    """Raise where the maximum of what is free has no closed form."""
    D, E = model.state_dim, emission_dim(model)
    matrices = {
        "dynamics_weights": D,
        "dynamics_covariance": D,
        "emission_weights": D,
        "emission_covariance": E,
    }
    varies = {
        name: as_operator(getattr(model, name), size, name).varies
        for name, size in matrices.items()
    }
    for name, value in model._asdict().items():
        axes = 1 if name.endswith("bias") else 2
        if name not in matrices and name.startswith(("dynamics", "emission")):
            varies[name] = value is not None and jnp.ndim(value) > axes
    for names in (DYNAMICS, EMISSION):
        asked = [name for name in names if name in free]
        moving = next((name for name in asked if varies[name]), None)
        if moving is not None:
            raise ValueError(f"{moving} varies in time: it must be named in fixed.")
        if asked and varies[names[-1]]:
            raise ValueError(
                f"{names[-1]} varies in time, under which {asked[0]} has no closed "
                "form: it must be named in fixed."
            )
    covariance = as_operator(model.emission_covariance, E, "emission_covariance")
    variances = covariance.variances()
    known = "emission_covariance" in free and not is_traced(variances)
    if known and bool(jnp.any(jnp.isinf(variances))):
        raise ValueError(
            "emission_covariance has an infinite variance, which no data estimate: it "
            "must be named in fixed."
        )
