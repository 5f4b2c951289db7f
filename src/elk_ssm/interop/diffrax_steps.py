"""The steps that a fixed-step solver of diffrax takes, written as a recurrence.

    state_k = f(state_{k-1}, (t_{k-1}, t_k, controls_k)),      k = 1, ..., T

Times run forwards: where t1 < t0 the terms are turned around, as diffrax does. What is
known before the states are, times and increments of controls (a Brownian path), is
computed once and enters as inputs.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction, hoist
from elk_ssm._jax import is_traced
from elk_ssm._recurrence import depends_on_first
from elk_ssm._types import Array, PyTree
from elk_ssm.interop.diffrax_terms import (
    Tape,
    diffrax,
    eqx,
    has_controls,
    played,
    taped,
)

# Times this close to t1 are t1, as in diffrax.
_UNITS_OF_END = 100


class Step(NamedTuple):
    """One step: from t0 to t1, forwards, with the increments of the controls."""

    t0: Array
    t1: Array
    controls: list


class Carried(NamedTuple):
    """The state of a solver that remembers more than y."""

    y: PyTree
    solver_state: PyTree


def step_once(equation: "Equation", state: PyTree, entry: Step) -> tuple:
    """Take one step by the solver; returns what its `step` does, the state in front."""
    terms = played(equation.terms, entry.controls)
    y, solver_state = equation.opened(state, terms, entry)
    found = equation.solver.step(
        terms, entry.t0, entry.t1, y, equation.args, solver_state, False
    )
    y, _, dense, solver_state, result = found
    if equation.carries == "stage":
        solver_state = solver_state[1]
    after = Carried(y, solver_state) if equation.carries else y
    return after, dense, result


class Equation(NamedTuple):
    """A differential equation with its solver, ready to be stepped.

    Attributes:
        terms: The terms, time running forwards.
        solver: The solver, its loops made differentiable in both modes.
        args: What the vector field gets.
        carries: What goes from step to step besides y: the state of the solver, the
            last stage of one that is "first same as last", or nothing.
        direction: 1, or -1 where time runs backwards.
    """

    terms: PyTree
    solver: Any
    args: PyTree
    carries: Literal["state", "stage"] | None
    direction: Any

    def opened(self, state: PyTree, terms: PyTree, at: Step) -> tuple[PyTree, PyTree]:
        """Return y and the state of the solver."""
        if self.carries == "stage":
            return state.y, (jnp.asarray(False), state.solver_state)
        if self.carries:
            return state.y, state.solver_state
        return state, self.solver.init(terms, at.t0, at.t1, state, self.args)


def differentiable(solver: Any) -> Any:
    """Have the loops of a solver, and of one inside it, allow both modes."""
    if isinstance(inner := getattr(solver, "solver", None), diffrax.AbstractSolver):
        return eqx.tree_at(lambda s: s.solver, solver, differentiable(inner))
    kinds: Any = {diffrax.AbstractRungeKutta: "bounded", diffrax.AbstractSRK: "lax"}
    for family, kind in kinds.items():
        if isinstance(solver, family) and solver.scan_kind in (None, "checkpointed"):
            return eqx.tree_at(
                lambda s: s.scan_kind, solver, kind, is_leaf=lambda x: x is None
            )
    return solver


def innermost(solver: Any) -> Any:
    """Return the solver inside those that wrap another."""
    while isinstance(inner := getattr(solver, "solver", None), diffrax.AbstractSolver):
        solver = inner
    return solver


def time_dtype(*times: Any) -> Any:
    """Return the common dtype of times, a float."""
    dtype = jnp.result_type(*(x for x in times if x is not None))
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.zeros(()).dtype


def step_times(controller: Any, t0: Any, t1: Any, dt0: Any, direction: Any) -> Step:
    """Times of all steps, forwards: those that diffrax takes, by its own controller.

    Args:
        controller: A `ConstantStepSize` or `StepTo`.
        t0: Where to begin.
        t1: Where to end.
        dt0: Size of a step, or None for `StepTo`.
        direction: 1, or -1 where time runs backwards.
    """
    count = _number(controller, t0, t1, dt0)
    return _step_times(controller, (t0, t1, dt0), direction, count)


# Numbers are constants in there and arrays are not, as in `diffeqsolve`: the last bit
# of a time, which seeds an `UnsafeBrownianPath`, depends on it.
@eqx.filter_jit
def _step_times(controller: Any, times: tuple, direction: Any, count: int) -> Step:
    dtype, flip = time_dtype(*times), jnp.asarray(direction)
    t0, t1 = (jnp.asarray(x, dtype) * flip for x in times[:2])
    dt0 = None if times[2] is None else jnp.asarray(times[2], dtype) * flip
    controller = controller.wrap(flip)
    nothing: Any = (None,) * 3
    tnext, state = controller.init(None, t0, t1, None, dt0, *nothing)
    floor = jax.lax.stop_gradient(t1)
    for _ in range(_UNITS_OF_END):
        floor = jnp.nextafter(floor, -jnp.inf)

    def body(carry: tuple, _: None) -> tuple[tuple, Step]:
        tprev, tnext, state = carry
        now = Step(tprev, tnext, [])
        known = tprev, tnext, *(None,) * 5
        _, tprev, tnext, _, state, _ = controller.adapt_step_size(*known, state)
        tprev = jnp.minimum(tprev, t1)
        tnext = jnp.where(tnext > floor, t1, tnext)
        return (tprev, tnext, state), now

    begin = jax.tree.map(jnp.asarray, (t0, jnp.minimum(tnext, t1), state))
    return jax.lax.scan(body, begin, length=count)[1]


def _number(controller: Any, t0: Any, t1: Any, dt0: Any) -> int:
    """Number of steps T."""
    if isinstance(controller, diffrax.StepTo):
        return len(controller.ts) - 1
    if any(is_traced(x) for x in (t0, t1, dt0)):
        raise ValueError(
            "The number of steps must be known before anything runs, and t0, t1 or dt0 "
            "is traced. Pass numbers, or the times themselves: "
            "stepsize_controller=diffrax.StepTo(ts), dt0=None."
        )
    # As diffrax counts them: the next number above dt0 forgives its rounding.
    dtype = np.dtype(time_dtype(t0, t1, dt0))
    begin, end, size = (np.asarray(x, dtype) for x in (t0, t1, dt0))
    span, size = (end - begin) * np.sign(size), np.abs(size)
    if not (span > 0 and size > 0):
        raise ValueError(
            f"Steps of dt0 = {dt0} do not lead from t0 = {t0} to t1 = {t1}."
        )
    return int(np.ceil(span / np.nextafter(size, dtype.type(np.inf))))


@partial(jax.jit, static_argnums=0)
def every(function: HoistedFunction, consts: list, entries: PyTree) -> PyTree:
    """Evaluate a function at all entries side by side; compiled once for a program."""
    return jax.vmap(lambda entry: function(consts, entry))(entries)


def with_controls(equation: Equation, state: PyTree, times: Step) -> Step:
    """Add the increments that the steps ask their controls for, found side by side.

    Where they cannot be known before (a solver that asks inside a loop, or for times
    that depend on its state) there are none, and each step asks again.
    """

    def asked(state: PyTree, entry: Step) -> list:
        tape = Tape()
        step_once(equation._replace(terms=taped(equation.terms, tape)), state, entry)
        return tape.values

    if not has_controls(equation.terms):
        return times
    first = jax.tree.map(lambda x: x[0], times)
    try:
        if depends_on_first(asked, state, first):
            return times
        function, consts = hoist(lambda entry: asked(state, entry), first)
    except jax.errors.UnexpectedTracerError:
        return times
    return times._replace(controls=every(function, consts, times))
