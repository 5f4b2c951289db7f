"""Rules of the equations that are written out entry by entry (see `entries`).

A value is a NumPy array of objects: a vector over all elements for each of its entries,
or a number where that is known. An array of numbers is known altogether.
"""

import math
from collections.abc import Callable
from functools import reduce
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elk_ssm._jax import bind_equation
from elk_ssm.kernels.elementwise import NAMES as ELEMENTWISE

_MOVES = {
    *("broadcast_in_dim", "concatenate", "copy", "copy_p", "dynamic_slice", "pad"),
    *("expand_dims", "gather", "reshape", "rev", "scatter", "slice", "split"),
    *("squeeze", "stack", "stop_gradient", "tile", "transpose", "unstack"),
}
# A known number that changes nothing, and one that all else changes nothing of: zeros
# are structure here, and what is not a number is not carried through them.
_SAME = {"add": 0, "add_any": 0, "sub": 0, "mul": 1, "or": False, "and": True}
_FINAL = {"mul": 0, "or": True, "and": False}
_INDICES = {
    "dynamic_slice": slice(1, None),
    "gather": slice(1, 2),
    "scatter": slice(1, 2),
}
_REDUCTIONS: dict[str, Callable] = {
    "reduce_sum": lax.add,
    "reduce_max": lax.max,
    "reduce_min": lax.min,
    "reduce_or": lax.bitwise_or,
    "reduce_and": lax.bitwise_and,
}
_RULES = {*ELEMENTWISE, *_MOVES, *_REDUCTIONS}
_RULES |= {"argmax", "dot_general", "optimization_barrier"}


def is_known(value: Any) -> bool:
    """Whether a value is a number, or an array of them."""
    return isinstance(value, np.ndarray | np.generic | int | float | bool)


def has_rule(equation: Any, known: list[bool]) -> bool:
    """Whether an equation can be evaluated whose operands are known or not."""
    name, operands = equation.primitive.name, equation.invars
    # What is taken is to be known.
    if name not in _RULES or not all(known[_INDICES.get(name, slice(0))]):
        return False
    if name not in ("dot_general", "argmax", *_REDUCTIONS):
        return True
    dtypes = {v.aval.dtype for v in (*operands, *equation.outvars)}
    mixed = name == "dot_general" and len(dtypes) > 1
    return not mixed and all(0 not in v.aval.shape for v in operands)


