"""A solve and its derivatives with every device of a mesh doing its piece."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._jax import is_still, still
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.parallel.mesh import Spread, on_mesh
from elk_ssm.solve.adjoint import Recursion, trajectory_tangent
from elk_ssm.solve.method import Method
from elk_ssm.surrogate.noise import unknowns_apart


def solve_on_mesh(
    spread: Spread,
    length: int,
    rows: int,
    primals: tuple[list, Array, PyTree],
    method: Method,
    guess: Array | None,
    numbers: PyTree,
    piece: Callable[..., tuple[Array, Any]],
) -> tuple[Array, Any]:
    """Call `piece(primals, method, guess, numbers, policy)` on every device.

    Args:
        spread: The mesh.
        length: Number of steps T.
        rows: Number of states that come back from all devices.
        primals: Constants, x_0 and inputs; the inputs are spread.
        method: What to run.
        guess: First iterate, `(T, D)`, spread too; or None.
        numbers: What every device needs besides.
        piece: Finds what one device holds; gets the noise policy's first state, of
            which that device has what belongs to its unknowns.
    """
    consts, initial, inputs = primals
    policy, of_unknowns = None, None
    if method.noise is not None:
        count = spread.unknowns(length, method.block_size)
        noise, policy, of_unknowns = unknowns_apart(
            method.noise, (count, initial.shape[0]), initial.dtype
        )
        method = replace(method, noise=noise)

    def body(timed: tuple, common: tuple) -> tuple[Array, Any]:
        inputs, guess, of_unknowns = timed
        consts, initial, method, numbers, policy = common
        state = policy if of_unknowns is None else of_unknowns
        return piece((consts, initial, inputs), method, guess, numbers, state)

    common = consts, initial, method, numbers, policy
    return on_mesh(spread, body, (inputs, guess, of_unknowns), common, rows)


def tangent_on_mesh(
    spread: Spread,
    length: int,
    function: Callable[[list, Array, PyTree], Array],
    recursion: Recursion,
    primals: tuple[list, Array, PyTree],
    tangents: tuple[list, Array, PyTree],
    states: Array,
    block_size: int,
) -> Array:
    """`trajectory_tangent` with every device doing its piece.

    Arguments as there; `length` is the number of steps T.
    """
    axis = spread.axis
    consts, initial, inputs = primals
    moving = jax.tree.map(_moving, tangents, is_leaf=is_still)

    def body(timed: tuple, common: tuple) -> tuple[Array, tuple]:
        inputs, of_inputs, states = timed
        consts, initial, *of_common = common
        along = _fill(tangents, (*of_common, of_inputs))
        exists = axis.exists(length)
        if exists is not None:
            inputs, along = (exists, inputs), (*along[:2], (still(exists), along[2]))

        def step(consts: list, state: Array, entry: PyTree) -> Array:
            if exists is None:
                return function(consts, state, entry)
            return safe_step(partial(function, consts), initial)(state, entry)

        found = trajectory_tangent(
            step, recursion, (consts, initial, inputs), along, states, block_size, axis
        )
        return found, ()

    timed, common = (inputs, moving[2], states), (consts, initial, *moving[:2])
    return on_mesh(spread, body, timed, common, states.shape[0])[0]


def safe_step(step: FlatStep, initial: Array) -> FlatStep:
    """Return a step on `(exists, input)` that can be differentiated past the end.

    There f is evaluated at x_0 and the input u_1, with which `on_mesh` pads, a pair at
    which it is known to be defined: a derivative of zero times NaN would not be zero.
    """
    initial = jax.lax.stop_gradient(initial)

    def step_or_stay(state: Array, entry: tuple[Array, PyTree]) -> Array:
        real, inputs = entry
        found = step(jnp.where(real, state, initial), inputs)
        return jnp.where(real, found, state)

    return step_or_stay


def _moving(tangent: Any) -> Any:
    """Leave out a still tangent, which cannot enter a `shard_map`."""
    return None if is_still(tangent) else tangent


def _fill(tangents: PyTree, moving: PyTree) -> PyTree:
    """Put the pieces of the tangents that move in their places."""

    def one(tangent: Any, moved: Any) -> Any:
        return still(tangent) if is_still(tangent) else moved

    return jax.tree.map(one, tangents, moving, is_leaf=is_still)
