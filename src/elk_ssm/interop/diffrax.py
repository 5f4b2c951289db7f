r"""Differential equations of diffrax, solved in parallel over time.

A fixed-step solver is a recurrence: `from_diffrax` writes terms and a solver as f, x_0
and inputs, and every method, mesh and derivative of `elk_ssm` applies to it;
`diffeqsolve` is a drop-in for diffrax's. ODEs, CDEs, and SDEs with a given Brownian
path; any solver whose steps do not depend on each other but through its state.

    f, initial_state, inputs = from_diffrax(terms, solver, t0, t1, dt0, y0, args)
    sol = elk.evaluate(f, initial_state, inputs, method=elk.picard(anderson=5))

Adaptive steps are refused: a step's size would depend on the states before it, and then
there is no recurrence of known length. Solve once adaptively, and take its steps:

    ts = diffrax.diffeqsolve(..., saveat=SaveAt(t0=True, steps=True), ...).ts
    ... stepsize_controller=diffrax.StepTo(ts[jnp.isfinite(ts)]), dt0=None
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from elk_ssm._options import Asked, prepare
from elk_ssm._recurrence import canonicalize
from elk_ssm._types import Array, PyTree
from elk_ssm.evaluation import run
from elk_ssm.interop.diffrax_checks import (
    adjoint_named,
    beginning,
    check_terms,
    check_times,
    checked_controller,
    checked_saveat,
    is_nowhere,
    promoted,
)
from elk_ssm.interop.diffrax_explicit import explicit_step, is_explicit
from elk_ssm.interop.diffrax_saving import save
from elk_ssm.interop.diffrax_steps import (
    Equation,
    Step,
    differentiable,
    step_once,
    step_times,
    with_controls,
)
from elk_ssm.interop.diffrax_terms import diffrax, forwards
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method

_OPTIONS = {"tol", "atol", "max_iters", "history", "backend", "kernel"}


@dataclass(frozen=True, eq=False)
class SolverStep:
    """One step of a solver as f(state, input) -> state.

    Attributes:
        equation: Terms, solver and args.

    Example:
        >>> import diffrax, jax
        >>> from elk_ssm.interop.diffrax import from_diffrax
        >>> term = diffrax.ODETerm(lambda t, y, args: -y)
        >>> f, y0, steps = from_diffrax(term, diffrax.Euler(), 0, 1, 0.5, 1.0)
        >>> float(f(y0, jax.tree.map(lambda leaf: leaf[0], steps)))
        0.5
    """

    equation: Equation

    def __call__(self, state: PyTree, entry: Step) -> PyTree:
        """Take one step."""
        if is_explicit(self.equation.solver):
            return explicit_step(self.equation, state, entry)
        return step_once(self.equation, state, entry)[0]


class Recurrence(NamedTuple):
    """A differential equation as a recurrence: unpack it, or ask it for y and t.

    Attributes:
        f: `f(state, input) -> state`, one step of the solver.
        initial_state: y0, or `(y0, solver_state)` for a solver with a state.
        inputs: Times of all steps and the increments of their controls.

    Example:
        >>> import diffrax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop.diffrax import from_diffrax
        >>> term = diffrax.ODETerm(lambda t, y, args: -y)
        >>> made = from_diffrax(term, diffrax.ReversibleHeun(), 0, 1, 0.1, jnp.ones(2))
        >>> sol = elk.evaluate(*made)
        >>> made.ys(sol.states).shape, made.times.shape
        ((10, 2), (10,))
    """

    f: SolverStep
    initial_state: PyTree
    inputs: Step

    @property
    def times(self) -> Array:
        """Time at the end of every step, `(T,)`."""
        return self.inputs.t1 * self.f.equation.direction

    def ys(self, states: PyTree) -> PyTree:
        """Take y out of states, of one time or of many."""
        return states.y if self.f.equation.carries else states


def from_diffrax(
    terms: PyTree,
    solver: Any,
    t0: Any,
    t1: Any,
    dt0: Any,
    y0: PyTree,
    args: PyTree = None,
    *,
    stepsize_controller: Any = None,
    solver_state: PyTree = None,
) -> Recurrence:
    """Write a fixed-step solve of diffrax as a recurrence.

    The arguments are those of `diffrax.diffeqsolve`, and so are the steps. (The last
    bit of a time may depend on how a program was compiled. It seeds an
    `UnsafeBrownianPath`: there, give the times by `StepTo`.)

    Explicit Runge-Kutta steps are written out stage by stage; any other solver takes
    its own step. What a solver remembers (`ReversibleHeun`, `LeapfrogMidpoint`, the
    last stage of `Kvaerno5`) is part of the state; the first stage of an explicit
    solver that is "first same as last" is evaluated anew, which gives the same numbers
    and leaves the state y alone. Increments of a Brownian path or of another control
    are found for all steps at once, and are inputs.

    Args:
        terms: What diffrax takes: `ODETerm`, `ControlTerm`, `MultiTerm`, ...
        solver: Any solver of diffrax; an implicit one needs tolerances of its own.
        t0: Where to begin.
        t1: Where to end, before or after t0.
        dt0: Size of the steps; the last is clipped to t1. None with `StepTo`.
        y0: A pytree of real arrays, float32 or float64.
        args: Passed to the vector field; derivatives with respect to it are exact.
        stepsize_controller: None or `ConstantStepSize()`, or `StepTo(ts)`.
        solver_state: State of the solver to begin with, as diffrax takes it.

    Returns:
        `f, initial_state, inputs` for `elk.evaluate`, in a `Recurrence`.

    Raises:
        TypeError: Something is not diffrax's, or a time is no number.
        ValueError: Steps that adapt, implicit tolerances that are missing, t0 and t1
            that are the same, or t0, t1 or dt0 traced without `StepTo`.

    Example:
        >>> import diffrax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop.diffrax import from_diffrax
        >>> term = diffrax.ODETerm(lambda t, y, args: jnp.stack([y[1], -y[0]]))
        >>> made = from_diffrax(term, diffrax.Tsit5(), 0, 6.25, 0.125, jnp.eye(2)[0])
        >>> sol = elk.evaluate(*made, method=elk.deer())
        >>> made.times.shape, sol.states.shape, round(float(sol.states[-1, 0]), 3)
        ((50,), (50, 2), 0.999)
    """
    controller = checked_controller(solver, stepsize_controller)
    check_terms(terms)
    check_times(t0, t1, dt0)
    if is_nowhere(t0, t1):
        raise ValueError(f"t0 and t1 are both {t0}: there is no step to take.")
    y0 = promoted(y0, (t0, t1, dt0), controller)
    terms, direction = forwards(terms, t0, t1)
    times = step_times(controller, t0, t1, dt0, direction)
    solver = differentiable(solver)
    equation = Equation(terms, solver, args, None, direction)
    first = jax.tree.map(lambda x: x[0], times)
    equation, state = beginning(equation, solver_state, y0, first)
    inputs = with_controls(equation, state, times)
    return Recurrence(SolverStep(equation), state, inputs)


def diffeqsolve(
    terms: PyTree,
    solver: Any,
    t0: Any,
    t1: Any,
    dt0: Any,
    y0: PyTree,
    args: PyTree = None,
    *,
    saveat: Any = None,
    stepsize_controller: Any = None,
    solver_state: PyTree = None,
    throw: bool = True,
    max_steps: int | None = None,
    adjoint: Any = "auto",
    method: Method | Auto | None = None,
    **options: Any,
) -> Any:
    """Solve as `diffrax.diffeqsolve`, in parallel over time.

    As in `elk.scan` there is no place for a status: what the method does not bring to
    convergence is stepped through, so that the result is always the trajectory.

    Args:
        terms: As for `from_diffrax`, and so are the following up to `args`.
        solver: A fixed-step solver.
        t0: Where to begin.
        t1: Where to end.
        dt0: Size of the steps, or None with `StepTo`.
        y0: Initial value.
        args: Passed to the vector field.
        saveat: `diffrax.SaveAt`: t0, t1, ts, steps, dense, fn and subs. Default t1.
            With steps there is an entry for every step, not padded to `max_steps`.
        stepsize_controller: As for `from_diffrax`.
        solver_state: As for `from_diffrax`.
        throw: Whether a failed root find of an implicit solver raises.
        max_steps: More steps than that are refused; None for any number.
        adjoint: Of `elk.evaluate`. Derivatives are those of the discrete steps, so
            `RecursiveCheckpointAdjoint()` and `DirectAdjoint()` mean `"auto"`.
        method: See `elk.evaluate`.
        **options: `tol`, `atol`, `max_iters`, `history`, `backend` and `kernel` of
            `elk.evaluate`.

    Returns:
        A `diffrax.Solution`; `stats` has `num_iters` besides.

    Raises:
        TypeError: An unknown option, or something is not diffrax's.
        ValueError: See `from_diffrax` (t0 and t1 may be the same); an adjoint that is
            not of the discrete steps; or what cannot be saved, such as times outside of
            t0 to t1, which give NaN where they are traced.

    Example:
        >>> import diffrax, jax.numpy as jnp
        >>> from elk_ssm.interop.diffrax import diffeqsolve
        >>> term = diffrax.ODETerm(lambda t, y, args: -args * y)
        >>> sol = diffeqsolve(
        ...     term, diffrax.Tsit5(), 0, 1, 0.01, jnp.ones(1), 2.0,
        ...     saveat=diffrax.SaveAt(ts=jnp.linspace(0, 1, 5)),
        ... )
        >>> sol.ys.shape, round(float(sol.ys[-1, 0]), 4)
        ((5, 1), 0.1353)
    """
    unknown = set(options) - _OPTIONS
    if unknown:
        raise TypeError(
            f"diffeqsolve got options {sorted(unknown)} that it does not know; events, "
            "progress meters and states of controllers need steps one by one."
        )
    how = {"stepsize_controller": stepsize_controller, "solver_state": solver_state}
    check_times(t0, t1, dt0)
    saveat = checked_saveat(saveat, t0, t1, dt0)
    problem = terms, solver, t0, t1, dt0, y0, args
    if is_nowhere(t0, t1):
        return _without_a_step(problem, saveat, how)
    made = from_diffrax(*problem, **how)
    count = made.inputs.t0.shape[0]
    if max_steps is not None and count > max_steps:
        raise ValueError(f"There are {count} steps, and max_steps is {max_steps}.")
    recurrence = canonicalize(*made)
    asked = Asked(method, adjoint=adjoint_named(adjoint), fall_back=True, **options)
    sol = run(recurrence, prepare(recurrence, asked))
    saved = save(made, sol, saveat)
    if throw:
        failed = saved.result != diffrax.RESULTS.successful
        saved = saved.result.error_if(saved, failed)
    return saved


def _without_a_step(problem: tuple, saveat: Any, how: dict) -> Any:
    """Return what diffrax does where t0 and t1 are the same: y0 at all times."""
    terms, solver, t0, t1, dt0, y0, _ = problem
    controller = checked_controller(solver, how["stepsize_controller"])
    check_terms(terms)
    promoted(y0, (t0, t1, dt0), controller)
    found = diffrax.diffeqsolve(
        *problem,
        saveat=saveat,
        max_steps=int(saveat.dense),  # an interpolation has room for one
        adjoint=diffrax.DirectAdjoint(),
        **how | {"stepsize_controller": controller},
    )
    return replace(found, stats=found.stats | {"num_iters": 0})
