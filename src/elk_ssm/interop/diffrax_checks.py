"""What a solve by diffrax may be given here, and what a solver begins with."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._recurrence import as_array
from elk_ssm._trees import describe
from elk_ssm._types import PyTree
from elk_ssm.interop.diffrax_saving import is_sub
from elk_ssm.interop.diffrax_steps import (
    Carried,
    Equation,
    Step,
    innermost,
    time_dtype,
)
from elk_ssm.interop.diffrax_terms import diffrax


def check_terms(terms: PyTree) -> None:
    """Raise `TypeError` for what is no term, such as the vector field itself."""

    def whole(x: Any) -> bool:
        return isinstance(x, diffrax.AbstractTerm) or callable(x)

    leaves = jax.tree.leaves(terms, is_leaf=whole)
    wrong = [x for x in leaves if not isinstance(x, diffrax.AbstractTerm)]
    if wrong or not leaves:
        name = type(wrong[0] if wrong else terms).__name__
        raise TypeError(
            "terms must be terms of diffrax: wrap a function f(t, y, args) in "
            f"diffrax.ODETerm(f); got {name}."
        )


def check_times(t0: Any, t1: Any, dt0: Any) -> None:
    """Raise unless t0, t1 and dt0 are one number each; dt0 may be None."""
    for name, value in (("t0", t0), ("t1", t1), ("dt0", dt0)):
        if name == "dt0" and value is None:
            continue
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        kinds = jnp.floating, jnp.integer
        real = any(jnp.issubdtype(array.dtype, kind) for kind in kinds)
        if not real or array.ndim:
            got = describe(array) if real else repr(value)
            error = ValueError if real else TypeError
            raise error(
                f"{name} must be one number; got {got}. The order is terms, solver, "
                "t0, t1, dt0, y0."
            )


def is_nowhere(t0: Any, t1: Any) -> bool:
    """Whether t0 and t1 are known and the same, so that there is no step to take."""
    return not is_traced(t0) and not is_traced(t1) and bool(t0 == t1)


def checked_saveat(saveat: Any, t0: Any, t1: Any, dt0: Any) -> Any:
    """Return what to save, t1 by default; raise for times that are not on the way."""
    saveat = diffrax.SaveAt(t1=True) if saveat is None else saveat
    if not isinstance(saveat, diffrax.SaveAt):
        raise TypeError(
            "saveat must be a diffrax.SaveAt, such as diffrax.SaveAt(ts=...); got "
            f"{type(saveat).__name__}."
        )

    for sub in jax.tree.leaves(saveat.subs, is_leaf=is_sub):
        if sub.ts is not None and not any(map(is_traced, (sub.ts, t0, t1))):
            _check_saved(sub.ts, t0, t1, np.dtype(time_dtype(t0, t1, dt0)))
    return saveat


def _check_saved(ts: Any, t0: Any, t1: Any, dtype: np.dtype) -> None:
    """Raise `ValueError` unless times lie between t0 and t1, in this order."""
    times, begin, end = (np.asarray(x).astype(dtype) for x in (ts, t0, t1))
    way = f"t0 = {t0} and t1 = {t1}"
    low, high = min(begin, end), max(begin, end)
    outside = times[~((times >= low) & (times <= high))]
    if outside.size:
        raise ValueError(
            f"saveat.ts must lie between {way}; got {outside.flat[0].item()}."
        )
    back = np.flatnonzero(np.diff(times) * (-1 if end < begin else 1) < 0)
    if back.size:
        order = "decreasing" if end < begin else "increasing"
        pair = " before ".join(str(x.item()) for x in times[back[0] :][:2])
        raise ValueError(f"saveat.ts must be {order} between {way}; got {pair}.")


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
        raise ValueError(
            "Steps of a constant size need dt0; where the times are known, pass "
            "stepsize_controller=diffrax.StepTo(ts), dt0=None."
        )
    if times[-1] is not None and isinstance(controller, diffrax.StepTo):
        raise ValueError("With StepTo the steps are known: pass dt0=None.")
    dtype = time_dtype(*times)
    y0 = jax.tree.map(partial(as_array, name="y0"), y0)
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
