"""Models written as text: a sum of names, called with numbers.

    model     = term ("+" term)*
    term      = name | name "(" arguments ")"
    arguments = numbers, and keyword=number, True, False, None or a quoted word

Read by Python's parser and nothing is evaluated: a name is looked up among those known,
and what is no literal is refused.
"""

import ast
from collections.abc import Callable
from functools import reduce
from inspect import signature
from operator import add
from typing import Any

from elk_ssm.models.autoregressions import arma, autoregressive
from elk_ssm.models.model import Model
from elk_ssm.models.processes import matern
from elk_ssm.models.regressions import regression
from elk_ssm.models.seasons import cycle, seasonal
from elk_ssm.models.trends import (
    constant_acceleration,
    constant_velocity,
    local_level,
    local_linear_trend,
)

TERMS: dict[str, Callable[..., Model]] = {
    "level": local_level,
    "trend": local_linear_trend,
    "seasonal": seasonal,
    "cycle": cycle,
    "autoregressive": autoregressive,
    "arma": arma,
    "regression": regression,
    "matern": matern,
    "constant_velocity": constant_velocity,
    "constant_acceleration": constant_acceleration,
    "local_level": local_level,
    "local_linear_trend": local_linear_trend,
    "ar": autoregressive,
}


def parse(text: str) -> Model:
    """Return the model that a text such as `"level + trend + seasonal(52)"` says.

    A trend has a level of its own, so `level + trend` is the local linear trend, and so
    is `trend`.

    Args:
        text: A sum of `level`, `trend`, `seasonal(period, harmonics=...)`, `cycle`,
            `autoregressive(order)`, `arma(p, q)`, `regression(count)`, `matern(nu)`,
            `constant_velocity(axes)`, `constant_acceleration(axes)`.

    Raises:
        ValueError: It is no such sum, a name is not known, or its arguments are wrong.

    Example:
        >>> import elk_ssm as elk
        >>> elk.models.parse("trend + seasonal(52, harmonics=6)").lgssm().state_dim
        14
    """
    if not isinstance(text, str):
        raise ValueError(f"a model to parse is a text; got {text!r}.")
    try:
        # Whatever stands for a space, an end of a line included, is one.
        tree = ast.parse(" ".join(text.split()), mode="eval").body
    except SyntaxError:
        raise ValueError(
            f"a model is a sum such as 'level + seasonal(12)'; got {text!r}."
        ) from None
    terms = list(_terms(tree, text))
    if any(name in ("trend", "local_linear_trend") for name, _ in terms):
        terms = [term for term in terms if term[0] not in ("level", "local_level")]
    return reduce(add, (model for _, model in terms))


def _terms(tree: ast.AST, text: str) -> Any:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        yield from _terms(tree.left, text)
        yield from _terms(tree.right, text)
        return
    call = tree if isinstance(tree, ast.Call) else None
    name = call.func if call else tree
    if not isinstance(name, ast.Name):
        raise ValueError(
            "a model is a sum of names such as seasonal(12); got "
            f"{ast.unparse(tree)!r}."
        )
    if name.id not in TERMS:
        raise ValueError(
            f"there is no component {name.id!r}; there are {', '.join(TERMS)}."
        )
    yield name.id, _built(name.id, call)


def _built(name: str, call: ast.Call | None) -> Model:
    arguments = [_literal(x, name) for x in call.args] if call else []
    named = {}
    for keyword in call.keywords if call else ():
        if keyword.arg is None:
            raise ValueError(f"{name} takes no '**'.")
        named[keyword.arg] = _literal(keyword.value, name)
    try:
        return TERMS[name](*arguments, **named)
    except TypeError as error:
        parameters = ", ".join(signature(TERMS[name]).parameters)
        said = str(error).replace(f"{TERMS[name].__name__}()", name)
        raise ValueError(f"{said}; it is {name}({parameters}).") from None


def _literal(node: ast.AST, name: str) -> Any:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else ...
    if isinstance(value, int | float):
        return sign * value if sign < 0 else value
    if sign > 0 and (value is None or isinstance(value, str)):
        return value
    raise ValueError(f"{name} takes numbers and words only; got {ast.unparse(node)!r}.")
