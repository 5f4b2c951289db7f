r"""Noise policies: how much the previous iterate is believed, and how that changes.

The surrogate observes the previous iterate with variance s^2 (process variance one), so
s^2 is the trust region: small stays near the iterate, large trusts the linearised
dynamics, and s^2 = inf is the undamped iteration. A policy owns a small state that
travels through the loop:

    state = policy.init(shape, dtype)              before the first iteration
    noise = policy.noise(state)                    s^2 for this iteration
    state, accept = policy.update(state, seen)     after f was evaluated at an iterate
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._types import Array, ArrayLike
from elk_ssm.parallel.time_axis import TimeAxis


class Seen(NamedTuple):
    """What a policy may look at: the iterate at which f was just evaluated.

    Attributes:
        residual: x_t - f(x_{t-1}, u_t), shape `(n, D)`.
        merit: 1/2 sum of squared residuals of this iterate, `inf` if not finite.
        last_merit: The same for the last accepted iterate, `inf` before the first.
        predicted_merit: What the linearised dynamics predict for this iterate.
        iteration: Number of iterations done before, an integer.
        mean_square: Mean squared residual. Where time is sharded over devices,
            `residual` is only what one of them holds, and this is the mean over all.
    """

    residual: Array
    merit: Array
    last_merit: Array
    predicted_merit: Array
    iteration: Array
    mean_square: Array | None = None


def see(
    axis: TimeAxis,
    residual: Array,
    entries: Array | int,
    iteration: Array,
    merits: tuple[Array | None, Array, Array],
) -> Seen:
    """Return what a policy may look at, of all devices; no mean that it can take.

    The residual is zero where there is no unknown, `entries` of it are real. The merits
    are this one (`None`: half the sum of squares), the last one and the predicted one.
    """
    merit, last, predicted = merits
    mean_square = None
    if merit is None or axis.is_sharded:
        squares = axis.total(jnp.sum(residual**2))
        mean_square = squares / entries
        if merit is None:
            merit = jnp.where(jnp.isfinite(squares / 2), squares / 2, jnp.inf)
    return Seen(residual, merit, last, predicted, iteration, mean_square)


@runtime_checkable
class NoisePolicy(Protocol):
    """The contract of the module docstring; write your own as a pytree dataclass.

    A policy with `shardable = True` besides may be used with a mesh: see
    `is_shardable` for what that promises.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from dataclasses import dataclass
        >>> @jax.tree_util.register_dataclass
        ... @dataclass(frozen=True)
        ... class Halving:  # from below, half the distance to `limit` each time
        ...     limit: float = 1e4
        ...     can_reject = False
        ...
        ...     def init(self, shape, dtype):
        ...         return jnp.ones((), dtype)
        ...
        ...     def noise(self, state):
        ...         return state
        ...
        ...     def update(self, state, seen):
        ...         return (state + self.limit) / 2, jnp.asarray(True)
        >>> isinstance(Halving(), elk.NoisePolicy)
        True
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.elk(Halving()), history=2,
        ... )
        >>> [round(float(x)) for x in sol.history.noise]
        [5000, 7500]
    """

    @property
    def can_reject(self) -> bool:
        """Whether `update` ever refuses an iterate (static)."""
        ...

    def init(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return the state before the first iteration, for `(n, D)` unknowns."""
        ...

    def noise(self, state: Any) -> Array:
        """Return s^2, broadcastable to `(n, D)`."""
        ...

    def update(self, state: Any, seen: Seen) -> tuple[Any, Array]:
        """Return the next state and whether the iterate is accepted."""
        ...


def is_shardable(policy: NoisePolicy) -> bool:
    """Whether a policy works with time sharded over devices; it says so itself.

    That is: `update` decides by what all devices share (every number of `Seen` but the
    residual), and the state is common to all unknowns or has them as its leading axis.
    """
    return bool(getattr(policy, "shardable", False))


def first_state(
    policy: NoisePolicy | None, shape: tuple[int, ...], dtype: Any, known: Any = None
) -> Any:
    """Return a policy's state before the first iteration, unless it is known."""
    if policy is None or known is not None:
        return known
    return policy.init(shape, dtype)


class Steady:
    """Shared by policies whose state is s^2: keeps it, and accepts everything."""

    shardable = True

    @property
    def can_reject(self) -> bool:
        """Never."""
        return False

    def noise(self, state: Any) -> Array:
        """Return the current s^2."""
        return state

    def update(self, state: Any, seen: Seen) -> tuple[Any, Array]:
        """Accept everything."""
        return state, jnp.asarray(True)


def is_integer(array: Array) -> bool:
    """Say whether an array holds integers (booleans are none)."""
    return jnp.issubdtype(array.dtype, jnp.integer)


def check_positive(name: str, value: Array) -> None:
    """Raise `ValueError` when a concrete array has an entry that is not positive."""
    if is_traced(value):
        return
    numbers = np.asarray(value)
    if not np.all(numbers > 0):
        worst = numbers[~(numbers > 0)].flat[0]
        raise ValueError(
            f"{name} is a variance and must be positive (inf is allowed); got {worst}."
        )


def check_noise(value: ArrayLike, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return s^2 broadcast-ready for `(n, D)`, or say which shapes are meant."""
    array = jnp.asarray(value, dtype)
    try:
        fits = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        n, size = shape
        raise ValueError(
            f"noise has shape {array.shape}; expected a scalar, ({size},) per "
            f"dimension, ({n}, 1) per step or ({n}, {size})."
        )
    return array
