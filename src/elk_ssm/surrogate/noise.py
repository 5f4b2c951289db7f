r"""The noise policies that come with the package, all on the contract of `policy`.

Constant                s^2, a number or an array
PerStep                 one s^2 for every time step
Annealed                s^2 grows by a factor each iteration
ResidualProportional    s^2 follows the size of the residual
GainRatio               s^2 by the achieved and predicted reduction; can refuse
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._types import Array, ArrayLike
from elk_ssm._values import VARIANCE, Value, check_number, register_part
from elk_ssm.surrogate.policy import (
    NoisePolicy,
    Seen,
    Steady,
    check_noise,
    is_integer,
)


@register_part
@dataclass(frozen=True, eq=False)
class Constant(Value, Steady):
    """The same s^2 in every iteration.

    Attributes:
        value: s^2 > 0: a scalar, `(D,)` per dimension, `(T, 1)` per step or `(T, D)`;
            `inf` is allowed anywhere. With blocks, T is the number of blocks.

    Raises:
        TypeError: A value that is no number.
        ValueError: A value that is not positive. When used: a shape that does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> elk.Constant(100.0).init((9, 2), jnp.float32).item()
        100.0
    """

    value: ArrayLike

    def __post_init__(self) -> None:
        check_number("noise", self.value, VARIANCE)

    def init(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Check the shape; there is no state but the broadcast value."""
        return check_noise(self.value, shape, dtype)


@register_part
@dataclass(frozen=True, eq=False)
class PerStep(Value, Steady):
    """One s^2 for each unknown, the same in every iteration.

    Attributes:
        value: s^2 > 0, shape `(T,)` (with blocks, `(T // C,)`); `inf` is allowed.

    Raises: As `Constant`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> elk.PerStep(jnp.full(9, 50.0)).init((9, 2), jnp.float32).shape
        (9, 1)
    """

    value: ArrayLike

    def __post_init__(self) -> None:
        check_number("noise", self.value, VARIANCE)

    def init(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Check the length; there is no state but the value."""
        value = jnp.asarray(self.value, dtype)
        if value.shape != shape[:1]:
            raise ValueError(
                f"PerStep noise needs one value for each of {shape[0]} unknowns; got "
                f"shape {value.shape}."
            )
        return value[:, None]


@register_part
@dataclass(frozen=True, eq=False)
class Annealed(Value, Steady):
    """s^2 grows by a factor in every iteration, towards the undamped method.

    Attributes:
        initial: s^2 > 0 of the first iteration.
        growth: Factor >= 1 from one iteration to the next.
        maximum: Largest s^2; `inf` ends undamped.

    Raises:
        TypeError: A field that is no number.
        ValueError: A variance not positive, or growth below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.elk(elk.Annealed(1.0, growth=4.0)), history=3,
        ... )
        >>> [round(float(x)) for x in sol.history.noise]
        [1, 4, 16]
    """

    initial: ArrayLike = 1.0
    growth: ArrayLike = 4.0
    maximum: ArrayLike = jnp.inf

    def __post_init__(self) -> None:
        check_number("initial", self.initial, VARIANCE)
        check_number("growth", self.growth, "must be a factor of at least 1", least=1)
        check_number("maximum", self.maximum, VARIANCE)

    def init(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Start at `initial`."""
        return jnp.asarray(self.initial, dtype)

    def update(self, state: Any, seen: Seen) -> tuple[Any, Array]:
        """Grow, from the second iteration on."""
        grown = jnp.minimum(state * self.growth, self.maximum).astype(state.dtype)
        return jnp.where(seen.iteration > 0, grown, state), jnp.asarray(True)


