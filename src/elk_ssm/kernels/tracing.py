r"""A step as one flat program, cut by what its equations depend on.

    constant:  c_j = a(c)            once, before the kernel
    ahead:     e_j = b(c, e_t)       for all steps at once, before the kernel
    kernel:    x_t = g(c, e, x_{t-1})

Calls are inlined (`inlining.py`): an equation is one primitive. What depends on the
inputs alone may run ahead: whatever the kernel has no rule for (an embedding, random
numbers), and products where few lanes make the recurrence wait for every operation.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._jax import Literal, bind_equation, needed_equations
from elk_ssm._types import PyTree
from elk_ssm.kernels.inlining import inline, read

CONSTANT, ENTRY, STATE = 0, 1, 2


class Step(NamedTuple):
    """One step as a flat program.

    Attributes:
        constvars: Variables of the constants, the step's own and those of its tracing.
        values: Values of the constants; shape structs when only shapes are known.
        carry: Variable of the state, shape `(D,)`.
        entries: Variables of the leaves of one entry.
        equations: Equations without calls, in order.
        result: The next state, a variable or a literal.
    """

    constvars: list[Any]
    values: list[Any]
    carry: Any
    entries: list[Any]
    equations: list[Any]
    result: Any


class Stages(NamedTuple):
    """The equations of a step by when they run.

    Attributes:
        constant: Equations of constants only.
        ahead: Equations of entries that run before the kernel.
        kernel: Equations of the kernel.
        consts: Variables without a time axis that the kernel reads.
        entries: Variables that the kernel reads in every step.
    """

    constant: list[Any]
    ahead: list[Any]
    kernel: list[Any]
    consts: list[Any]
    entries: list[Any]


def shapes_of(tree: PyTree, drop: int = 0) -> PyTree:
    """Shape and dtype of every leaf without its first `drop` axes."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(x)[drop:], jnp.result_type(x))

    return jax.tree.map(shape, tree)


def trace(function: Callable, consts: Any, carry: Any, entry: PyTree) -> Step:
    """Trace `function(consts, carry, entry)` with every call inlined."""
    leaves, tree = jax.tree.flatten(entry)
    held, held_tree = jax.tree.flatten(consts)
    first = len(held)

    def flat(*args: Any) -> Any:
        consts = jax.tree.unflatten(held_tree, args[:first])
        entry = jax.tree.unflatten(tree, args[first + 1 :])
        return function(consts, args[first], entry)

    shapes = [*shapes_of(held), *shapes_of([carry]), *shapes_of(leaves)]
    called = jax.make_jaxpr(flat)(*shapes)

    def inlined(*args: Any) -> list[Any]:
        return inline(called.jaxpr, called.consts, args)

    closed = jax.make_jaxpr(inlined)(*shapes)
    jaxpr = needed_equations(closed)
    return Step(
        [*jaxpr.constvars, *jaxpr.invars[:first]],
        [*closed.consts, *held],
        jaxpr.invars[first],
        list(jaxpr.invars[first + 1 :]),
        list(jaxpr.eqns),
        jaxpr.outvars[0],
    )


def run(equations: list[Any], env: dict[Any, Any]) -> dict[Any, Any]:
    """Evaluate equations in order, and add what they define to a copy of `env`."""
    env = dict(env)
    for equation in equations:
        values = [read(env, atom) for atom in equation.invars]
        env.update(zip(equation.outvars, bind_equation(equation, *values)))
    return env


def levels(step: Step) -> dict[Any, int]:
    """What each variable depends on: constants, entries, or the state."""
    found = dict.fromkeys(step.constvars, CONSTANT)
    found.update(dict.fromkeys(step.entries, ENTRY))
    found[step.carry] = STATE
    for equation in step.equations:
        found.update(dict.fromkeys(equation.outvars, level_of(equation, found)))
    return found


def stage(step: Step, goes_ahead: Callable[[Any], bool]) -> Stages:
    """Decide when each equation runs.

    Args:
        step: The flat program.
        goes_ahead: Whether an equation that does not depend on the state must run
            before the kernel; what it depends on then does too.
    """
    level = levels(step)
    by_level: dict[int, list[Any]] = {CONSTANT: [], ENTRY: [], STATE: []}
    for equation in step.equations:
        by_level[level_of(equation, level)].append(equation)
    ahead = _with_ancestors(by_level[ENTRY], goes_ahead)
    early = {id(e) for e in (*ahead, *by_level[CONSTANT])}
    kept = [e for e in step.equations if id(e) not in early or _is_fill(e)]
    kernel = needed(kept, [step.result])
    defined = {v for e in kernel for v in e.outvars} | {step.carry}
    reads = dict.fromkeys(v for e in kernel for v in _variables(e.invars))
    reads.update(dict.fromkeys(_variables([step.result])))
    outside = [v for v in reads if v not in defined]
    consts = [v for v in outside if level[v] == CONSTANT]
    entries = [v for v in outside if level[v] == ENTRY]
    ahead = needed(ahead, entries)
    wanted = [*consts, *(v for e in ahead for v in _variables(e.invars))]
    return Stages(needed(by_level[CONSTANT], wanted), ahead, kernel, consts, entries)


def needed(equations: list[Any], wanted: list[Any]) -> list[Any]:
    """The equations that `wanted` depends on, in order."""
    live = set(_variables(wanted))
    kept = []
    for equation in reversed(equations):
        if live.intersection(equation.outvars):
            kept.append(equation)
            live.update(_variables(equation.invars))
    return kept[::-1]


def _variables(atoms: Iterable[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def level_of(equation: Any, level: dict[Any, int]) -> int:
    """What an equation depends on, given that of its operands."""
    return max((level[v] for v in _variables(equation.invars)), default=CONSTANT)


def _is_fill(equation: Any) -> bool:
    """A literal spread over a shape is free in registers, and else a load."""
    literal = not _variables(equation.invars)
    return literal and equation.primitive.name == "broadcast_in_dim"


def _with_ancestors(equations: list[Any], chosen: Callable[[Any], bool]) -> list[Any]:
    wanted = [v for e in equations if chosen(e) for v in e.outvars]
    return needed(equations, wanted)


def run_ahead(
    step: Step, stages: Stages, entries: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Evaluate what does not depend on the state.

    Args:
        step: The flat program, with values of its constants.
        stages: Its stages.
        entries: Leaves of the entries, with two leading axes, time and lanes.

    Returns:
        Values of `stages.consts`, and of `stages.entries` with the two leading axes.
    """
    env = run(stages.constant, dict(zip(step.constvars, step.values)))
    given = dict(zip(step.entries, entries))
    made = [v for v in stages.entries if v not in given]

    def at_one_step(*leaves: Any) -> list[Any]:
        found = run(stages.ahead, {**env, **dict(zip(step.entries, leaves))})
        return [found[v] for v in made]

    found = dict(given)
    if made:
        found.update(zip(made, jax.vmap(jax.vmap(at_one_step))(*entries)))
    return [env[v] for v in stages.consts], [found[v] for v in stages.entries]
