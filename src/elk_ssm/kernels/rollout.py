r"""A recurrence in one kernel: every program walks its lanes through all steps.

    x_t = f(c, x_{t-1}, e_t),   t = 1, ..., C,   side by side for n lanes

The state stays in registers, entries stream in one step ahead of their use, and states
stream out. Lanes are blocks of one sequence, or sequences; n = 1 is a plain scan. With
`reverse` the entries are taken from the last to the first, and the states stored where
their entries lie: an adjoint w_{t-1} = J_t^T w_t + v_t is such a walk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from typing import Literal as OneOf

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from elk_ssm._jax import Literal
from elk_ssm._types import Array, PyTree
from elk_ssm.kernels import rules
from elk_ssm.kernels.memory import Lanes, Place, load, store
from elk_ssm.kernels.planning import Plan, make_plan
from elk_ssm.kernels.registers import Launch
from elk_ssm.kernels.tiles import Tiled, begins, constant, spread
from elk_ssm.kernels.tracing import run_ahead, shapes_of

NAME = "elk_rollout"
"""What the kernel is called in a profile."""


class Walk(NamedTuple):
    """How lanes are walked.

    Attributes:
        keep: `"all"` states, or the `"last"`.
        reverse: Whether time runs from the last entry to the first.
        time_axis: 0 for entries and states `(C, n, ...)`, 1 for `(n, C, ...)`.
        steps: Number of steps C, needed when there are no entries.
        launch: Lanes and warps of a program; None chooses.
    """

    keep: OneOf["all", "last"] = "all"
    reverse: bool = False
    time_axis: int = 0
    steps: int | None = None
    launch: Launch | None = None


def why_not(
    function: Callable, consts: Any, starts: Any, entries: PyTree
) -> str | None:
    """Say why a step does not fit a kernel, naming the primitive or the size, or None.

    Args:
        function: `function(consts, state (D,), entry) -> (D,)`.
        consts: Its constants; arrays or their shapes, as for the other arguments.
        starts: States before the first step, `(n, D)`.
        entries: Entries, leaves with two leading axes for time and lanes.
    """
    plan = plan_of(function, consts, starts, entries)
    return plan if isinstance(plan, str) else None


def roll_out_lanes(
    function: Callable,
    consts: Any,
    starts: Array,
    entries: PyTree,
    walk: Walk = Walk(),  # noqa: B008
    *,
    interpret: bool = False,
) -> Array:
    """Walk n lanes through C steps in one kernel.

    Args:
        function: `function(consts, state (D,), entry) -> (D,)`.
        consts: What it closes over.
        starts: States before the first step, `(n, D)`.
        entries: Leaves `(C, n, ...)`, or `(n, C, ...)` with `walk.time_axis` 1.
        walk: Which states are kept, in which direction, of how many steps.
        interpret: Evaluate the kernel in JAX, on any platform.

    Returns:
        States `(C, n, D)` or `(n, C, D)`, or the last `(n, D)`.

    Raises:
        ValueError: The step does not fit a kernel, see `why_not`; or it was
            differentiated: derivatives are those of the recurrence, not of the kernel.
    """
    plan = plan_of(function, consts, starts, entries)
    if isinstance(plan, str):
        raise ValueError(f"The step does not fit a kernel: {plan}.")
    how = walk._replace(
        steps=_number_of_steps(entries, walk), launch=walk.launch or plan.launch
    )

    @jax.custom_jvp
    def run(values: list[Any], starts: Array, entries: PyTree) -> Array:
        step = plan.step._replace(values=values)
        given = run_ahead(step, plan.stages, jax.tree.leaves(entries))
        return _call(plan, how, starts, given, interpret=interpret)

    run.defjvp(_no_derivative)
    with jax.named_scope(NAME):
        return run(plan.step.values, starts, entries)


def _no_derivative(_: Any, __: Any) -> Any:
    raise ValueError(
        "The rollout kernel has no derivative: differentiate the recurrence that its "
        "states solve instead."
    )


def plan_of(
    function: Callable, consts: Any, starts: Any, entries: PyTree
) -> Plan | str:
    """Plan the kernel of a step, or say why there is none; arguments as `why_not`."""
    (carry,), entry = shapes_of([starts], drop=1), shapes_of(entries, drop=2)
    return make_plan(function, consts, carry, entry, jnp.shape(starts)[0])


def _number_of_steps(entries: PyTree, walk: Walk) -> int:
    if walk.keep not in ("all", "last") or walk.time_axis not in (0, 1):
        raise ValueError(f"keep is 'all' or 'last', time_axis 0 or 1; got {walk}.")
    found = {jnp.shape(leaf)[walk.time_axis] for leaf in jax.tree.leaves(entries)}
    found |= set() if walk.steps is None else {walk.steps}
    if len(found) != 1:
        raise ValueError(
            f"The number of steps must be one number; got {sorted(found)}."
        )
    return found.pop()


def _call(
    plan: Plan, how: Walk, starts: Array, given: tuple[list, list], *, interpret: bool
) -> Array:
    """Start the kernel on constants and entries that have run ahead."""
    number, size = starts.shape
    shape: tuple[int, ...] = (number, size)
    if how.keep == "all":
        steps = how.steps or 0
        shape = (number, steps, size) if how.time_axis else (steps, number, size)
    assert how.launch is not None
    params = triton.CompilerParams(num_warps=how.launch.warps, num_stages=1)
    return pl.pallas_call(
        _kernel(plan, how, number),
        grid=(-(-number // how.launch.lanes),),
        out_shape=jax.ShapeDtypeStruct(shape, starts.dtype),
        compiler_params=params,
        interpret=interpret,
        name=NAME,
    )(starts, *given[0], *given[1])


def _kernel(plan: Plan, how: Walk, number: int) -> Callable:
    """The program of one tile of lanes."""
    stages, cuts, carry = plan.stages, plan.cuts, plan.step.carry
    launch, steps = how.launch, how.steps
    assert launch is not None
    assert steps is not None

    def elk_rollout(*refs: Any) -> None:
        zero = pl.program_id(0) * 0
        here = Lanes(pl.program_id(0) * launch.lanes, launch.lanes, number)
        of_consts = dict(zip(stages.consts, refs[1:]))
        of_entries = dict(zip(stages.entries, refs[1 + len(of_consts) :]))

        def read(refs: dict[Any, Any], place: Place) -> dict[Any, Tiled]:
            return {v: load(r, cuts[v], v.aval.dtype, place) for v, r in refs.items()}

        def entry(index: Any) -> dict[Any, Tiled]:
            time = steps - 1 - index if how.reverse else index
            return read(of_entries, Place(zero, here, time, how.time_axis))

        consts = read(of_consts, Place(zero))
        start = read({carry: refs[0]}, Place(zero, here))
        state = _Registers(plan, consts, launch.lanes)

        def body(index: Any, tiles: tuple[list, list]) -> tuple[list, list]:
            # Of 64 bits in double precision, where the other indices have 32.
            index = jax.lax.convert_element_type(index, jnp.int32)
            following = entry(jnp.minimum(index + 1, steps - 1))
            after = state.step(*tiles)
            if how.keep == "all":
                time = steps - 1 - index if how.reverse else index
                store(refs[-1], after, Place(zero, here, time, how.time_axis))
            return list(after.parts.values()), state.flat(following)

        first = state.flat(start), state.flat(entry(zero))
        last = jax.lax.fori_loop(0, steps, body, first)[0]
        if how.keep == "last":
            store(refs[-1], state.named([carry], last)[carry], Place(zero, here))

    return elk_rollout


class _Registers(NamedTuple):
    """One step on tiles, between the flat lists of tiles that a loop carries."""

    plan: Plan
    consts: dict[Any, Tiled]
    lanes: int

    def flat(self, values: dict[Any, Tiled]) -> list[Any]:
        """Tiles of all values in order."""
        return [tile for value in values.values() for tile in value.parts.values()]

    def named(self, variables: list[Any], tiles: list[Any]) -> dict[Any, Tiled]:
        """Values of variables from their tiles."""
        rest, found = iter(tiles), {}
        for v in variables:
            cuts = self.plan.cuts[v]
            parts = {begin: next(rest) for begin in begins(cuts)}
            found[v] = Tiled(cuts, v.aval.dtype, self.lanes, parts)
        return found

    def step(self, state: list[Any], entry: list[Any]) -> Tiled:
        """Evaluate the step; the state after it."""
        plan, stages = self.plan, self.plan.stages
        env = {**self.consts, **self.named([plan.step.carry], state)}
        env |= self.named(stages.entries, entry)

        def value(atom: Any) -> Tiled:
            if isinstance(atom, Literal):
                return constant(atom.val, atom.val.dtype)
            return env[atom]

        for equation in stages.kernel:
            values = [value(atom) for atom in equation.invars]
            env.update(
                zip(equation.outvars, rules.evaluate(equation, values, plan.cuts))
            )
        after = spread(value(plan.step.result), self.lanes)
        parts = {begin: after.tile(begin) for begin in begins(after.cuts)}
        return Tiled(after.cuts, after.dtype, after.lanes, parts)
