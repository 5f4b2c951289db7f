"""Everything of JAX in use that is internal, young, or not promised to stay.

Each has a line on what it is for and what would replace it. No other module names
these parts of JAX, which a test checks, so that a new version of JAX is one file here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive, jaxpr_as_fun
from jax.extend.core.primitives import closed_call_p
from jax.interpreters import ad, batching, mlir, partial_eval

from elk_ssm._platforms import by_platform

__all__ = [
    "JVP_RULE",
    "REMAT_RULE",
    "VJP_RULE",
    "ClosedJaxpr",
    "Jaxpr",
    "Literal",
    "SymbolicZero",
    "batched_alike",
    "bind_equation",
    "called_program",
    "closed_call_p",
    "cpu_or_later",
    "custom_vmap",
    "deliberate_nans",
    "is_traced",
    "is_zero_tangent",
    "needed_equations",
    "run_program",
    "scan_counts",
    "solving_program",
    "unless_batched",
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


def unless_batched(alone: Callable, batched: Callable) -> Callable:
    """Return a function that is `alone`, and under `vmap` the batch of `batched`.

    `batched` finds the same in another way. There is no derivative in reverse.
    """
    function = custom_vmap(alone)

    @function.def_vmap
    def _over_a_batch(axis_size: int, in_batched: Any, *operands: Any) -> tuple:
        del axis_size
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, in_batched)
        found = jax.vmap(batched, tuple(axes))(*operands)
        return found, jax.tree.map(lambda _: True, found)

    return function


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


def solving_program(equation: Any, values: list[Any]) -> tuple[Any, list[Any]] | None:
    """The closed program by which `jax.lax.custom_linear_solve` solves, and its inputs.

    By names of its parameters, as `called_program`; None for any other equation.
    """
    if equation.primitive.name != "custom_linear_solve":
        return None
    lengths, programs = equation.params["const_lengths"], equation.params["jaxprs"]
    begin = lengths.matvec + lengths.vecmat
    consts = values[begin : begin + lengths.solve]
    return programs.solve, [*consts, *values[sum(lengths) :]]


def bind_equation(equation: Any, *args: Any) -> list[Any]:
    """Evaluate one equation of a program at other arguments, as `run_program` does."""
    params = equation.primitive.get_bind_params(equation.params)
    functions: tuple = ()
    if isinstance(params, tuple):  # before JAX 0.10 functions came apart
        functions, params = params
    found = equation.primitive.bind(*functions, *args, **params)
    return found if equation.primitive.multiple_results else [found]


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many inputs of a `scan` are its constants, and how many are carried.

    By names of its parameters, which no public function tells.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # From JAX 0.11 on.
    return len(list(consts)), len(list(carry))


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


def batched_alike(outputs: Any, inputs: Any) -> Any:
    """Return the outputs, batched as soon as one of the inputs is.

    A function with a `jax.custom_jvp` and its rule must agree on which outputs `vmap`
    batches, or a branch that holds the function and is then differentiated in reverse
    cannot be lowered; the rule batches what any of its parts makes it. To be dropped
    when JAX makes them agree.
    """
    leaves = map(jnp.ravel, jax.tree.leaves(inputs))
    # True whatever the entries are, NaN included.
    always = [(x[0] == x[0]) | (x[0] != x[0]) for x in leaves if x.size]
    true = jax.tree.reduce(jnp.logical_and, always)
    return jax.tree.map(lambda x: jnp.where(true, x, x), outputs)


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


@dataclass(frozen=True)
class _Later:
    """A function that is traced when it is lowered; equal when its parts are.

    Attributes:
        function: `function(static, *operands)`.
        static: What is no array.
        tree: Structure of the operands.
        x64: Whether 64 bits were enabled where it was called.
        batched: Which operands were batched, one entry for each `vmap`.
    """

    function: Callable
    static: Any
    tree: Any
    x64: bool
    batched: tuple[tuple[int | None, ...], ...] = ()

    def __call__(self, *flat: Any) -> list[Any]:
        def run(*flat: Any) -> list[Any]:
            operands = jax.tree.unflatten(self.tree, flat)
            return jax.tree.leaves(self.function(self.static, *operands))

        for axes in self.batched:
            run = jax.vmap(run, axes)
        with jax.enable_x64(self.x64):
            return run(*flat)


_cpu_or_later = Primitive("cpu_or_later")
_cpu_or_later.multiple_results = True


def cpu_or_later(cpu: Callable, default: Callable, static: Any, *operands: Any) -> Any:
    """As `jax.lax.platform_dependent`, with `default` traced only where it is lowered.

    Tracing what an accelerator would run took most of the time to a first result on a
    CPU. Both are called as `function(static, *operands)` and close over no array;
    `static` is hashable. Where it is differentiated, both are traced, unless only one
    can run (`by_platform`). It is a primitive of our own, until JAX can trace a branch
    late.
    """
    flat, tree = jax.tree.flatten(operands)
    flat = [jnp.asarray(x) for x in flat]

    def run(*flat: Any) -> Any:
        return cpu(static, *jax.tree.unflatten(tree, flat))

    closed, shapes = jax.make_jaxpr(run, return_shape=True)(*flat)
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    later = _Later(default, static, tree, bool(x64))
    # What f prints has to be announced by both.
    bind = _both if closed.effects else _cpu_or_later.bind
    found = bind(*flat, cpu=closed, later=later)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _both(*flat: Any, cpu: Any, later: _Later) -> list[Any]:
    return by_platform(*flat, cpu=jaxpr_as_fun(cpu), default=later)


def _run_here(*flat: Any, cpu: Any, later: _Later) -> list[Any]:
    here = jax.default_backend() == "cpu"
    return jaxpr_as_fun(cpu)(*flat) if here else later(*flat)


def _batch(flat: Any, axes: Any, *, cpu: Any, later: _Later) -> tuple[list, list]:
    where = tuple(axes)
    closed = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(cpu), where))(*flat)
    later = _Later(
        later.function, later.static, later.tree, later.x64, (*later.batched, where)
    )
    found = _cpu_or_later.bind(*flat, cpu=closed, later=later)
    return found, [0] * len(found)


def _differentiate(flat: Any, tangents: Any, **params: Any) -> tuple[list, list]:
    moved = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return jax.jvp(lambda *flat: _both(*flat, **params), flat, tuple(moved))


# What JAX from 0.11 on asks of a program with types or rules that it has to take apart
# first: to be written by what it can take apart.
_cpu_or_later.to_lojax = _both  # type: ignore[method-assign]
ad.primitive_jvps[_cpu_or_later] = _differentiate
_cpu_or_later.def_impl(_run_here)
_cpu_or_later.def_abstract_eval(lambda *_, cpu, later: cpu.out_avals)
batching.primitive_batchers[_cpu_or_later] = _batch
mlir.register_lowering(
    _cpu_or_later,
    mlir.lower_fun(lambda *flat, cpu, later: jaxpr_as_fun(cpu)(*flat), True),
    platform="cpu",
)
mlir.register_lowering(
    _cpu_or_later, mlir.lower_fun(lambda *flat, cpu, later: later(*flat), True)
)
