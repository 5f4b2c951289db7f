r"""Derivatives of a trajectory: differentiate the equation, not the loop.

The trajectory satisfies x_t = f(c, x_{t-1}, u_t). Its tangent solves the linear system

    d_t - J_t d_{t-1} = g_t,      J_t = df/dx at (x_{t-1}, u_t),      d_0 = 0,
    g_t = df/dc . c' + df/du . u_t'  (+ J_1 x_0' for t = 1),

with the true Jacobian, whichever method found x. `custom_linear_solve` makes the solve
differentiable to any order, and transposes it into the adjoint recursion

    w_t = J_{t+1}^T w_{t+1} + v_t,      t = T, ..., 1,      w_{T+1} = 0.

Nothing of size T x D x D is formed unless the parallel dense adjoint is asked for: the
recursions push one tangent or cotangent through f, step by step.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.kalman.affine import affine_scan
from elk_ssm.kalman.backend import Backend
from elk_ssm.kalman.structure import Dense
from elk_ssm.solve.nodes import starts

Adjoint: TypeAlias = Literal["auto", "sequential", "parallel"]
_CHUNK = 512


def trajectory_tangent(
    function: Callable[[list, Array, PyTree], Array],
    adjoint: Adjoint,
    primals: tuple[list, Array, PyTree],
    tangents: tuple[list, Array, PyTree],
    states: Array,
) -> Array:
    """Tangent of the states `(T, D)` along tangents of (consts, x_0, inputs).

    Args:
        function: The flat step `function(consts, state, input)`.
        adjoint: Which recursion solves the linear system.
        primals: Constants, initial state and inputs.
        tangents: Their tangents (`float0` for what is not floating point).
        states: The trajectory at the primals.
    """
    consts, initial, inputs = primals

    def one_step(consts: list, initial: Array, inputs: PyTree) -> Array:
        before = starts(initial, states)
        return _over_time(lambda x, u: function(consts, x, u), before, inputs)

    source = jax.jvp(one_step, primals, tangents)[1]
    before = starts(initial, states)

    def step_at(x: Array, u: PyTree) -> Array:
        return function(consts, x, u)

    return _solve(step_at, before, inputs, source, adjoint)


def _over_time(step: Callable, before: Array, inputs: PyTree) -> Array:
    """Map f over time in chunks, recomputing it when differentiated in reverse."""
    step = jax.checkpoint(step)
    if before.shape[0] <= _CHUNK:
        return jax.vmap(step)(before, inputs)
    return jax.lax.map(lambda xu: step(*xu), (before, inputs), batch_size=_CHUNK)


def _solve(
    step: Callable, before: Array, inputs: PyTree, source: Array, adjoint: Adjoint
) -> Array:
    def push(x: Array, u: PyTree, tangent: Array) -> Array:
        return jax.jvp(lambda x: step(x, u), (x,), (tangent,))[1]

    def system(d: Array) -> Array:
        shifted = starts(jnp.zeros_like(d[0]), d)
        pushed = jax.jvp(lambda x: _over_time(step, x, inputs), (before,), (shifted,))
        return d - pushed[1]

    def forward(_: Any, source: Array) -> Array:
        if adjoint == "parallel":
            return _dense(step, before, inputs, source, reverse=False)

        def body(d: Array, entry: tuple) -> tuple[Array, Array]:
            x, u, g = entry
            d = push(x, u, d) + g
            return d, d

        zero = jnp.zeros_like(source[0])
        return jax.lax.scan(body, zero, (before, inputs, source))[1]

    def backward(_: Any, source: Array) -> Array:
        if adjoint == "parallel":
            return _dense(step, before, inputs, source, reverse=True)

        def body(pulled: Array, entry: tuple) -> tuple[Array, Array]:
            x, u, v = entry
            w = pulled + v
            return jax.vjp(lambda x: step(x, u), x)[1](w)[0], w

        zero = jnp.zeros_like(source[0])
        return jax.lax.scan(body, zero, (before, inputs, source), reverse=True)[1]

    return jax.lax.custom_linear_solve(system, source, forward, backward)


def _dense(
    step: Callable, before: Array, inputs: PyTree, source: Array, *, reverse: bool
) -> Array:
    jacobians = jax.vmap(jax.jacfwd(step))(before, inputs)
    backend: Backend = "auto"
    return affine_scan(Dense(jacobians), source, reverse=reverse, backend=backend)
