"""What `smooth` is told: choices that are static, limits that are data."""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import jax.numpy as jnp

from elk_ssm._jax import is_traced
from elk_ssm._types import Array, ArrayLike
from elk_ssm._values import check_number
from elk_ssm.nssm.posed import Posed
from elk_ssm.nssm.slopes import Linearization
from elk_ssm.parallel.backend import Backend, check_backend
from elk_ssm.surrogate.noise import NoisePolicy, as_policy


@dataclass(frozen=True)
class Choices:
    """What is static: linearisation, backend, acceptance."""

    linearization: Linearization
    backend: Backend
    safeguard: bool


class Limits(NamedTuple):
    """What is data: the noise policy (or `None`), tolerance, number of passes."""

    noise: NoisePolicy | None
    tolerance: Array
    max_iters: Array


def check_choices(linearization: str, backend: Backend, safeguard: bool) -> Choices:
    """Collect the static options, or say what is wrong with them."""
    check_backend(backend)
    if linearization not in get_args(Linearization):
        raise ValueError(
            f"linearization must be one of {', '.join(get_args(Linearization))}; got "
            f"{linearization!r}."
        )
    return Choices(linearization, backend, bool(safeguard))  # type: ignore[arg-type]


def check_limits(
    noise: NoisePolicy | ArrayLike | None,
    tol: float | None,
    max_iters: int,
    posed: Posed,
) -> Limits:
    """Collect the numbers, or say what is wrong with them."""
    dtype = posed.initial_mean.dtype
    if tol is None:
        tol = 1e-8 if dtype == jnp.float64 else 1e-4
    check_number("tol", tol, "must be positive")
    if not is_traced(max_iters) and not hasattr(max_iters, "__index__"):
        raise TypeError(f"max_iters must be an integer; got {max_iters!r}.")
    if not is_traced(max_iters) and max_iters < 0:
        raise ValueError(f"max_iters must not be negative; got {max_iters}.")
    policy = None if noise is None else as_policy(noise)
    return Limits(policy, jnp.asarray(tol, dtype), jnp.asarray(max_iters, jnp.int32))


def check_states(name: str, states: Array, posed: Posed) -> Array:
    """Return a trajectory `(T, D)` of the model's dtype, or say that it is none."""
    states = jnp.asarray(states)
    if states.shape != posed.shape:
        raise ValueError(f"{name} must be {posed.shape}; got {states.shape}.")
    return states.astype(posed.initial_mean.dtype)


def check_guess(guess: Array | str | None, posed: Posed) -> Array | None:
    """Return the first trajectory, `None` for that of the extended smoother."""
    if guess is None:
        return jnp.broadcast_to(posed.initial_mean, posed.shape)
    if isinstance(guess, str):
        if guess != "extended":
            raise ValueError(f'guess must be an array or "extended"; got {guess!r}.')
        return None
    return check_states("guess", guess, posed)


def check_singular(choices: Choices, on_mesh: bool) -> None:
    """Refuse by name what a model with a singular covariance cannot have."""
    what = "a model with a singular covariance (P or Q has a zero eigenvalue)"
    if on_mesh:
        raise ValueError(
            f"{what} is smoothed on one device, where its dynamics are followed step "
            "by step; got a mesh."
        )
    if not choices.safeguard:
        raise ValueError(
            f"{what} is smoothed with safeguard=True, which leads to its mode; got "
            "False."
        )