def size_of(equation: Any) -> int:
    """Entries that are computed."""
    name = equation.primitive.name
    if name in _MOVES:
        return 0
    size = sum(math.prod(v.aval.shape) for v in equation.outvars)
    if name == "dot_general":
        (left, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return size * math.prod(shape[i] for i in left)
    return size if name in ELEMENTWISE else math.prod(equation.invars[0].aval.shape)


def vector(x: Any, dtype: Any, lanes: int) -> Any:
    """One entry of all elements."""
    return jnp.broadcast_to(jnp.asarray(x, dtype), (lanes,))


def evaluate(equation: Any, values: list[np.ndarray], lanes: int) -> list[np.ndarray]:
    """Evaluate an equation; one array of entries for each of its results."""
    name = equation.primitive.name
    if all(value.dtype != object for value in values):
        with jax.ensure_compile_time_eval():
            return [np.asarray(x) for x in bind_equation(equation, *values)]
    if name == "optimization_barrier":
        return _held_apart(equation, values, lanes)
    if name in _MOVES:
        return _moved(equation, values)
    out = equation.outvars[0].aval
    if name in ELEMENTWISE:
        each = _each(equation, lanes)
        return [filled(out.shape, map(each, *_alike(values, out.shape)))]
    if name == "dot_general":
        left, right = values
        return [_product(equation, left, right, lanes)]
    return [_reduced(equation, values[0], lanes)]


def filled(shape: tuple[int, ...], entries: Any) -> np.ndarray:
    """An array of entries, in order."""
    flat = np.empty(math.prod(shape), object)
    for i, entry in enumerate(entries):
        flat[i] = entry
    return flat.reshape(shape)


def _alike(values: list[np.ndarray], shape: tuple[int, ...]) -> list[Any]:
    return [np.broadcast_to(value, shape).ravel() for value in values]


def _each(equation: Any, lanes: int) -> Callable:
    """How an equation is evaluated for one entry of each operand."""
    dtypes, name = [v.aval.dtype for v in equation.invars], equation.primitive.name
    bits = name in ("or", "and") and dtypes[0].kind != "b"
    same, final = (None if bits else kind.get(name) for kind in (_SAME, _FINAL))

    def each(*entries: Any) -> Any:
        known = [is_known(x) for x in entries]
        if name == "select_n" and known[0]:
            return entries[1 + int(entries[0])]
        if all(known):
            with jax.ensure_compile_time_eval():
                return np.asarray(bind_equation(equation, *entries)[0])[()]
        if len(entries) == 2 and any(known):
            number, other = entries[::-1] if known[1] else entries
            if number == same and (known[1] or name != "sub"):
                return other
            if number == final:
                return number
        return bind_equation(equation, *_same_shape(entries, dtypes, lanes))[0]

    return each


def _same_shape(entries: Any, dtypes: Any, lanes: int) -> list[Any]:
    """Vectors if any of them is one."""
    if any(np.ndim(x) for x in entries):
        return [vector(x, dtype, lanes) for x, dtype in zip(entries, dtypes)]
    return [jnp.asarray(x, dtype) for x, dtype in zip(entries, dtypes)]


def _held_apart(
    equation: Any, values: list[np.ndarray], lanes: int
) -> list[np.ndarray]:
    """What is computed before is not computed together with what comes after."""
    flat = [x for value in values for x in value.ravel()]
    places = [i for i, x in enumerate(flat) if not is_known(x)]
    found = lax.optimization_barrier([flat[i] for i in places])
    for i, x in zip(places, found):
        flat[i] = x
    ends = np.cumsum([value.size for value in values])
    return [filled(v.shape, flat[e - v.size : e]) for v, e in zip(values, ends)]


def _moved(equation: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """Let the equation move places instead of entries, and look these up."""
    count = len(equation.invars)
    # Nothing is taken from an index.
    indices = range(count)[_INDICES.get(equation.primitive.name, slice(0))]
    sources = [i for i in range(count) if i not in indices]
    every: list[Any] = []
    operands: list[Any] = list(values)
    for i in sources:
        operands[i] = np.arange(len(every), len(every) + values[i].size, dtype=np.int32)
        operands[i] = operands[i].reshape(values[i].shape)
        every += list(values[i].ravel())
    with jax.ensure_compile_time_eval():
        places = [np.asarray(x) for x in bind_equation(equation, *operands)]
    return [filled(p.shape, (every[i] for i in p.ravel())) for p in places]


def _binary(function: Callable, dtype: Any, lanes: int) -> Callable:
    """A function of two entries, by the rules of its equation."""
    shape = jax.ShapeDtypeStruct((), dtype)
    (equation,) = jax.make_jaxpr(function)(shape, shape).eqns
    return _each(equation, lanes)


def _product(
    equation: Any, left: np.ndarray, right: np.ndarray, lanes: int
) -> np.ndarray:
    dtype = equation.invars[0].aval.dtype
    times, plus = (_binary(each, dtype, lanes) for each in (lax.mul, lax.add))
    (lc, rc), (lb, rb) = equation.params["dimension_numbers"]
    own = [i for i in range(left.ndim) if i not in (*lc, *lb)]
    other = [i for i in range(right.ndim) if i not in (*rc, *rb)]
    # Batch, free, contracted; of both.
    left, right = left.transpose(*lb, *own, *lc), right.transpose(*rb, *other, *rc)
    batch = left.shape[: len(lb)]
    summed = math.prod(left.shape[left.ndim - len(lc) :])
    rows = left.reshape(*batch, -1, summed)
    columns = right.reshape(*batch, -1, summed)
    found = (
        reduce(plus, map(times, rows[(*b, i)], columns[(*b, j)]))
        for b in np.ndindex(*batch)
        for i, j in product(range(rows.shape[-2]), range(columns.shape[-2]))
    )
    return filled(equation.outvars[0].aval.shape, found)


def _reduced(equation: Any, value: np.ndarray, lanes: int) -> np.ndarray:
    axes, out = equation.params["axes"], equation.outvars[0].aval
    kept = [i for i in range(value.ndim) if i not in axes]
    rows = value.transpose(*kept, *axes).reshape(math.prod(out.shape), -1)
    if equation.primitive.name == "argmax":
        return filled(out.shape, (_first_of_largest(row, out, lanes) for row in rows))
    function = _binary(_REDUCTIONS[equation.primitive.name], out.dtype, lanes)
    return filled(out.shape, (reduce(function, row) for row in rows))


def _first_of_largest(row: np.ndarray, out: Any, lanes: int) -> Any:
    best, place = vector(row[0], None, lanes), vector(0, out.dtype, lanes)
    for i, x in enumerate(row[1:], start=1):
        x = vector(x, None, lanes)
        larger = (x > best) | ((x != x) & (best == best))
        place = jnp.where(larger, jnp.asarray(i, out.dtype), place)
        best = jnp.where(larger, x, best)
    return place
