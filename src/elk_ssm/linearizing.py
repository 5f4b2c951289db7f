"""The surrogate model of a recurrence around an iterate, as a task of its own."""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._options import concrete_method
from elk_ssm._recurrence import Recurrence, canonicalize
from elk_ssm._types import Array, ArrayLike, Dynamics, PyTree
from elk_ssm.parallel.backend import Backend, check_backend
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import cut, linearize_nodes
from elk_ssm.solve.problem import Problem
from elk_ssm.surrogate.noise import as_policy
from elk_ssm.surrogate.policy import NoisePolicy, check_positive
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
        ...     lambda x, u: 0.5 * x + u, y, y + 1, initial_state=y[0], noise=1.0
        ... )
        >>> model.smooth().means.shape
        (9, 2)
    """
    check_backend(backend)
    leaves = jax.tree.leaves(states)
    length = None if jax.tree.leaves(inputs) or not leaves else len(leaves[0])
    recurrence = canonicalize(f, initial_state, inputs, length)
    chosen = concrete_method(method, recurrence, "linearize")
    iterate = recurrence.flatten_states(states, "states")
    values, operator = _linearize_all(recurrence, chosen, iterate)
    level = _noise_level(chosen, noise, iterate)
    return Surrogate(
        values,
        operator,
        iterate,
        recurrence.initial,
        level,
        _process_variance(process_variance, iterate - values),
        recurrence.layout,
        backend,
    )


def _noise_level(method: Method, noise: ArrayLike | None, iterate: Array) -> Array:
    """Return s^2 as `(T, D)`: the given one, the method's first, or inf."""
    if noise is not None:
        policy: NoisePolicy | None = as_policy(noise)
    else:
        policy = method.noise
    if policy is None:
        return jnp.full_like(iterate, jnp.inf)
    level = policy.noise(policy.init(iterate.shape, iterate.dtype))
    return jnp.broadcast_to(level, iterate.shape)


def _linearize_all(recurrence: Recurrence, method: Method, iterate: Array) -> Any:
    problem = Problem(recurrence.function, *recurrence.primals, recurrence.length)
    blocks = cut(problem, 1)
    return linearize_nodes(method.linearization, blocks, iterate, jnp.asarray(0))


def _process_variance(choice: ArrayLike | str, residual: Array) -> Array:
    if isinstance(choice, str):
        if choice == "mean":
            return jnp.mean(residual**2)
        if choice == "per_step":
            return jnp.mean(residual**2, axis=1)
        raise ValueError(
            f'process_variance must be a number, "mean" or "per_step"; got {choice!r}.'
        )
    check_positive("process_variance", jnp.asarray(choice))
    return jnp.asarray(choice, residual.dtype)
