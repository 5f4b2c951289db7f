"""The surrogate model of a recurrence around an iterate, as a task of its own."""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._options import bind_method
from elk_ssm._recurrence import Recurrence, canonicalize
from elk_ssm._types import Array, ArrayLike, Dynamics, PyTree
from elk_ssm.kalman.backend import Backend
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import cut, linearize_nodes
from elk_ssm.surrogate.noise import as_policy, check_noise
from elk_ssm.surrogate.surrogate import Surrogate


def linearize(
    f: Dynamics,
    states: PyTree,
    inputs: PyTree = None,
    *,
    initial_state: PyTree,
    method: Method | None = None,
    noise: ArrayLike | None = None,
    process_variance: ArrayLike | str = "mean",
    backend: Backend = "auto",
) -> Surrogate:
    """Return the linear-Gaussian surrogate of a recurrence around an iterate.

    Args:
        f: The recurrence, as for `evaluate`.
        states: The iterate y: the state with a leading time axis of length T.
        inputs: As for `evaluate`.
        initial_state: x_0, known exactly.
        method: Its linearisation and, unless `noise` is given, its noise are used.
        noise: s^2 > 0 in units of the process variance, a scalar, `(D,)`, `(T, 1)` or
            `(T, D)`; `inf` observes nothing. Default is the method's, or `inf`.
        process_variance: q > 0, or `"mean"` for the mean squared residual, or
            `"per_step"` for the mean squared residual of every step.
        backend: Which scans the surrogate's filter and smoother run.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.zeros((9, 2))
        >>> model = elk.linearize(
        ...     lambda x, u: 0.5 * x + u, y, y + 1, initial_state=jnp.zeros(2), noise=1.0
        ... )
        >>> model.smooth().means.shape
        (9, 2)
    """
    leaves = jax.tree.leaves(states)
    length = None if jax.tree.leaves(inputs) or not leaves else len(leaves[0])
    recurrence = canonicalize(f, initial_state, inputs, length)
    method = bind_method(method, recurrence)
    iterate = recurrence.flatten_states(states, "states")
    values, operator = _linearize_all(recurrence, method, iterate)
    if noise is None:
        start = None
        if method.noise is not None:
            start = method.noise.init(iterate.shape, iterate.dtype)
        level = jnp.inf if method.noise is None else method.noise.noise(start)
    else:
        as_policy(noise)
        level = noise
    level = check_noise(level, iterate.shape, iterate.dtype)
    return Surrogate(
        values,
        operator,
        iterate,
        recurrence.initial,
        jnp.broadcast_to(level, iterate.shape),
        _process_variance(process_variance, iterate - values),
        recurrence.layout,
        backend,
    )


def _linearize_all(recurrence: Recurrence, method: Method, iterate: Array) -> Any:
    blocks = cut(recurrence.initial, recurrence.inputs, recurrence.length, 1)
    return linearize_nodes(
        method.linearization, recurrence.step, blocks, iterate, jnp.asarray(0)
    )


def _process_variance(choice: ArrayLike | str, residual: Array) -> Array:
    if isinstance(choice, str):
        if choice == "mean":
            return jnp.mean(residual**2)
        if choice == "per_step":
            return jnp.mean(residual**2, axis=1)
        raise ValueError(
            'process_variance must be a number, "mean" or "per_step"; got '
            f"{choice!r}."
        )
    return jnp.asarray(choice, residual.dtype)
