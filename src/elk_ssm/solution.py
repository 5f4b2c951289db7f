"""What a solve returns: states, a status that advises, and what happened on the way."""

import enum
from typing import Any, NamedTuple, Protocol, TypeVar

import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import deliberate_nans
from elk_ssm._types import Array, PyTree


class Status(enum.IntEnum):
    """How a solve ended. The members are integers, so they live inside `jit`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Status(1).name
        'max_iters_reached'
        >>> "max_iters" in elk.Status(1).message
        True
    """

    converged = 0
    max_iters_reached = 1
    nonfinite = 2
    precision_limit = 3
    saddle = 4
    unbounded = 5

    @property
    def message(self) -> str:
        """What the status means and what to try."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.converged: (
        "Residuals, undamped steps and the error that they add up to are below "
        "tolerance, or every state is provably exact."
    ),
    Status.max_iters_reached: (
        "The iteration was cut off before it converged. The states are the last "
        "iterate. Raise max_iters, or try another method or noise."
    ),
    Status.nonfinite: (
        "f itself returned a non-finite value on the true trajectory, at the step "
        "given by failed_step; the states after it repeat the last finite one. No "
        "method can go past it; check f, its parameters and "
        "the inputs there."
    ),
    Status.precision_limit: (
        "The residual is at the rounding floor but the trajectory amplifies rounding "
        "by more than the tolerance allows, as chaotic recurrences do. The states are "
        "a trajectory of f up to rounding; step_norm estimates the error. Use float64 "
        "or a larger tol."
    ),
    Status.saddle: (
        "The log posterior has no slope at the states but bends upwards along some "
        "direction, and no step along it raised it by more than rounding: they are no "
        "mode. Try another guess, or float64."
    ),
    Status.unbounded: (
        "The log posterior grows without bound, so there is no mode. The states are "
        "the last iterate. Look for a log density that grows faster than the Gaussian "
        "terms fall, or for a covariance that a state can drive to zero."
    ),
}


class History(NamedTuple):
    """What each of the first n iterations saw; NaN past the last one.

    Attributes:
        residual_norm: Largest |x_t - f(x_{t-1}, u_t)| of the iterate, shape `(n,)`.
        step_norm: Largest entry of the undamped step from it, shape `(n,)`.
        noise: Geometric mean of the observation noise s^2 used, shape `(n,)`; `inf`
            for an undamped iteration.
        exact: How many of the first unknowns (states, or ends of blocks) are provably
            exact after the update, shape `(n,)`.
        set_back: How many unknowns did not take the update, because the gate
            rejected it, it was not finite, or the undamped first updates were given
            up. Shape `(n,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.deer(), history=20,
        ... )
        >>> bool(jnp.isnan(sol.history.residual_norm[int(sol.num_iters)]))
        True
        >>> sol.history.exact[:2].tolist()
        [1.0, 2.0]
    """

    residual_norm: Array
    step_norm: Array
    noise: Array
    exact: Array
    set_back: Array


EMPTY = float("-inf")
"""What stands for no record while a program runs: JAX may be set to refuse NaN."""


def without_empty(history: History | None) -> History | None:
    """Return a history in which what was not recorded is NaN."""
    if history is None:
        return None
    with deliberate_nans():
        return History(*(jnp.where(x == EMPTY, jnp.nan, x) for x in history))


class Solution(NamedTuple):
    """The result of `evaluate` and `sequential`.

    Attributes:
        states: States at t = 1, ..., T: the pytree of the initial state with a leading
            time axis on every leaf.
        status: Value of a `Status`, integer array of shape `()`.
        num_iters: Iterations done, integer array of shape `()`.
        residual_norm: Largest |x_t - f(x_{t-1}, u_t)| that the last iteration saw, at
            the point of linearisation, before its update. Shape `()`.
        step_norm: Largest entry of the last undamped step, an estimate of the error
            before that step. Shape `()`.
        failed_step: Position in time (0 for the first step) at which f returned a
            non-finite value on the true trajectory, or -1. Shape `()`.
        history: `History` of the first iterations, or None when not asked for.
        plan: What `auto` chose and why (`plan.describe()`), None for other methods.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.deer(),
        ... )
        >>> sol.states.shape, int(sol.failed_step)
        ((9, 2), -1)
    """

    states: PyTree
    status: Array
    num_iters: Array
    residual_norm: Array
    step_norm: Array
    failed_step: Array
    history: History | None = None
    plan: Any = None


class _Solved(Protocol):
    """What `Solution` and `Chains` have in common."""

    @property
    def status(self) -> Array: ...

    @property
    def num_iters(self) -> Array: ...

    @property
    def residual_norm(self) -> Array: ...

    @property
    def failed_step(self) -> Array: ...


_S = TypeVar("_S", bound=_Solved)


def raise_if_failed(solution: _S) -> _S:
    """Raise `RuntimeError` unless every solve in `solution` converged.

    Call it outside `jit`, where the status is a number. A batched solution (from
    `vmap`) raises when any element failed, and the message names the elements.

    Args:
        solution: A `Solution`, batched or not, or `Chains`.

    Returns:
        The solution itself, so that the call can be chained.

    Raises:
        RuntimeError: Some solve did not converge. The message says which, how, and
            what to try.
        TypeError: Called on traced values, inside `jit`, `vmap` or `grad`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(lambda x, u: 0.5 * x + u, jnp.zeros(2), jnp.ones((9, 2)))
        >>> int(elk.raise_if_failed(sol).status)
        0
    """
    try:
        status = np.asarray(solution.status)
    except Exception as error:  # jax raises its own tracer errors, by version
        raise TypeError(
            "raise_if_failed needs concrete values; call it outside jit, vmap and "
            "grad. Inside, branch on solution.status == elk.Status.converged."
        ) from error
    failed = np.argwhere(status != Status.converged)
    if failed.size == 0 and not (status != Status.converged).any():
        return solution
    raise RuntimeError(_failure_report(solution, status, failed))


def _failure_report(solution: _Solved, status: np.ndarray, failed: np.ndarray) -> str:
    lines = []
    for member in Status:
        where = [tuple(map(int, index)) for index in failed if status[*index] == member]
        if not where:
            continue
        shown = ", ".join(str(i[0] if len(i) == 1 else i) for i in where[:8])
        more = f" and {len(where) - 8} more" if len(where) > 8 else ""
        place = f" in batch elements {shown}{more}" if status.ndim else ""
        lines.append(
            f"{member.name}{place}: {member.message}{_detail(solution, where)}"
        )
    return "The solve did not converge.\n" + "\n".join(lines)


def _detail(solution: _Solved, where: list[tuple[int, ...]]) -> str:
    first = where[0]
    iters, residual, step = (
        np.asarray(x)[first]
        for x in (solution.num_iters, solution.residual_norm, solution.failed_step)
    )
    text = f" (iterations {int(iters)}, residual {float(residual):.3g}"
    return text + (f", failed_step {int(step)})" if int(step) >= 0 else ")")


def int_status(status: Status) -> Array:
    """A status as the int32 array that solutions carry."""
    return jnp.asarray(int(status), jnp.int32)