@register_part
@dataclass(frozen=True, eq=False)
class ResidualProportional(Value, Steady):
    r"""Damping 1 / s^2 in proportion to the root-mean-square residual.

    The rule lambda = c ||r|| keeps the quadratic convergence of Newton's method
    (Fan & Yuan 2005, Computing 74, 23-39).

    Attributes:
        coefficient: c > 0; s^2 = 1 / (c rms(r)), `inf` at a zero residual.

    Raises:
        TypeError: A coefficient that is no number.
        ValueError: A coefficient that is not positive.

    Example:
        >>> import elk_ssm as elk
        >>> elk.elk(elk.ResidualProportional(0.1)).noise.coefficient
        0.1
    """

    coefficient: ArrayLike = 1e-2

    def __post_init__(self) -> None:
        check_number("coefficient", self.coefficient, "must be a positive number")

    def init(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Start undamped; the first residual replaces this state."""
        return jnp.asarray(jnp.inf, dtype)

    def update(self, state: Any, seen: Seen) -> tuple[Any, Array]:
        """Take s^2 from the residual; a non-finite one damps as the largest float."""
        mean_square = seen.mean_square
        if mean_square is None:
            mean_square = jnp.mean(seen.residual**2)
        size = jnp.sqrt(mean_square)
        huge = jnp.finfo(size.dtype).max ** 0.5
        damping = self.coefficient * jnp.where(jnp.isfinite(size), size, huge)
        return (1 / damping).astype(state.dtype), jnp.asarray(True)


@register_part
@dataclass(frozen=True, eq=False)
class GainRatio(Value, Steady):
    """Levenberg-Marquardt's gain-ratio rule, with rejection.

    The ratio of the achieved to the predicted decrease of the merit (half the sum of
    squared residuals) decides: below `reject` the iterate is refused and s^2 shrinks,
    above `good` s^2 grows (Nocedal & Wright 2006, algorithm 4.1).

    Attributes:
        initial: s^2 > 0 of the first iteration.
        grow: Factor > 1 after a good step.
        shrink: Factor < 1 after a refused or poor one.
        good: Ratio above which s^2 grows.
        poor: Ratio below which s^2 shrinks.
        reject: Ratio below which the iterate is refused.
        minimum: Smallest s^2; an iterate is accepted there whatever its merit.

    Raises:
        TypeError: A field that is no number.
        ValueError: A variance or factor that is not positive.

    Example:
        >>> import elk_ssm as elk
        >>> elk.GainRatio(initial=1e2).can_reject
        True
    """

    initial: ArrayLike = 1.0
    grow: ArrayLike = 8.0
    shrink: ArrayLike = 0.25
    good: ArrayLike = 0.75
    poor: ArrayLike = 0.25
    reject: ArrayLike = 1e-4
    minimum: ArrayLike = 1e-6

    def __post_init__(self) -> None:
        for name in ("initial", "grow", "shrink", "minimum"):
            check_number(name, getattr(self, name), "must be positive")

    @property
    def can_reject(self) -> bool:
        """Yes."""
        return True

    def init(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Start at `initial`."""
        return jnp.asarray(self.initial, dtype)

    def update(self, state: Any, seen: Seen) -> tuple[Any, Array]:
        """Compare achieved with predicted decrease."""
        first = jnp.isinf(seen.last_merit)
        achieved = seen.last_merit - seen.merit
        predicted = seen.last_merit - seen.predicted_merit
        # Comparisons instead of a quotient: right for a zero or infinite prediction.
        good = achieved >= self.good * predicted
        poor = ~(achieved >= self.poor * predicted)
        at_minimum = state <= self.minimum
        accept = first | at_minimum | (achieved > self.reject * predicted)
        factor = jnp.where(poor, self.shrink, jnp.where(good, self.grow, 1.0))
        moved = jnp.maximum(state * factor, self.minimum)
        noise = jnp.where(first, state, moved).astype(state.dtype)
        return noise, accept


def as_policy(noise: "ArrayLike | NoisePolicy") -> NoisePolicy | None:
    """Wrap a number or an array in `Constant`; pass a policy through.

    Noise that is known to be infinite throughout is no damping, so None comes back, and
    the program is the undamped one to the last bit. A traced infinity gives the same
    steps, but in another program, whose compiler may round f differently.

    Raises:
        TypeError: `noise` is neither a number, an array nor a policy.
        ValueError: A concrete noise is NaN, zero or negative.
    """
    if isinstance(noise, type):
        raise TypeError(
            f"noise must be an instance of a policy, such as {noise.__name__}(); got "
            "the class itself."
        )
    if isinstance(noise, NoisePolicy) and not isinstance(noise, jax.Array | np.ndarray):
        return noise
    if isinstance(noise, str) or noise is None:
        raise TypeError(
            f"noise must be a number, an array or a noise policy; got {noise!r}."
        )
    try:
        array = jnp.asarray(noise)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "noise must be a number, an array or a noise policy; "
            f"got {type(noise).__name__}."
        ) from error
    if not (jnp.issubdtype(array.dtype, jnp.floating) or is_integer(array)):
        raise TypeError(f"noise must be real; got {array.dtype.name}.")
    policy = Constant(array)
    no_damping = not is_traced(array) and np.all(np.isinf(array))
    return None if no_damping else policy


def unknowns_apart(
    policy: NoisePolicy, shape: tuple[int, int], dtype: Any
) -> tuple[NoisePolicy, Any, Array | None]:
    """Make a policy's first state, and say what of it belongs to single unknowns.

    Args:
        policy: A policy of this module.
        shape: `(n, D)`, the unknowns of all devices.
        dtype: Of the unknowns.

    Returns:
        The policy without the state; the state where it is common to all unknowns, or
        None; and where it is not, the state with leading axis n, or None.
    """
    state = policy.init(shape, dtype)
    if isinstance(policy, Constant | PerStep):
        policy = replace(policy, value=jnp.ones((), dtype))
    if jnp.ndim(state) < 2:
        return policy, state, None
    if state.shape[0] == 1 < shape[0]:
        return policy, state[0], None
    return policy, None, state
