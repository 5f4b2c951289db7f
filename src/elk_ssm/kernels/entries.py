r"""Small programs for many elements at once, written out entry by entry.

A combination of 4 x 4 matrices, batched over time, is dozens of kernels on an
accelerator, one for every product, sum and loop. Of its entries, each of them a vector
over time,

    C_ij = A_i1 B_1j + ... + A_in B_nj,     all of shape (T,),

it is elementwise arithmetic and nothing else, which compilers fuse into a kernel or
two. What only moves entries (a slice, a transposition, a known index) is gone then, and
so is what masks let through: numbers that are known are computed beforehand.

Derivatives are those of the program as it was.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import Literal, needed_equations, run_program
from elk_ssm.kernels.entry_rules import (
    evaluate,
    filled,
    has_rule,
    is_known,
    size_of,
    vector,
)
from elk_ssm.kernels.inlining import inline, read

LARGEST = 4300
"""Programs of more entries than this take a compiler too long."""


def entry_by_entry(
    function: Callable, *like: Any, axis: int = 0, largest: int = LARGEST
) -> Callable | None:
    """Return `jax.vmap(function, axis, axis)` written out, or None if it has no form.

    Args:
        function: Of the arrays of one element; it may close over arrays.
        *like: Its arguments, or their shapes.
        axis: Where all arrays hold the elements: 0, or -1, which neighbouring threads
            read side by side.
        largest: How many entries a program may compute.
    """
    called, out = jax.make_jaxpr(function, return_shape=True)(*like)
    consts = list(called.consts)
    # Numbers of the program's own are known, the arrays that it closes over are not.
    held = [i for i, x in enumerate(consts) if not isinstance(x, np.ndarray)]

    def inlined(*args: Any) -> list[Any]:
        full = _with(consts, held, args[: len(held)])
        return inline(called.jaxpr, full, args[len(held) :])

    shapes = [jax.ShapeDtypeStruct(jnp.shape(consts[i]), consts[i].dtype) for i in held]
    closed = jax.make_jaxpr(inlined)(*shapes, *jax.tree.leaves(like))
    known, program = list(closed.consts), needed_equations(closed)
    if not all(map(is_known, known)) or not _qualifies(program, largest):
        return None

    @jax.custom_jvp
    def run(outside: list[Any], *leaves: Any) -> list[Any]:
        return _evaluate(program, (known, outside, leaves), axis)

    @run.defjvp
    def run_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        def plainly(outside: list[Any], *leaves: Any) -> list[Any]:
            full = _with(consts, held, outside)
            one = partial(run_program, called.jaxpr, full)
            return jax.vmap(one, axis, axis)(*leaves)

        return jax.jvp(plainly, primals, tangents)

    def at_once(*arguments: Any) -> Any:
        found = run([consts[i] for i in held], *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(out), found)

    return at_once


def _with(consts: list[Any], held: list[int], values: Any) -> list[Any]:
    full = list(consts)
    for i, value in zip(held, values):
        full[i] = value
    return full


def _qualifies(program: Any, largest: int) -> bool:
    """Whether there is a rule for each equation, and a compiler for all of them."""
    fixed, size = set(program.constvars), 0
    for equation in program.eqns:
        known = [isinstance(v, Literal) or v in fixed for v in equation.invars]
        if all(known):
            fixed |= set(equation.outvars)
        elif not has_rule(equation, known):
            return False
        else:
            size += size_of(equation)
    shared = sum(math.prod(v.aval.shape) for v in program.invars)
    return size + shared <= largest


def _evaluate(program: Any, given: tuple[Any, Any, Any], axis: int) -> list[Any]:
    """Evaluate a flat program of one element on what is known, shared, and of many."""
    known, outside, leaves = given
    lanes = leaves[0].shape[axis]
    env: dict[Any, Any] = dict(zip(program.constvars, map(np.asarray, known)))
    every = [*map(_shared, outside), *(_entries(x, axis) for x in leaves)]
    env.update(zip(program.invars, every))

    for equation in program.eqns:
        values = [np.asarray(read(env, atom)) for atom in equation.invars]
        env.update(zip(equation.outvars, evaluate(equation, values, lanes)))
    found = ((np.asarray(read(env, v)), v.aval) for v in program.outvars)
    return [_joined(value, aval, lanes, axis) for value, aval in found]


def _shared(x: Any) -> np.ndarray:
    flat = x.reshape(-1)
    return filled(x.shape, (flat[i] for i in range(flat.size)))


def _entries(x: Any, axis: int) -> np.ndarray:
    """The entries of one element, each a vector."""
    shape = x.shape[1:] if axis == 0 else x.shape[:-1]
    flat = x.reshape(x.shape[0], -1) if axis == 0 else x.reshape(-1, x.shape[-1])
    rows = range(math.prod(shape))
    return filled(shape, (flat[:, i] if axis == 0 else flat[i] for i in rows))


def _joined(value: np.ndarray, aval: Any, lanes: int, axis: int) -> Any:
    flat = [vector(x, aval.dtype, lanes) for x in value.ravel()]
    shape = (lanes, *aval.shape) if axis == 0 else (*aval.shape, lanes)
    if not flat:
        return jnp.zeros(shape, aval.dtype)
    return jnp.stack(flat, 1 if axis == 0 else 0).reshape(shape)
