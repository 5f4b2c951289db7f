r"""A traced program without calls, short loops or branches.

    for i = 1, ..., m: s = g(s, x_i)     ->  g(g(...), x_m)     up to `UNROLLED` rounds
    a(x) if p else b(x)                  ->  a(x) and b(x), one of them selected

The second is what `vmap` does too. Numbers that follow from numbers alone, such as the
counter of a loop, are computed at once, so that what they index is known.
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from elk_ssm._jax import (
    Literal,
    bind_equation,
    called_program,
    scan_counts,
    solving_program,
)
from elk_ssm.kernels.indexing import at_known_index

UNROLLED = 16
"""Loops of more rounds stay loops, for which the kernel has no rule."""


def inline(jaxpr: Any, consts: Iterable[Any], args: Iterable[Any]) -> list[Any]:
    """Evaluate a program equation by equation, through its calls; to be traced."""
    env: dict[Any, Any] = {}
    env.update(zip(jaxpr.constvars, consts))
    env.update(zip(jaxpr.invars, args))
    for equation in jaxpr.eqns:
        values = [read(env, atom) for atom in equation.invars]
        env.update(zip(equation.outvars, _evaluate(equation, values)))
    return [read(env, atom) for atom in jaxpr.outvars]


def read(env: dict[Any, Any], atom: Any) -> Any:
    """Value of a variable or a literal."""
    return atom.val if isinstance(atom, Literal) else env[atom]


def _evaluate(equation: Any, values: list[Any]) -> list[Any]:
    inner, name = called_program(equation), equation.primitive.name
    if inner is not None:
        return inline(inner.jaxpr, inner.consts, values)
    if (solving := solving_program(equation, values)) is not None:
        inner, values = solving
        return inline(inner.jaxpr, inner.consts, values)
    if name == "scan" and equation.params["length"] <= UNROLLED:
        return _unrolled(equation.params, values)
    if name == "cond" and not any(map(_has_loop, equation.params["branches"])):
        return _selected(equation.params["branches"], values)
    if _is_arithmetic(equation, values):
        with jax.ensure_compile_time_eval():
            found = bind_equation(equation, *values)
        return [np.asarray(x)[()] for x in found]
    if (indexed := at_known_index(equation, values)) is not None:
        return [indexed]
    return bind_equation(_at_highest_precision(equation), *values)


def _unrolled(params: dict[str, Any], values: list[Any]) -> list[Any]:
    """A loop of known length, written out."""
    first, count = scan_counts(params)
    consts, carry = values[:first], values[first : first + count]
    along = values[first + count :]
    closed, rounds = params["jaxpr"], range(params["length"])
    rows: list[list[Any]] = [[] for _ in rounds]
    for i in reversed(rounds) if params["reverse"] else rounds:
        entry = [jax.lax.index_in_dim(x, i, keepdims=False) for x in along]
        found = inline(closed.jaxpr, closed.consts, [*consts, *carry, *entry])
        carry, rows[i] = found[: len(carry)], found[len(carry) :]
    return [*carry, *map(_stack, zip(*rows))]


def _stack(rows: tuple[Any, ...]) -> Any:
    # In lax throughout: a function of jax.numpy would be a call again.
    each = [jax.lax.expand_dims(x, (0,)) for x in rows]
    return jax.lax.concatenate(each, 0)


def _selected(branches: Any, values: list[Any]) -> list[Any]:
    """All branches, of which the one with the given index is selected."""
    index, *arguments = values
    found = [inline(b.jaxpr, b.consts, arguments) for b in branches]
    chosen = found[0]
    for i, others in enumerate(found[1:], start=1):
        here = jax.lax.eq(index, np.asarray(i, index.dtype)[()])
        chosen = [jax.lax.select_n(here, y, x) for x, y in zip(others, chosen)]
    return chosen


def _has_loop(closed: Any) -> bool:
    """Whether a branch, evaluated although it is not taken, might not end."""
    return any(e.primitive.name == "while" for e in closed.jaxpr.eqns)


def _is_arithmetic(equation: Any, values: list[Any]) -> bool:
    """Whether an equation makes numbers of numbers that are known."""
    known = all(isinstance(v, int | float | np.generic | np.ndarray) for v in values)
    return known and not equation.effects and all(map(_is_number, equation.outvars))


def _is_number(variable: Any) -> bool:
    """A number; or an index, which is an array of one integer."""
    shape, name = variable.aval.shape, variable.aval.dtype.name
    if shape == (1,):
        return name in ("int32", "int64")
    return shape == () and name in ("int32", "int64", "float32", "float64", "bool")


def _at_highest_precision(equation: Any) -> Any:
    """Products that ask for no precision get the kernel's, wherever they run."""
    params = equation.params
    if equation.primitive.name != "dot_general" or params["precision"] is not None:
        return equation
    highest = (jax.lax.Precision.HIGHEST,) * 2
    return equation.replace(params={**params, "precision": highest})
