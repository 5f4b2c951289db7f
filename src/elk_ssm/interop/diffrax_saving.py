"""What `diffrax.SaveAt` asks for, taken from a trajectory that is known.

Between steps diffrax interpolates by numbers that a step gives besides. The step is
taken again for them, side by side, from the states before the wanted times.
"""

from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._closures import hoist
from elk_ssm._types import Array, PyTree
from elk_ssm.interop.diffrax_steps import every, step_once
from elk_ssm.interop.diffrax_terms import diffrax
from elk_ssm.parallel.time_axis import LOCAL
from elk_ssm.solution import Solution


def is_sub(x: Any) -> bool:
    """Whether something is one of the `subs` of a `diffrax.SaveAt`."""
    return isinstance(x, diffrax.SubSaveAt)


def save(made: Any, sol: Solution, saveat: Any) -> Any:
    """Return a `diffrax.Solution` of a solved `Recurrence`."""
    if saveat.controller_state or saveat.made_jump:
        raise ValueError(
            "SaveAt(controller_state=True) and made_jump=True are for steps that adapt."
        )
    equation, inputs, initial = made.f.equation, made.inputs, made.initial_state
    direction, states = equation.direction, sol.states
    before = jax.tree.map(LOCAL.shift, initial, states)

    def again(index: Array) -> tuple:
        at = jax.tree.map(lambda x: x[index], (before, inputs))
        return step_once(equation, *at)[1:]

    def side_by_side(index: Array) -> tuple:
        one = jax.ShapeDtypeStruct((), index.dtype)
        return every(*hoist(again, one), index)

    def sub(one: Any) -> tuple[Array, PyTree]:
        return _save_one(made, states, one, side_by_side)

    # A list, as subs may be in tuples of two themselves.
    subs, tree = jax.tree.flatten(saveat.subs, is_leaf=is_sub)
    found = [sub(one) for one in subs]
    ts = jax.tree.unflatten(tree, [times * direction for times, _ in found])
    ys = jax.tree.unflatten(tree, [values for _, values in found])
    count = inputs.t0.shape[0]
    last = jax.tree.map(lambda x: x[-1], states)
    result: Any = diffrax.RESULTS.successful
    infos = None
    implicit = isinstance(equation.solver, diffrax.AbstractImplicitSolver)
    if saveat.dense or implicit:
        infos, results = side_by_side(jnp.arange(count))
        result = _first_failure(results) if implicit else result
    stats = {
        "num_steps": count,
        "num_accepted_steps": count,
        "num_rejected_steps": 0,
        "max_steps": None,
        "num_iters": sol.num_iters,
    }
    return diffrax.Solution(
        t0=inputs.t0[0] * direction,
        t1=inputs.t1[-1] * direction,
        ts=ts,
        ys=ys,
        interpolation=_interpolation(made, infos) if saveat.dense else None,
        stats=stats,
        result=result,
        solver_state=_memory(equation, last) if saveat.solver_state else None,
        controller_state=None,
        made_jump=None,
        event_mask=None,
    )


def _interpolation(made: Any, infos: PyTree) -> Any:
    """Return the solution between all steps."""
    equation, inputs = made.f.equation, made.inputs
    return diffrax.DenseInterpolation(
        ts=jnp.concatenate([inputs.t0[:1], inputs.t1]),
        ts_size=jnp.asarray(inputs.t1.shape[0] + 1),
        infos=infos,
        interpolation_cls=equation.solver.interpolation_cls,
        direction=jnp.asarray(equation.direction),
        t0_if_trivial=inputs.t0[0],
        y0_if_trivial=made.ys(made.initial_state),
    )


def _memory(equation: Any, last: PyTree) -> PyTree:
    """State of the solver to go on with; None for one that needs none."""
    if equation.carries == "stage":
        return False, last.solver_state
    return last.solver_state if equation.carries else None


def _first_failure(results: Any) -> Any:
    """Result of the first step that failed, else success."""
    failed = results != diffrax.RESULTS.successful
    return jax.tree.map(lambda x: x[jnp.argmax(failed)], results)


def _save_one(made: Any, states: PyTree, sub: Any, again: Any) -> tuple[Array, PyTree]:
    """Times, forwards, and values that one `SubSaveAt` asks for, in order of time."""
    equation, inputs = made.f.equation, made.inputs
    every, count = made.ys(states), inputs.t1.shape[0]
    times, values = [], []

    def add(ts: Array, ys: PyTree) -> None:
        times.append(ts)
        values.append(ys)

    if sub.t0:
        first = jax.tree.map(lambda y: y[None], made.ys(made.initial_state))
        add(inputs.t0[:1], first)
    if sub.ts is not None:
        ts = sub.ts.astype(inputs.t0.dtype) * equation.direction
        add(ts, _between(made, ts, again))
    if sub.steps:
        kept = slice(sub.steps - 1, None, sub.steps)
        add(inputs.t1[kept], jax.tree.map(lambda y: y[kept], every))
    if sub.t1 and not (sub.steps and count % sub.steps == 0):
        add(inputs.t1[-1:], jax.tree.map(lambda y: y[-1:], every))
    ts = jnp.concatenate(times)
    ys = jax.tree.map(lambda *parts: jnp.concatenate(parts), *values)
    if sub.ts is not None and sub.steps:
        order = jnp.argsort(ts, stable=True)
        ts, ys = ts[order], jax.tree.map(lambda y: y[order], ys)

    def shown(t: Array, y: PyTree) -> PyTree:
        return sub.fn(t * equation.direction, y, equation.args)

    return ts, jax.vmap(shown)(ts, ys)


def _between(made: Any, times: Array, again: Any) -> PyTree:
    """Interpolate within the steps that times belong to; a NaN outside of all."""
    inputs = made.inputs
    index = jnp.searchsorted(inputs.t1, times)
    index = jnp.minimum(index, inputs.t1.shape[0] - 1)
    interpolate = made.f.equation.solver.interpolation_cls

    def value(time: Array, index: Array, infos: PyTree) -> PyTree:
        local = interpolate(t0=inputs.t0[index], t1=inputs.t1[index], **infos)
        inside = (time >= inputs.t0[0]) & (time <= inputs.t1[-1])
        found = local.evaluate(time)
        return jax.tree.map(lambda y: jnp.where(inside, y, jnp.nan), found)

    return jax.vmap(value)(times, index, again(index)[0])
