"""What a solve by diffrax may be given here, and what a solver begins with."""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._types import PyTree
from elk_ssm.interop.diffrax_steps import (
    Carried,
    Equation,
    Step,
    innermost,
    time_dtype,
)
from elk_ssm.interop.diffrax_terms import diffrax


def checked_controller(solver: Any, controller: Any) -> Any:
    """Return the controller of the step size; raise for what does not fit."""
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(
            "solver must be a solver of diffrax, such as diffrax.Tsit5(); got "
            f"{solver!r}."
        )
    controller = diffrax.ConstantStepSize() if controller is None else controller
    if not isinstance(controller, diffrax.ConstantStepSize | diffrax.StepTo):
        raise ValueError(
            f"{type(controller).__name__} chooses a step by the states before it, so "
            "the steps are not known and cannot run side by side. Use dt0 with "
            "ConstantStepSize(), or the steps of one adaptive solve: "
            "stepsize_controller=diffrax.StepTo(ts), dt0=None."
        )
    finder = getattr(innermost(solver), "root_finder", None)
    limits = [getattr(finder, name, 0.0) for name in ("rtol", "atol")]
    # What stands for "those of the step size" is an object of diffrax's own.
    if not all(isinstance(x, float | int | jax.Array) for x in limits):
        raise ValueError(
            f"{type(solver).__name__} is implicit, and without adaptive steps its root "
            "finder needs tolerances of its own: root_finder=diffrax.VeryChord("
            "rtol=1e-8, atol=1e-8, norm=optimistix.max_norm)."
        )
    return controller


def promoted(y0: PyTree, times: tuple, controller: Any) -> PyTree:
    """Give y0 a dtype that holds the times too, as diffrax does."""
    if times[-1] is None and isinstance(controller, diffrax.ConstantStepSize):
        raise ValueError("Steps of a constant size need dt0.")
    if times[-1] is not None and isinstance(controller, diffrax.StepTo):
        raise ValueError("With StepTo the steps are known: pass dt0=None.")
    dtype = time_dtype(*times)
    return jax.tree.map(lambda y: jnp.asarray(y, jnp.result_type(y, dtype)), y0)


def beginning(
    equation: Equation, given: PyTree, y0: PyTree, first: Step
) -> tuple[Equation, PyTree]:
    """Say what the solver carries from step to step, and begin with it."""
    solver, args = equation.solver, equation.args
    found = solver.init(equation.terms, first.t0, first.t1, y0, args)
    if not jax.tree.leaves(found):
        return equation, y0
    if not isinstance(innermost(solver), diffrax.AbstractRungeKutta):
        found = found if given is None else given
        return equation._replace(carries="state"), Carried(y0, found)
    # First same as last: the last stage is the vector field at y, but for the tolerance
    # of an implicit solver.
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return equation, y0
    if given is None:
        stage = solver.func(equation.terms, first.t0, y0, args)
    else:
        stage = given[1]
    return equation._replace(carries="stage"), Carried(y0, stage)


def adjoint_named(adjoint: Any) -> Any:
    """Return the adjoint of `evaluate` that is meant; raise where there is none."""
    if isinstance(adjoint, diffrax.AbstractAdjoint):
        discrete = diffrax.RecursiveCheckpointAdjoint, diffrax.DirectAdjoint
        if not isinstance(adjoint, discrete):
            raise ValueError(
                f"Derivatives are those of the discrete steps, which is not what "
                f"{type(adjoint).__name__} gives."
            )
        return "auto"
    return adjoint
