"""Which groups of the state each entry of a program's result can depend on.

A traced program is walked once, with an integer for every entry of every value: the one
group that the entry depends on, or that it depends on several. What depends on nothing
is None. Entries that are only moved keep their group, functions of single entries and
sums merge groups, and a primitive that is not known mixes all of its operands; so the
answer errs on the safe side only.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from elk_ssm._jax import Literal, called_program, scan_counts
from elk_ssm._recurrence import Recurrence
from elk_ssm.kernels.elementwise import NAMES as ELEMENTWISE

Labels: TypeAlias = np.ndarray | None
"""Of one value: the group of every entry; None where no group matters."""

NONE, SEVERAL = -1, -2
_ELEMENTWISE_TOO = {
    "copy",
    "stop_gradient",
    "erf",
    "erfc",
    "erf_inv",
    "lgamma",
    "digamma",
    "round",
}


def keeps_apart(recurrence: Recurrence, labels: np.ndarray) -> bool:
    """Whether each entry of the next state depends on entries of its own group alone.

    Args:
        recurrence: Its program is read, not run.
        labels: The group of every entry of the flat state, `(D,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm._recurrence import canonicalize
        >>> apart = canonicalize(lambda x, u: jnp.tanh(x + u), jnp.ones(2), jnp.ones(9))
        >>> keeps_apart(apart, np.arange(2))
        True
    """
    jaxpr = recurrence.function.jaxpr
    others = [None] * (len(jaxpr.invars) - 1)
    reached = groups_reached(jaxpr, [labels, *others])[0]
    return reached is None or bool(np.all((reached == labels) | (reached == NONE)))


def groups_reached(jaxpr: Any, labels: list[Labels]) -> list[Labels]:
    """Return the labels of every result of a program.

    Args:
        jaxpr: A program; what it has closed over depends on nothing.
        labels: Of its arguments, arrays of their shapes.
    """
    known: dict[Any, Labels] = dict(zip(jaxpr.invars, labels, strict=True))

    def read(atom: Any) -> Labels:
        return None if isinstance(atom, Literal) else known.get(atom)

    for equation in jaxpr.eqns:
        found = _through(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _through(equation: Any, labels: list[Labels]) -> list[Labels]:
    if all(label is None for label in labels):
        return [None] * len(equation.outvars)
    name, called = equation.primitive.name, called_program(equation)
    if called is not None and len(called.jaxpr.invars) == len(labels):
        return groups_reached(called.jaxpr, labels)
    if name in ("scan", "cond"):
        return {"scan": _scan, "cond": _cond}[name](equation, labels)
    shapes = [atom.aval.shape for atom in equation.invars]
    if name in ELEMENTWISE or name in _ELEMENTWISE_TOO:
        out = np.full(equation.outvars[0].aval.shape, NONE)
        for label in labels:
            if label is not None:
                out = merge(out, label)
        return [out]
    if name in _RULES:
        filled = [
            np.broadcast_to(NONE, shape) if label is None else label
            for label, shape in zip(labels, shapes)
        ]
        return _RULES[name](equation.params, *filled)
    return _mixed(equation, labels)


def merge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the labels of what depends on both; the arrays broadcast.

    Example:
        >>> merge(np.array([0, NONE, 1, NONE]), np.array([0, 1, 0, NONE])).tolist()
        [0, 1, -2, -1]
    """
    one = np.where(a == NONE, b, a)
    return np.where((one == b) | (b == NONE), one, SEVERAL)


def _over(label: np.ndarray, axes: Any) -> np.ndarray:
    """Merge the labels along axes."""
    axes = tuple(axes)
    if label.size and not any(label.strides):
        # One label for all, such as of large weights, which no group has touched.
        rest = [n for i, n in enumerate(label.shape) if i not in axes]
        return np.broadcast_to(label.flat[0], rest)
    highest = np.max(label, axis=axes, initial=NONE)
    there = np.where(label == NONE, np.iinfo(label.dtype).max, label)
    lowest = np.min(there, axis=axes, initial=np.iinfo(label.dtype).max)
    same = (highest == lowest) | (highest == NONE) & (lowest > highest)
    return np.where(same, highest, SEVERAL)


def _mixed(equation: Any, labels: list[Labels]) -> list[Labels]:
    """Every entry of a result depends on every entry of the operands."""
    every = np.concatenate([x.ravel() for x in labels if x is not None])
    one = _over(every, (0,))
    return [np.full(v.aval.shape, one) for v in equation.outvars]


def _cond(equation: Any, labels: list[Labels]) -> list[Labels]:
    branches = equation.params["branches"]
    if labels[0] is not None:
        return _mixed(equation, labels)
    found = [groups_reached(branch.jaxpr, labels[1:]) for branch in branches]
    return [_either(results) for results in zip(*found)]


def _either(labels: Any) -> Labels:
    out = None
    for label in labels:
        if label is not None:
            out = label if out is None else merge(out, label)
    return out


def _scan(equation: Any, labels: list[Labels]) -> list[Labels]:
    """The labels of what is carried grow until they rest."""
    params = equation.params
    first, count = scan_counts(params)
    consts, carry = labels[:first], labels[first : first + count]
    entries = [x if x is None else _over(x, (0,)) for x in labels[first + count :]]
    while True:
        found = groups_reached(params["jaxpr"].jaxpr, [*consts, *carry, *entries])
        after = [_either(pair) for pair in zip(carry, found[:count])]
        if all(map(_equal, after, carry)):
            break
        carry = after
    outs = equation.outvars[count:]
    stacked = [
        x if x is None else np.broadcast_to(x, v.aval.shape)
        for x, v in zip(found[count:], outs)
    ]
    return [*carry, *stacked]


def _equal(a: Labels, b: Labels) -> bool:
    return b is None if a is None else b is not None and np.array_equal(a, b)


def _dot_general(params: dict, left: np.ndarray, right: np.ndarray) -> list[Labels]:
    """Axes of a product: those in common, then what is left of either operand."""
    (l_in, r_in), (l_batch, r_batch) = params["dimension_numbers"]
    parts = []
    for label, inner, batch in ((left, l_in, l_batch), (right, r_in, r_batch)):
        free = [i for i in range(label.ndim) if i not in (*inner, *batch)]
        ordered = np.transpose(label, (*batch, *free, *inner))
        last = range(len(batch) + len(free), label.ndim)
        parts.append((_over(ordered, last), len(free)))
    (left, l_free), (right, r_free) = parts
    common = left.shape[: len(l_batch)]
    left = left.reshape((*left.shape, *(1,) * r_free))
    ones = (1,) * l_free
    right = right.reshape((*common, *ones, *right.shape[len(common) :]))
    return [merge(left, right)]


def _broadcast(params: dict, label: np.ndarray) -> list[Labels]:
    shape, kept = params["shape"], params["broadcast_dimensions"]
    spread = [label.shape[kept.index(i)] if i in kept else 1 for i in range(len(shape))]
    return [np.broadcast_to(label.reshape(spread), shape)]


def _slice(params: dict, label: np.ndarray) -> list[Labels]:
    steps = params["strides"] or (1,) * label.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps)
    return [label[tuple(slice(*bound) for bound in bounds)]]


def _split(params: dict, label: np.ndarray) -> list[Labels]:
    return list(np.split(label, np.cumsum(params["sizes"])[:-1], params["axis"]))


def _unstack(params: dict, label: np.ndarray) -> list[Labels]:
    return list(np.moveaxis(label, params["axis"], 0))


def _reshape(params: dict, label: np.ndarray) -> list[Labels]:
    return [label.reshape(params["new_sizes"])]


_RULES: dict[str, Callable[..., list[Labels]]] = {
    "reshape": _reshape,
    "squeeze": lambda p, x: [np.squeeze(x, p["dimensions"])],
    "expand_dims": lambda p, x: [np.expand_dims(x, p["dimensions"])],
    "transpose": lambda p, x: [np.transpose(x, p["permutation"])],
    "rev": lambda p, x: [np.flip(x, p["dimensions"])],
    "stack": lambda p, *x: [np.stack(x, p["axis"])],
    "concatenate": lambda p, *x: [np.concatenate(x, p["dimension"])],
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "tile": lambda p, x: [np.tile(x, p["reps"])],
    "dot_general": _dot_general,
    **{
        name: lambda p, x: [_over(x, p["axes"])]
        for name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
    },
}
