r"""Where a model is run: its groups of dimensions side by side, its steps on a mesh.

A model whose matrices are all block-diagonal is n models of b dimensions each that know
nothing of one another; a diagonal one is D models of a single dimension. So algorithms
are written for a `Dense` model and mapped over the groups of others.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.lgssm import Problem
from elk_ssm.parallel.mesh import Shards, on_mesh
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis

_GROUPS = "elk_ssm.groups"
# From the problem of one group to arrays and `Dense` operators over time, and sums.
Task: TypeAlias = Callable[[Problem, TimeAxis], tuple[Any, Any]]


def by_groups(task: Task, problem: Problem, axis: TimeAxis = LOCAL) -> tuple[Any, Any]:
    """Run a task on every group of dimensions that never mix.

    Returns:
        What it found over time, in the structure of the model, and its sums.
    """
    kind = problem.initial_covariance
    if not kind.grouped:
        return task(problem, axis)
    mean, operators, data = problem[0], problem.operators, problem[6:9]
    parts = kind.cut(mean), *map(kind.apart, operators), *map(kind.cut, data)
    groups = Problem._make((*parts, *problem[9:]))
    over_time = (int(name in problem.varying) for name in problem._fields[:9])
    axes = Problem._make((*over_time, None, None))
    one = jax.vmap(
        lambda group: task(group, axis),
        in_axes=(axes,),
        out_axes=(1, 0),
        axis_name=_GROUPS,
    )
    found, sums = one(groups)
    return kind.join(found), jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def num_groups() -> int:
    """Return how many groups are run side by side, from inside of a task."""
    try:
        return jax.lax.axis_size(_GROUPS)
    except NameError:
        return 1


def run_task(
    task: Task, problem: Problem, shards: Shards | None = None
) -> tuple[Any, Any]:
    """Run a task on one device, or on every device's piece of a problem."""
    if shards is None:
        return by_groups(task, problem)
    axis, length = shards.axis, problem.num_steps
    timed, every = problem.varying, problem._fields[:9]
    common = {name: getattr(problem, name) for name in every if name not in timed}

    def on_device(timed: dict, common: dict) -> tuple[Any, Any]:
        whole = Problem(**timed, **common)
        return by_groups(task, piece_of(axis, whole, axis.exists(length)), axis)

    return on_mesh(shards, on_device, timed, common, length)


def piece_of(axis: TimeAxis, problem: Problem, exists: Array | None) -> Problem:
    """Say of a problem that it is this device's piece of a longer one."""
    observed = problem.observed
    if exists is not None:
        observed = observed & exists[:, None]
    begins = axis.axis_index == 0
    return problem._replace(observed=observed, begins=begins, exists=exists)
