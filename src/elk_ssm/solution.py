"""What a solve returns: states, a status that advises, and what happened on the way."""

from typing import Any, NamedTuple, Protocol, TypeVar

import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import deliberate_nans
from elk_ssm._showing import arrays, as_html, held, known, named, number, show
from elk_ssm._status import Status, concrete, int_status
from elk_ssm._types import Array, PyTree


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

    def __repr__(self) -> str:
        return show(
            "History",
            shape=arrays(self.residual_norm),
            residual_norm=_first_to_last(self.residual_norm),
            step_norm=_first_to_last(self.step_norm),
        )


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
        plan: How it was evaluated and why: `plan.describe()`. None for `sequential`.

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

    @property
    def converged(self) -> Array:
        """Whether it converged, a boolean array of the shape of `status`."""
        return self.status == Status.converged

    def __repr__(self) -> str:
        return show("Solution", **solved(self))

    def _repr_html_(self) -> str:
        return as_html(self)


def solved(result: Any) -> dict[str, Any]:
    """Return what `Solution` and its siblings show of themselves."""
    plan = None if result.plan is None else repr(result.plan.describe())
    failed = known(result.failed_step)
    return {
        "states": arrays(result.states),
        "status": named(result.status, Status),
        "num_iters": number(result.num_iters),
        "residual_norm": number(result.residual_norm),
        "failed_step": None if failed is None or np.all(failed < 0) else str(failed),
        "plan": plan,
    }


def _first_to_last(recorded: Any) -> str:
    """Return the first number that was recorded and the last one."""
    found = known(recorded)
    if found is None:
        return "traced"
    found = found[np.isfinite(found)]
    return f"{found[0]:.2g} to {found[-1]:.2g}" if found.size else "not recorded"


class Smoothed(NamedTuple):
    """A smoothed trajectory.

    Attributes:
        means: The mode, `(T, D)`.
        covariances: Of the Gaussian approximation at the mode, `(T, D, D)`, positive
            definite when converged; semidefinite if the model's are.
        log_likelihood: log p(y) of that approximation (extended for Gaussian emissions,
            Laplace with Gauss-Newton curvature otherwise), `()`.
        log_posterior: log p(z, y) at the mode, `()`: the posterior up to log p(y). Of a
            singular model see `log_prob`.
        status: Value of a `Status`, `()`.
        num_iters: Passes done, Newton's included, `()`.
        step_norm: Largest entry of the last step relative to the states' size, `()`.
        filtered_means: Of the model expanded at the mode, `(T, D)`.
        filtered_covariances: Likewise, `(T, D, D)`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Smoothed._fields[:4]
        ('means', 'covariances', 'log_likelihood', 'log_posterior')
    """

    means: Array
    covariances: Array
    log_likelihood: Array
    log_posterior: Array
    status: Array
    num_iters: Array
    step_norm: Array
    filtered_means: Array
    filtered_covariances: Array

    @property
    def converged(self) -> Array:
        """Whether it converged, boolean, of the shape of `status`."""
        return self.status == Status.converged

    def __repr__(self) -> str:
        return held(
            self,
            "means",
            status=named(self.status, Status),
            num_iters=number(self.num_iters),
            step_norm=number(self.step_norm),
            log_likelihood=number(self.log_likelihood),
        )


class _Solved(Protocol):
    """What all results of a solve have in common."""

    @property
    def status(self) -> Array: ...


_S = TypeVar("_S")


def raise_if_failed(solution: _S) -> _S:
    """Raise `RuntimeError` unless every solve in `solution` converged.

    Call it outside `jit`, where the status is a number. A batched solution (from
    `vmap`) raises when any element failed, and the message names the elements.

    Args:
        solution: A `Solution`, `Smoothed`, `Sample`, `Chains`, `NoiseSweep` or `Fit`
            (of which the smoothed states count), batched or not.

    Returns:
        The solution itself, so that the call can be chained.

    Raises:
        RuntimeError: Some solve did not converge. The message says which, how, and
            what to try.
        TypeError: Called on traced values, inside `jit`, `vmap` or `grad`.
        jax.errors.JaxRuntimeError: The computation failed, for want of memory mostly;
            it says what takes less.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(lambda x, u: 0.5 * x + u, jnp.zeros(2), jnp.ones((9, 2)))
        >>> int(elk.raise_if_failed(sol).status)
        0
    """
    solve: Any = getattr(solution, "smoothed", solution)
    if not hasattr(solve, "status"):
        raise TypeError(
            "raise_if_failed takes a result with a status, such as a Solution; got "
            f"{type(solution).__name__}."
        )
    status = concrete(solve.status)
    failed = np.argwhere(status != Status.converged)
    if failed.size == 0 and not (status != Status.converged).any():
        return solution
    raise RuntimeError(_failure_report(solve, status, failed))


def _failure_report(solution: _Solved, status: np.ndarray, failed: np.ndarray) -> str:
    lines = []
    for member in Status:
        where = [tuple(map(int, index)) for index in failed if status[*index] == member]
        if not where:
            continue
        shown = ", ".join(str(i[0] if len(i) == 1 else i) for i in where[:8])
        more = f" and {len(where) - 8} more" if len(where) > 8 else ""
        elements = getattr(solution, "_elements", "batch elements")
        place = f" in {elements} {shown}{more}" if status.ndim else ""
        said = _advice(member, solution, where[0]) + _detail(solution, where)
        lines.append(f"{member.name}{place}: {said}")
    return "The solve did not converge.\n" + "\n".join(lines)


def _detail(solution: _Solved, where: list[tuple[int, ...]]) -> str:
    """Return the numbers of the first failure, as far as the result has them."""
    said = []
    for field, name in _DETAILS.items():
        found = getattr(solution, field, None)
        if found is None:
            continue
        value = np.asarray(found)[where[0]]
        if field != "failed_step" or value >= 0:
            digits = ".3g" if value.dtype.kind == "f" else "d"
            said.append(f"{name} {value.item():{digits}}")
    return f" ({', '.join(said)})" if said else ""


_DETAILS = {"num_iters": "iterations", "residual_norm": "residual"}
_DETAILS |= {"step_norm": "step", "failed_step": "failed_step"}


def _advice(status: Status, solution: Any, first: tuple[int, ...]) -> str:
    """Return what a status means, for the method that ended with it."""
    plan = getattr(solution, "plan", None)
    if status != Status.precision_limit or plan is None:
        return status.message
    if np.asarray(plan.without_jacobian)[first]:
        return (
            "The residual is at the rounding floor, but a method without Jacobians "
            "cannot tell by its steps whether the error is below the tolerance. Try "
            "elk.deer(), elk.auto(), float64 or a larger tol."
        )
    return status.message


__all__ = [
    "EMPTY",
    "History",
    "Smoothed",
    "Solution",
    "Status",
    "int_status",
    "raise_if_failed",
    "solved",
    "without_empty",
]
