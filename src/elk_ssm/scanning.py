"""A drop-in for `jax.lax.scan` that evaluates the carry in parallel over time."""

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from elk_ssm._closures import hoist
from elk_ssm._failing import OF_SCAN, shape_of_step
from elk_ssm._options import Asked, for_mesh, prepare
from elk_ssm._recurrence import (
    Recurrence,
    as_array,
    canonicalize,
    check_length,
    check_same,
    check_state,
    without_time,
)
from elk_ssm._trees import Split, describe
from elk_ssm._types import Array, ArrayLike, PyTree
from elk_ssm.evaluation import run
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.mesh import Shards, on_mesh, shards_of
from elk_ssm.parallel.time_axis import LOCAL
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method
from elk_ssm.solve.options import Adjoint, Kernel
from elk_ssm.solve.replay import replay_outputs


def scan(
    f: Any,
    init: PyTree,
    xs: PyTree = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    *,
    method: Method | Auto | None = None,
    guess: PyTree = None,
    tol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_iters: int | None = None,
    backend: Backend = "auto",
    adjoint: Adjoint = "auto",
    kernel: Kernel | None = None,
    mesh: Mesh | None = None,
    axis_name: str = "time",
) -> tuple[PyTree, PyTree]:
    """Drop-in for `jax.lax.scan(f, init, xs)` that evaluates the carry in parallel.

    A scan has no place for a status, so a carry that the method does not bring to
    convergence is evaluated sequentially: the result is always the trajectory. A
    `jax.custom_vjp` in f gets what arrives from the next carry and from y together, as
    in `lax.scan`.

    Args:
        f: `f(carry, x) -> (carry, y)`.
        init: Initial carry; see `initial_state` of `evaluate`.
        xs: Pytree with a leading time axis, or None.
        length: Number of steps when there are no xs.
        reverse: Run from the last x to the first, as `lax.scan` does.
        unroll: Accepted for compatibility; it has no effect.
        method: See `evaluate`.
        guess: First iterate of the carry; see `evaluate`, as for all that follow.
        tol: Relative tolerance.
        atol: Absolute tolerance.
        max_iters: Largest number of iterations.
        backend: Which scans to use.
        adjoint: How derivatives solve their linear recursion.
        kernel: `"pallas"` for passes of `auto` as one kernel.
        mesh: Devices over which time is sharded.
        axis_name: Name of the axis of the mesh for time.

    Returns:
        The final carry and the stacked outputs ys; of no step init and empty ys.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> carry, ys = elk.scan(lambda c, x: (0.5 * c + x, c), 0.0, jnp.ones(3))
        >>> float(carry), ys.tolist()
        (1.75, [0.0, 1.0, 1.5])
    """
    init, xs, length = arguments_of_scan(f, init, xs, length)
    if length:
        check_state(init)
    check_pair(f, init, xs)
    if length == 0:
        return jax.lax.scan(f, init, xs, length)
    if reverse:
        xs = jax.tree.map(lambda x: x[::-1], xs)

    def carry_only(carry: PyTree, x: PyTree) -> PyTree:
        return f(carry, x)[0]

    shards = shards_of(mesh, axis_name)
    init, xs = for_mesh(shards, "scan", init, xs)
    recurrence = canonicalize(carry_only, init, xs, length)
    asked = Asked(
        method=method,
        guess=guess,
        tol=tol,
        atol=atol,
        max_iters=max_iters,
        backend=backend,
        adjoint=adjoint,
        fall_back=True,
        shards=shards,
        kernel=kernel,
    )
    states = run(recurrence, prepare(recurrence, asked)).states
    if recurrence.function.has_vjp_rules:
        states, ys = _replay_both(f, recurrence, states)
    else:
        before = _states_before(init, states, shards, recurrence.length)
        ys = jax.vmap(lambda carry, x: f(carry, x)[1], axis_size=recurrence.length)(
            before, xs
        )
    if reverse:
        ys = jax.tree.map(lambda y: y[::-1], ys)
    return jax.tree.map(lambda x: x[-1], states), ys


def _replay_both(
    f: Any, recurrence: Recurrence, states: PyTree
) -> tuple[PyTree, PyTree]:
    """Carries and outputs of an f with vector-Jacobian rules, with its derivatives.

    A rule gets what arrives from the next carry and from the output together.
    """
    layout = recurrence.layout

    def pair(state: Array, entry: PyTree) -> tuple[Array, PyTree]:
        after, y = f(*recurrence.unflatten(state, entry))
        return layout.ravel(recurrence.split.part(after)[0]), y

    flat = jax.ShapeDtypeStruct((layout.size,), layout.dtype)
    function, consts = hoist(pair, flat, recurrence.entry)
    primals = consts, recurrence.initial, recurrence.inputs
    known = recurrence.flatten_states(states, "states")
    found, ys = replay_outputs(function, primals, known)
    return recurrence.rebuild(found), ys


@partial(jax.jit, static_argnums=(2, 3))
def _states_before(
    init: PyTree, states: PyTree, shards: Shards | None, length: int
) -> PyTree:
    """State before every step."""
    if shards is None:
        return jax.tree.map(LOCAL.shift, init, states)

    def shift(states: PyTree, init: PyTree) -> tuple[PyTree, tuple]:
        return jax.tree.map(shards.axis.shift, init, states), ()

    return on_mesh(shards, shift, states, init, length)[0]


def check_pair(f: Any, init: PyTree, xs: PyTree) -> None:
    """Raise unless one step returns a pair, whose first is a carry like the one before.

    Raises:
        TypeError: f is not callable, or what it returns is no pair.
        ValueError: f fails, or changes structure, shapes or dtypes of the carry.
    """
    carry, x = Split.of(init).example, without_time(xs)
    found = shape_of_step(f, carry, x, OF_SCAN)
    if not (isinstance(found, tuple) and len(found) == 2):
        raise TypeError(
            "f must return a pair (carry, y), as for jax.lax.scan; got "
            f"{describe(found)}. For a step that returns the state alone use "
            "elk.evaluate."
        )
    check_same(found[0], carry, x, OF_SCAN)


def arguments_of_scan(
    f: Any, init: PyTree, xs: PyTree, length: int | None
) -> tuple[PyTree, PyTree, int]:
    """Return init and xs as arrays, and the number of steps, which may be 0."""
    if not callable(f):
        raise TypeError(
            f"f must be callable; got {type(f).__name__}. The order is scan(f, init, "
            "xs)."
        )
    init = jax.tree.map(partial(as_array, name="init"), init)
    xs = jax.tree.map(partial(as_array, name="xs"), xs)
    return init, xs, check_length(xs, length, "xs", least=0)
