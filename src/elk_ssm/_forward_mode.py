"""Recurrences with vector-Jacobian rules, made fit for forward mode.

An iteration needs a Jacobian of f, or a stand-in, and `jax.custom_vjp` has no forward
mode. The rule is dropped and the function below it differentiated: its derivative is
that of the values, which the iteration solves for, while a rule may say anything (clip
a cotangent, pretend that a spike is smooth). Where that function cannot be
differentiated, a kernel or a callback, the Jacobian is taken row by row from the rule.
Derivatives of the trajectory do not come from here; see `solve/replay.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction
from elk_ssm._jax import (
    JVP_RULE,
    VJP_RULE,
    ClosedJaxpr,
    Jaxpr,
    closed_call_p,
    run_program,
)
from elk_ssm._types import Array, PyTree


def forward_mode(
    function: HoistedFunction,
) -> Callable[[list, Array, PyTree], Array]:
    """Return a step of the same values that can be pushed through `jax.jvp`.

    Args:
        function: The flat step `function(consts, state, input)`.
    """
    if not function.has_vjp_rules:
        return function
    plain = _without_vjp_rules(function.jaxpr)

    def step(consts: list, state: Array, inputs: PyTree) -> Array:
        return run_program(plain, consts, state, *jax.tree.leaves(inputs))[0]

    def either(consts: list, state: Array, inputs: PyTree) -> Array:
        try:
            jax.eval_shape(_pushed(step), consts, state, inputs)
        except Exception:  # whatever a primitive without a derivative raises
            return _by_rows(function, consts, state, inputs)
        return step(consts, state, inputs)

    return either


def _pushed(step: Callable) -> Callable:
    def pushed(consts: list, state: Array, inputs: PyTree) -> tuple[Array, Array]:
        return jax.jvp(lambda x: step(consts, x, inputs), (state,), (state,))

    return pushed


def _by_rows(function: Callable, consts: list, state: Array, inputs: PyTree) -> Array:
    """Evaluate the step; its tangent map is the Jacobian that the rules give."""

    @jax.custom_jvp
    def step(state: Array) -> Array:
        return function(consts, state, inputs)

    @step.defjvp
    def push(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        value, pull = jax.vjp(step.fun, *primals)
        (rows,) = jax.vmap(pull)(jnp.eye(value.shape[0], dtype=value.dtype))
        return value, jnp.sum(rows * tangents[0], axis=-1)

    return step(state)


def _without_vjp_rules(jaxpr: Any) -> Any:
    """Call the function below every vector-Jacobian rule directly."""
    return jaxpr.replace(eqns=[_plain(equation) for equation in jaxpr.eqns])


def _plain(equation: Any) -> Any:
    params = equation.params
    if VJP_RULE in params:
        call = {"call_jaxpr": _plain_value(params["call_jaxpr"])}
        return equation.replace(primitive=closed_call_p, params=call)
    if JVP_RULE in params:
        return equation  # its rule is what counts, and may have what it likes
    return equation.replace(params={k: _plain_value(v) for k, v in params.items()})


def _plain_value(value: Any) -> Any:
    """Look for programs in a parameter of an equation."""
    if isinstance(value, ClosedJaxpr):
        return value.replace(jaxpr=_without_vjp_rules(value.jaxpr))
    if isinstance(value, Jaxpr):
        return _without_vjp_rules(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_plain_value, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_plain_value, value))
    return value
