r"""Gaussian processes that are Markov: the Matérn family of half-integer smoothness.

With n = nu + 1/2 and l = sqrt(2 nu) / lengthscale the process and its derivatives,
in units l^i of the i-th one, obey a stochastic differential equation with (d/dt + l)^n
(Hartikainen and Särkkä, 2010). Over a gap d, with N nilpotent,

    F = exp(-l d) sum_k (l d)^k (A + I)^k / k!,       k < n
    P = F P F' + Q

Q by that difference would be rounding alone for short gaps: its entries go down to
(l d)^(2n-1). There it is the integral that it stands for,

    Q = int_0^{l d} w(s) w(s)' ds,     w(s) = exp(A s) L sqrt(2 ...)

by ten points of Gauss and Legendre, whose error is below 1e-17 up to l d = 2, and which
is positive semi-definite whatever the rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import factorial

import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array
from elk_ssm.linalg.structure import Dense
from elk_ssm.models.bijections import positive
from elk_ssm.models.component import Block, Context, Kind, Parameter
from elk_ssm.models.model import Model
from elk_ssm.models.trends import gaps_of

_SHORT = 2.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
_SMOOTHNESS = (0.5, 1.5, 2.5)


@dataclass(frozen=True)
class Matern(Kind):
    """A process of smoothness nu."""

    nu: float

    @property
    def size(self) -> int:
        """Dimensions of the state."""
        return int(self.nu + 0.5)

    @property
    def specs(self) -> dict[str, Parameter]:
        """The variance of the process, and how far it is correlated."""
        return {
            "variance": Parameter(1.0, positive, 2.0),
            "lengthscale": Parameter(10.0, positive, width=2.0),
        }

    @property
    def states(self) -> tuple[str, ...]:
        """The process and its derivatives in units of the length scale."""
        return ("", "'", "''")[: self.size]

    def block(self, values: Mapping[str, Array], context: Context) -> Block:
        """Return the process, at rest from the start."""
        n, dtype, variance = self.size, context.dtype, values["variance"]
        rate = (2 * self.nu) ** 0.5 / values["lengthscale"]
        turns = rate * gaps_of(context)
        weights = _transition(turns, n)
        resting = jnp.asarray(_resting(n), dtype)
        drop = weights @ resting @ jnp.swapaxes(weights, -1, -2)
        short = turns[..., None, None] < _SHORT
        near = _integral(jnp.minimum(turns, _SHORT), n)
        noise = jnp.where(short, near, resting - drop)
        return Block(
            Dense(weights),
            Dense(variance * noise),
            jnp.asarray(np.eye(1, n), dtype),
            np.zeros(n, bool),
            variance * resting,
        )


def _generator(n: int) -> np.ndarray:
    """A of dx = A x ds + L dw in units in which the rate is one."""
    matrix = np.eye(n, k=1)
    binomial = [factorial(n) // (factorial(i) * factorial(n - i)) for i in range(n)]
    matrix[-1] = [-float(b) for b in binomial]
    return matrix


def _intensity(n: int) -> float:
    """Of the noise, such that the process has variance one."""
    return 2.0 ** (2 * n - 1) * factorial(n - 1) ** 2 / factorial(2 * n - 2)


def _resting(n: int) -> np.ndarray:
    """P of A P + P A' + q L L' = 0."""
    A, eye = _generator(n), np.eye(n)
    noise = np.zeros((n, n))
    noise[-1, -1] = _intensity(n)
    lyapunov = np.kron(A, eye) + np.kron(eye, A)
    return np.linalg.solve(lyapunov, -noise.ravel()).reshape(n, n)


def _transition(turns: Array, n: int) -> Array:
    """Return exp(A turns), `(..., n, n)`."""
    nilpotent, power = _generator(n) + np.eye(n), np.eye(n)
    found, factor = jnp.zeros((), turns.dtype), jnp.ones_like(turns)
    for k in range(n):
        found = found + factor[..., None, None] * power.astype(turns.dtype)
        power, factor = power @ nilpotent, factor * turns / (k + 1)
    return jnp.exp(-turns)[..., None, None] * found


def _integral(turns: Array, n: int) -> Array:
    """Return Q over short gaps, `(..., n, n)`."""
    nodes = jnp.asarray((1 + _NODES) / 2, turns.dtype) * turns[..., None]
    weights = jnp.asarray(_WEIGHTS / 2 * _intensity(n), turns.dtype)
    last = _transition(nodes, n)[..., -1]
    scale = weights * turns[..., None]
    outer = last[..., :, None] * last[..., None, :]
    return jnp.sum(scale[..., None, None] * outer, axis=-3)


def matern(nu: float = 1.5, lengthscale: float = 10.0, name: str = "matern") -> Model:
    """A Gaussian process with a Matérn kernel, seen with noise at any times.

    Args:
        nu: Smoothness, 0.5 (exponential), 1.5 or 2.5: how often it has a derivative,
            and a half.
        lengthscale: Where it starts, in units of the times; a fit begins there.
        name: What its parameters and states are called after.

    Raises:
        ValueError: `nu` is none of the three, or the length scale is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> process = elk.models.matern(2.5, lengthscale=3.0)
        >>> process.lgssm(times=jnp.array([0.0, 0.1, 7.5])).dynamics_weights.array.shape
        (3, 3, 3)
    """
    if nu not in _SMOOTHNESS:
        raise ValueError(f"matern: nu must be 0.5, 1.5 or 2.5; got {nu!r}.")
    if not lengthscale > 0:
        raise ValueError(f"matern: lengthscale must be positive; got {lengthscale!r}.")
    model = Model.of(name, Matern(float(nu)))
    return model.replace(**{f"{name}.lengthscale": lengthscale})
