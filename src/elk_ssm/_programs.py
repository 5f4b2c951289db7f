"""Traced programs as values: equal only if they and their derivatives are the same.

A program is its equations with variables numbered in order. A custom derivative rule is
a new Python object in every trace, so it is identified by what it does: the program of
the rule, in which the functions that it calls have rules again,

    signature(f) = equations of f, and for each function with a rule in it
                   signature(its jvp rule), or those of its forward and backward rules.

Rules that call the function they belong to (`y = f(x); return y, t * (1 - y**2)`) never
end. A rule that was met `_REPEATS` times on the way down, equal each time but for its
own rules, is taken for its own continuation: programs are told apart by derivatives up
to order `_REPEATS` + 1, and beyond unless their rules repeat themselves. What cannot be
traced is equal only to itself: a missed equality costs a compilation, a false one the
right answer.
"""

from collections.abc import Callable, Hashable, Iterator
from itertools import product
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import (
    JVP_RULE,
    REMAT_RULE,
    VJP_RULE,
    ClosedJaxpr,
    Jaxpr,
    Literal,
    is_traced,
)

# What identifies the rules of an equation that has some.
SignRule: TypeAlias = Callable[[Any], Hashable]

_THUNKS = {JVP_RULE, VJP_RULE, REMAT_RULE, "bwd", "out_trees"}
_REPEATS, _DEEPEST, _MOST = 2, 12, 10_000
_SMALL, _FEW = 1024, 4


def identify(closed: Any) -> tuple[Hashable, bool]:
    """Return what identifies a closed jaxpr, and whether it has vector-Jacobian rules.

    The values of its constants do not count; those inside its rules do. A rule counts
    as having a vector-Jacobian rule when any rule below it has.
    """
    rules = _Rules()
    return _signature(closed.jaxpr, rules.sign), rules.has_vjp


class _Rules:
    """Signs the rules met on a walk through a program."""

    def __init__(self) -> None:
        self.has_vjp = False
        self.above: tuple[Hashable, ...] = ()
        self.count = 0

    def sign(self, equation: Any) -> Hashable:
        """Identify the rules of one equation, and those inside them."""
        self.has_vjp |= VJP_RULE in equation.params
        if self.count > _MOST:
            return _identity_of_rules(equation)
        try:
            parts = list(_traced_rules(equation))
        except Exception:  # a user's rule may raise anything
            return _identity_of_rules(equation)
        self.count += sum(count_equations(jaxpr) for jaxpr, *_ in parts)
        shallow = _sign_parts(parts, _no_rules)
        repeats = self.above.count(shallow)
        if repeats >= _REPEATS:
            return "repeats", shallow
        if len(self.above) >= _DEEPEST:
            return _identity_of_rules(equation)
        self.above = (*self.above, shallow)
        deep = _sign_parts(parts, self.sign)
        self.above = self.above[:-1]
        return deep


def _no_rules(_: Any) -> Hashable:
    return ()


def _identity_of_rules(equation: Any) -> Hashable:
    thunks = [v for k, v in sorted(equation.params.items()) if k in _THUNKS]
    return tuple(_Identity(thunk) for thunk in thunks)


def _sign_parts(parts: list, sign_rule: SignRule) -> Hashable:
    return tuple(
        (_signature(jaxpr, sign_rule), tuple(map(_constant, consts)), static)
        for jaxpr, consts, static in parts
    )


def _traced_rules(equation: Any) -> Iterator[tuple[Any, list, Hashable]]:
    """Jaxpr, constants and what else matters of each rule of an equation."""
    if JVP_RULE in equation.params:
        yield from _jvp_rules(equation)
    elif VJP_RULE in equation.params:
        yield from _vjp_rules(equation)
    else:
        yield (*equation.params[REMAT_RULE](), ())


def _jvp_rules(equation: Any) -> Iterator[tuple[Any, list, Hashable]]:
    params = equation.params
    arguments = equation.invars[params["num_consts"] :]
    for moving in _patterns(arguments, params["symbolic_zeros"]):
        still = tuple(not moves for moves in moving)
        jaxpr, consts, zeros = params[JVP_RULE].call_wrapped(*still)
        yield jaxpr, consts, tuple(zeros)


def _vjp_rules(equation: Any) -> Iterator[tuple[Any, list, Hashable]]:
    params = equation.params
    arguments = equation.invars[params["num_consts"] :]
    for moving in _patterns(arguments, params["symbolic_zeros"]):
        forward, consts = params[VJP_RULE].call_wrapped(*moving)
        out_tree, residual_tree, forwarded = params["out_trees"]()
        static = out_tree, residual_tree, tuple(forwarded)
        yield forward, consts, static
        produced = iter(forward.outvars)
        residuals = [
            next(produced) if place is None else equation.invars[place]
            for place in forwarded
        ]
        yield _backward_rule(params["bwd"], [v.aval for v in residuals], equation)


