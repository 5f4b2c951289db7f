"""Everything of JAX in use that is internal, young, or not promised to stay.

Each has a line on what it is for and what would replace it. No other module names
these parts of JAX, which a test checks, so that a new version of JAX is one file here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core.primitives import closed_call_p
from jax.interpreters import partial_eval

__all__ = [
    "JVP_RULE",
    "REMAT_RULE",
    "VJP_RULE",
    "ClosedJaxpr",
    "Jaxpr",
    "Literal",
    "SymbolicZero",
    "bind_equation",
    "called_program",
    "closed_call_p",
    "custom_vmap",
    "deliberate_nans",
    "is_traced",
    "is_zero_tangent",
    "needed_equations",
    "run_program",
    "used_inputs",
    "zero_tangent",
]

JVP_RULE, VJP_RULE = "jvp_jaxpr_fun", "fwd_jaxpr_thunk"
"""Where an equation of `jax.custom_jvp` or `jax.custom_vjp` keeps its rule.

Names of parameters, which a public way to ask for a rule would replace.
"""

REMAT_RULE = "fun_jaxpr_thunk"
"""The same of `jax.custom_vjp` with `optimize_remat=True`."""

custom_vmap = jax.custom_batching.custom_vmap
"""A rule for `vmap`, with which `auto` plans a batch as a batch. Public but young."""


def deliberate_nans() -> Any:
    """Let NaN pass that mark a place as empty, with `jax_debug_nans` too."""
    return jax.debug_nans(False)


def is_traced(x: Any) -> bool:
    """Whether a value is known only when the program runs: no check can read it.

    `jax.core.Tracer` is what JAX's documentation itself names for this.
    """
    return isinstance(x, jax.core.Tracer)


def run_program(jaxpr: Any, consts: list[Any], *args: Any) -> list[Any]:
    """Evaluate a traced program at other constants.

    `jax.extend.core.jaxpr_as_fun` does it for closed programs; here the constants are
    arguments, so that one compiled program serves all of their values.
    """
    return jax.core.eval_jaxpr(jaxpr, consts, *args)


_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def called_program(equation: Any) -> Any:
    """The closed program that an equation does nothing but call, or None.

    By names of primitives and of their parameters, which no public function lists.
    """
    if equation.primitive.name not in _CALLS:
        return None
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    found = next(equation.params[k] for k in names if k in equation.params)
    return found if isinstance(found, ClosedJaxpr) else ClosedJaxpr(found, ())


def bind_equation(equation: Any, *args: Any) -> list[Any]:
    """Evaluate one equation of a program at other arguments, as `run_program` does."""
    params = equation.primitive.get_bind_params(equation.params)
    functions: tuple = ()
    if isinstance(params, tuple):  # before JAX 0.10 functions came apart
        functions, params = params
    found = equation.primitive.bind(*functions, *args, **params)
    return found if equation.primitive.multiple_results else [found]


def needed_equations(closed: Any) -> Any:
    """The same closed program without what none of its outputs depends on."""
    jaxpr, _ = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    return jaxpr


def used_inputs(jaxpr: Any) -> list[bool]:
    """Which inputs of a program any of its outputs can depend on.

    By dead code elimination, which has no public form; a walk over the equations would
    replace it, and would have to know every primitive with a program inside.
    """
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return used


def is_zero_tangent(tangent: Any) -> bool:
    """Whether a tangent is zero by its type, and so by far the cheapest one.

    JAX hands such tangents to rules with `symbolic_zeros=True`.
    """
    if isinstance(tangent, SymbolicZero):
        return True
    return getattr(tangent, "dtype", None) == jax.dtypes.float0


def zero_tangent(x: Any) -> Any:
    """Return a tangent of zeros; for what is not floating point it has no entries."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
