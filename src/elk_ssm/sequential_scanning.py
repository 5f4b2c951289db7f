r"""`jax.lax.scan` forwards, a recursion that is parallel over time backwards.

The carry c_t = f(c_{t-1}, x_t) is followed by `lax.scan` itself. Its tangent solves

    d_t - J_t d_{t-1} = g_t,       t = 1, ..., T,

which is linear, so it and its transpose, the backward pass, have no need to go step by
step: see `solve/recursions.py`. Leaves of the carry that do not move (counters, keys)
are data of that system, even where they depend on those that do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction, hoist
from elk_ssm._options import check_adjoint
from elk_ssm._recurrence import without_time
from elk_ssm._trees import Split, StateLayout, describe
from elk_ssm._types import Array, PyTree
from elk_ssm.parallel.time_axis import LOCAL
from elk_ssm.scanning import arguments_of_scan, check_pair
from elk_ssm.solve.adjoint import follow_path, path_chunk
from elk_ssm.solve.options import Adjoint
from elk_ssm.solve.path import Path
from elk_ssm.solve.problem import Primals
from elk_ssm.solve.replay import attach, replay


class _Scan(NamedTuple):
    """What is fixed of a scan: the flat step, how long, unrolled, and the adjoint."""

    function: HoistedFunction
    length: int
    unroll: int | bool
    adjoint: Adjoint


def sequential_scan(
    f: Any,
    init: PyTree,
    xs: PyTree = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    *,
    adjoint: Adjoint = "auto",
) -> tuple[PyTree, PyTree]:
    """Run `jax.lax.scan(f, init, xs)`, with derivatives that are parallel over time.

    For recurrences that have to be followed step by step (chaos, long memory, a fast
    kernel forwards) and are trained: the loop runs forwards once, and its exact
    derivatives, reverse or forward mode and to any order, solve a linear recursion of
    known matrices. Memory beyond that of `lax.scan` without derivatives is the carry of
    every step, T x D; f is evaluated again where it is differentiated. Rules of a
    `jax.custom_vjp` in f are applied step by step, as for `evaluate`.

    Args:
        f: `f(carry, x) -> (carry, y)`.
        init: Initial carry, a pytree of real arrays of any dtypes. Leaves that are not
            floating point may depend on those that are.
        xs: Pytree with a leading time axis, or None.
        length: Number of steps when there are no xs.
        reverse: Run from the last x to the first.
        unroll: As in `lax.scan`, for the forward pass.
        adjoint: How derivatives solve their recursion; see `evaluate`. `"parallel"`
            has logarithmic depth and `(T, D, D)` Jacobians, `"short_blocks"` and
            `"blocks"` have T x D numbers. `"auto"` is short blocks on an accelerator,
            and step by step on a CPU, where that is fastest.

    Returns:
        The final carry and the stacked outputs, with the values of `lax.scan`.

    Raises:
        TypeError: f is not callable or returns no pair, or a leaf of the carry is
            complex.
        ValueError: A shape, dtype, length or option does not fit.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> def loss(w):
        ...     step = lambda c, x: (jnp.tanh(w * c + x), c**2)
        ...     carry, ys = elk.sequential_scan(
        ...         step, jnp.zeros(2), jnp.ones((9, 2)), adjoint="blocks"
        ...     )
        ...     return carry.sum() + ys.sum()
        >>> round(float(jax.grad(loss)(0.5)), 4)
        5.2221
    """
    check_adjoint(adjoint)
    init, xs, length = arguments_of_scan(f, init, xs, length)
    check_pair(f, init, xs)
    split = Split.of(init)
    floats, others = split.part(init)
    _check_real(others, init)
    if not floats or length == 0:  # nothing goes back along the carry
        return jax.lax.scan(f, init, xs, length, reverse, unroll)
    layout = StateLayout.of(floats)
    xs = jax.tree.map(lambda x: x[::-1], xs) if reverse else xs

    def pair(state: Array, entry: tuple[PyTree, list]) -> tuple[Array, tuple]:
        x, others = entry
        after, y = f(split.join(layout.unravel(state), others), x)
        after, others = split.part(after)
        return layout.ravel(after), (others, y)

    flat = jax.ShapeDtypeStruct((layout.size,), layout.dtype)
    of_others = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), others)
    function, consts = hoist(pair, flat, (without_time(xs), of_others))
    asked = _Scan(function, length, unroll, adjoint)
    primals = consts, layout.ravel(floats), xs
    (state, others), ys = _run(asked, primals, others)
    carry = split.join(layout.unravel(state), others)
    return carry, jax.tree.map(lambda y: y[::-1], ys) if reverse else ys


def _check_real(others: list, init: PyTree) -> None:
    """Raise `TypeError` for complex leaves, whose derivatives would be lost."""
    if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in others):
        raise TypeError(
            f"The carry must be real; got {describe(init)}. Split complex leaves into "
            "their real and imaginary parts."
        )


@partial(jax.jit, static_argnums=0)
def _run(asked: _Scan, primals: Primals, others: list) -> tuple[tuple, PyTree]:
    """Follow the carry, and give what was found its derivatives."""
    function = asked.function
    consts, initial, xs = jax.lax.stop_gradient(primals)

    def body(carry: tuple, x: PyTree) -> tuple[tuple, tuple]:
        state, others = carry
        after, (others_after, y) = function(consts, state, (x, others))
        return (after, others_after), (after, others, y)

    begin = initial, jax.lax.stop_gradient(others)
    how: Any = {"length": asked.length, "unroll": asked.unroll}
    (last, others), (states, others_before, ys) = jax.lax.scan(body, begin, xs, **how)
    primals = primals[0], primals[1], (primals[2], others_before)
    if function.has_vjp_rules:
        states, found = replay(function, primals, states)
        carriers = found[1]
    else:
        states = _known(asked, primals, states)
        carriers = _outputs(function, primals, states)
    return (attach(last, states[-1]), others), jax.tree.map(attach, ys, carriers)


def _outputs(function: HoistedFunction, primals: Primals, states: Array) -> PyTree:
    """Outputs of all steps side by side, for their derivatives."""
    consts, initial, inputs = primals
    before = LOCAL.shift(initial, states)

    def output(consts: list, state: Array, entry: PyTree) -> Any:
        return function(consts, state, entry)[1][1]

    path = Path(output, consts, before, inputs, LOCAL, path_chunk(1))
    return path.over_time(before)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _known(asked: _Scan, primals: Primals, states: Array) -> Array:
    """States that are known, with the derivatives of the recurrence."""
    return states


@partial(_known.defjvp, symbolic_zeros=True)
def _known_jvp(asked: _Scan, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    problem, states = primals
    states = _known(asked, problem, states)
    step: Callable = partial(_state_only, asked.function)
    tangent = follow_path(step, asked.adjoint, problem, tangents[0], states)
    return states, tangent


def _state_only(function: Callable, consts: list, state: Array, entry: Any) -> Array:
    return function(consts, state, entry)[0]