def _backward_rule(
    backward: Any, residuals: list, equation: Any
) -> tuple[Any, list, Hashable]:
    """Trace a backward rule at residuals and cotangents of every output."""
    void: list[bool] = []

    def rule(residuals: list, cotangents: list) -> list:
        found = backward.call_wrapped(*residuals, *cotangents)
        # A symbolic zero is no array, and stands for no cotangent at all.
        void[:] = [not isinstance(x, jax.Array | np.ndarray) for x in found]
        return [x for x, is_void in zip(found, void) if not is_void]

    cotangents = [v.aval.to_tangent_aval() for v in equation.outvars]
    closed = jax.make_jaxpr(rule)(_shapes(residuals), _shapes(cotangents))
    return closed.jaxpr, closed.consts, tuple(void)


def _shapes(avals: list) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]


def _patterns(arguments: list, symbolic: bool) -> list[tuple[bool, ...]]:
    """Which arguments move: all; for a rule that can tell, also some of them."""
    if not symbolic:
        return [(True,) * len(arguments)]
    able = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in arguments]
    if sum(able) <= _FEW:
        options = ((True, False) if a else (False,) for a in able)
        return [pattern for pattern in product(*options) if any(pattern)]
    alone = [tuple(i == j for j in range(len(able))) for i, a in enumerate(able) if a]
    return [tuple(able), *alone]


def _signature(jaxpr: Any, sign_rule: SignRule) -> tuple[Hashable, ...]:
    """Return a hashable value that two jaxprs share only if they compute the same."""
    names: dict[Any, int] = {}

    def name(atom: Any) -> tuple[Hashable, ...]:
        if isinstance(atom, Literal):
            value = _freeze(np.asarray(atom.val), sign_rule)
            return ("literal", str(atom.aval), value)
        return ("var", names.setdefault(atom, len(names)), str(atom.aval))

    def equation(eqn: Any) -> tuple[Hashable, ...]:
        has_rules = any(k in eqn.params for k in (JVP_RULE, VJP_RULE, REMAT_RULE))
        rest = {k: v for k, v in eqn.params.items() if k not in _THUNKS}
        return (
            eqn.primitive,
            tuple(map(name, eqn.invars)),
            tuple(map(name, eqn.outvars)),
            _freeze(rest if has_rules else eqn.params, sign_rule),
            sign_rule(eqn) if has_rules else (),
        )

    heads = tuple(map(name, (*jaxpr.constvars, *jaxpr.invars)))
    body = tuple(map(equation, jaxpr.eqns))
    return heads, body, tuple(map(name, jaxpr.outvars))


def _freeze(value: Any, sign_rule: SignRule) -> Hashable:
    """Turn an equation's parameter into something hashable and faithful."""
    if isinstance(value, ClosedJaxpr):
        consts = _freeze(value.consts, sign_rule)
        return ("closed", _signature(value.jaxpr, sign_rule), consts)
    if isinstance(value, Jaxpr):
        return ("jaxpr", _signature(value, sign_rule))
    if isinstance(value, dict):
        return tuple((key, _freeze(value[key], sign_rule)) for key in sorted(value))
    if isinstance(value, list | tuple):
        return (type(value), tuple(_freeze(item, sign_rule) for item in value))
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.dtype.str, value.tobytes())
    try:
        hash(value)
    except TypeError:
        return ("unique", _Identity(value))
    return value


def count_equations(jaxpr: Any) -> int:
    """Return how many equations a program has, those of programs inside included."""
    inside = (
        leaf for e in jaxpr.eqns for leaf in jax.tree.leaves(list(e.params.values()))
    )
    nested = (x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in inside)
    return len(jaxpr.eqns) + sum(
        count_equations(x) for x in nested if isinstance(x, Jaxpr)
    )


def _constant(value: Any) -> Hashable:
    """Identify an array that a rule closes over: small ones by their entries."""
    if is_traced(value) or np.size(value) > _SMALL:
        return _Identity(value)
    try:
        array = np.asarray(value)
    except Exception:  # keys, arrays of other hosts
        return _Identity(value)
    return (array.shape, array.dtype.str, array.tobytes())


class _Identity:
    """Compares by the identity of what it holds, and keeps that alive."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
