r"""Autoregressions and moving averages, stationary from the start.

    x_t = a_1 x_{t-1} + ... + a_p x_{t-p} + e_t + b_1 e_{t-1} + ... + b_q e_{t-q}

in the form of Harvey (1989, section 3.3.1): D = max(p, q + 1), the coefficients in the
first column of F and ones above its diagonal, noise R = (1, b_1, ..., b_q)' e_t. An
autoregression is held in the companion form, whose states are x_t, x_{t-1}, ...

A sum with nothing else has no noise of its own, as an ARMA with noise is an ARMA again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array
from elk_ssm.kalman.initial import stationary as stationary_covariance
from elk_ssm.linalg.structure import Dense
from elk_ssm.models.bijections import invertible, positive, stationary
from elk_ssm.models.component import Block, Context, Kind, Parameter, is_count
from elk_ssm.models.model import Model


@dataclass(frozen=True)
class Arma(Kind):
    """An ARMA(p, q)."""

    p: int
    q: int
    has_noise = False

    @property
    def size(self) -> int:
        """Dimensions of the state."""
        return max(self.p, self.q + 1)

    @property
    def least_steps(self) -> int:  # type: ignore[override]
        """More than there are coefficients."""
        return self.p + self.q + 1

    @property
    def specs(self) -> dict[str, Parameter]:
        """Coefficients, and the variance of what is new in a step."""
        found = {"variance": Parameter(1.0, positive, 0.5)}
        if self.p:
            ar = (0.5, *(0.0,) * (self.p - 1))
            found["ar"] = Parameter(ar, stationary, width=2.0)
        if self.q:
            found["ma"] = Parameter((0.0,) * self.q, invertible, width=2.0)
        return found

    @property
    def states(self) -> tuple[str, ...]:
        """The series, and its past or what is known of its future."""
        sign = "-" if self.q == 0 else "+"
        return ("", *(f"{sign}{lag}" for lag in range(1, self.size)))

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the block, at rest from the start."""
        size, dtype = self.size, context.dtype
        weights = jnp.asarray(np.eye(size, k=1), dtype)
        if self.p:
            weights = weights.at[: self.p, 0].set(values["ar"].astype(dtype))
        weights = weights.T if self.q == 0 else weights
        noise = jnp.zeros(size, dtype).at[0].set(1)
        if self.q:
            noise = noise.at[1 : 1 + self.q].set(values["ma"].astype(dtype))
        shape = noise[:, None] * noise
        variance = values["variance"]
        first = stationary_covariance(Dense(weights), Dense(shape)).to_dense()
        return Block(
            Dense(weights),
            Dense(variance * shape),
            jnp.asarray(np.eye(1, size), dtype),
            np.zeros(size, bool),
            variance * first,
        )

    def check_times(self) -> None:
        """Refuse."""
        raise ValueError(
            "autoregressions and moving averages have no times=; matern is their "
            "counterpart in continuous time."
        )


def autoregressive(order: int = 1, name: str = "autoregressive") -> Model:
    """A stationary autoregression.

    Args:
        order: How many steps back it looks.
        name: What its parameters and states are called after.

    Raises:
        ValueError: The order is not a positive integer.

    Example:
        >>> import elk_ssm as elk
        >>> elk.models.autoregressive(2).parameters["autoregressive.ar"].tolist()
        [0.5, 0.0]
    """
    if not is_count(order):
        raise ValueError(
            f"autoregressive: order must be a positive integer; got {order!r}."
        )
    return Model.of(name, Arma(order, 0))


def arma(p: int, q: int, name: str = "arma") -> Model:
    """A stationary, invertible autoregressive moving average.

    Args:
        p: Order of the autoregression.
        q: Order of the moving average.
        name: What its parameters and states are called after.

    Raises:
        ValueError: The orders are not integers from zero, or both are zero.

    Example:
        >>> import elk_ssm as elk
        >>> elk.models.arma(1, 2).lgssm().state_dim
        3
    """
    good = all(is_count(x, 0) for x in (p, q))
    if not good or p + q == 0:
        raise ValueError(
            "arma: p and q must be integers from 0, not both of them 0; "
            f"got {p!r} and {q!r}."
        )
    return Model.of(name, Arma(p, q))
