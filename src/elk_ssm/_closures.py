"""Functions as data: hoist what a function closes over, and recognise it again.

A user writes `lambda h, u: cell(params, h, u)`, a new function object in every call.
`hoist` traces it once, turns every captured array (tracers too) into an explicit
argument, and wraps the remaining program in an object that compares by structure. Two
traces of the same code are then equal, so a compiled solver is found again although
the lambda is new, and a parameter that was changed in place is seen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from elk_ssm._types import PyTree


class HoistedFunction:
    """A traced function without captured arrays; equal when the program is equal.

    Call it as `hoisted(consts, *args)`, where `args` have the structure, shapes and
    dtypes of the example arguments.
    """

    def __init__(self, closed: Any, out_tree: Any):
        self.jaxpr = closed.jaxpr
        self.out_tree = out_tree
        self.key = (_program(closed), out_tree)

    def __call__(self, consts: list[Any], *args: PyTree) -> PyTree:
        """Evaluate the function at `args`."""
        flat = jax.core.eval_jaxpr(self.jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(self.out_tree, flat)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HoistedFunction) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def hoist(
    function: Callable[..., PyTree], *example: PyTree
) -> tuple[HoistedFunction, list[Any]]:
    """Trace `function` at `example` (arrays or shape structs).

    Returns:
        The hoisted function and the list of what it closed over, in the order in which
        the hoisted function takes it.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    # TypedNdArray and scalar consts become arrays, so that they cross a jit boundary.
    consts = [c if isinstance(c, jax.Array) else jnp.asarray(c) for c in closed.consts]
    return HoistedFunction(closed, jax.tree.structure(shapes)), consts


def _program(closed: Any) -> tuple[Any, ...]:
    """Return a hashable value that identifies a function and its derivatives.

    A custom derivative rule is a new Python object in every trace, so it is identified
    by what it does: the jaxpr of the function's tangent map.
    """
    body = _signature(closed.jaxpr)
    if not _has_custom_rule(closed.jaxpr):
        return body
    return body, _signature(_tangent_jaxpr(closed))


def _has_custom_rule(jaxpr: Any) -> bool:
    return any(
        "jvp_jaxpr_fun" in equation.params
        or any(_has_custom_rule(sub) for sub in core.jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )


def _tangent_jaxpr(closed: Any) -> Any:
    """Trace the tangent map with respect to every floating-point argument."""
    atoms = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    floating = [jnp.issubdtype(v.aval.dtype, jnp.floating) for v in atoms]
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in atoms]
    count = len(closed.jaxpr.constvars)

    def tangent(arguments: list, directions: list) -> Any:
        def of_floats(floats: list) -> list:
            values = iter(floats)
            full = [next(values) if f else x for f, x in zip(floating, arguments)]
            return jax.core.eval_jaxpr(closed.jaxpr, full[:count], *full[count:])

        floats = [x for f, x in zip(floating, arguments) if f]
        return jax.jvp(of_floats, (floats,), (directions,))

    directions = [s for f, s in zip(floating, shapes) if f]
    return jax.make_jaxpr(tangent)(shapes, directions).jaxpr


def _signature(jaxpr: Any) -> tuple[Any, ...]:
    """Return a hashable value that two jaxprs share only if they compute the same.

    Custom derivative rules are left to `_program`.
    """
    names: dict[Any, int] = {}

    def name(atom: Any) -> tuple[Any, ...]:
        if isinstance(atom, core.Literal):
            return ("literal", str(atom.aval), _freeze(np.asarray(atom.val)))
        return ("var", names.setdefault(atom, len(names)), str(atom.aval))

    heads = tuple(name(v) for v in (*jaxpr.constvars, *jaxpr.invars))
    body = tuple(
        (
            eqn.primitive,
            tuple(name(v) for v in eqn.invars),
            tuple(name(v) for v in eqn.outvars),
            _freeze(
                {k: v for k, v in eqn.params.items() if k != "jvp_jaxpr_fun"},
            ),
        )
        for eqn in jaxpr.eqns
    )
    return heads, body, tuple(name(v) for v in jaxpr.outvars)


def _freeze(value: Any) -> Any:
    """Turn an equation's parameter into something hashable and faithful."""
    if isinstance(value, core.ClosedJaxpr):
        return ("closed", _signature(value.jaxpr), _freeze(value.consts))
    if isinstance(value, core.Jaxpr):
        return ("jaxpr", _signature(value))
    if isinstance(value, dict):
        return tuple((key, _freeze(value[key])) for key in sorted(value))
    if isinstance(value, list | tuple):
        return (type(value), tuple(_freeze(item) for item in value))
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.dtype.str, value.tobytes())
    try:
        hash(value)
    except TypeError:
        # Equal only to itself: a missed cache hit costs a compilation, a false one
        # would cost the right answer.
        return ("unique", _Identity(value))
    return value


class _Identity:
    """Compares by the identity of what it holds, and keeps that alive."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
