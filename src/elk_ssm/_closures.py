"""Functions as data: hoist what a function closes over, and recognise it again.

A user writes `lambda h, u: cell(params, h, u)`, a new function object in every call.
`hoist` traces it once, turns every captured array (tracers too) into an explicit
argument, and wraps the remaining program in an object that compares by structure. Two
traces of the same code are then equal, so a compiled solver is found again although
the lambda is new, and a parameter that was changed in place is seen.
"""

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp

from elk_ssm._jax import run_program
from elk_ssm._programs import identify
from elk_ssm._types import PyTree


class _Program:
    """What a program computes, as one object for as long as somebody holds it."""

    def __init__(self, key: Hashable):
        self.key = key


_programs: WeakValueDictionary[Hashable, _Program] = WeakValueDictionary()


class HoistedFunction:
    """A traced function without captured arrays; equal when the program is equal.

    Call it as `hoisted(consts, *args)`, where `args` have the structure, shapes and
    dtypes of the example arguments. Programs that differ in a derivative rule, or in a
    rule of a rule, are different.

    Attributes:
        has_vjp_rules: Whether there is a `jax.custom_vjp` in it, at whatever depth.
    """

    def __init__(self, closed: Any, out_tree: Any):
        self.jaxpr = closed.jaxpr
        self.out_tree = out_tree
        program, self.has_vjp_rules = identify(closed)
        # One object a program: the caches of jax compare by it at every call, and what
        # runs while they compare must not be worth an interruption.
        key = (program, out_tree)
        self.program = _programs.setdefault(key, _Program(key))

    def __call__(self, consts: list[Any], *args: PyTree) -> PyTree:
        """Evaluate the function at `args`."""
        flat = run_program(self.jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(self.out_tree, flat)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HoistedFunction) and self.program is other.program

    def __hash__(self) -> int:
        return id(self.program)


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
