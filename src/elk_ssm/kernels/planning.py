"""Whether a step fits a kernel: what has a rule, what runs ahead, where it is cut."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from elk_ssm._types import PyTree
from elk_ssm.kernels import products, rules
from elk_ssm.kernels.cuts import MOST_PARTS, Cuts, find_cuts, link_whole
from elk_ssm.kernels.registers import FEW_LANES, Launch, Load, choose
from elk_ssm.kernels.tiles import entries, largest
from elk_ssm.kernels.tracing import ENTRY, Stages, Step, level_of, levels, stage, trace

MOST_TILES = 1024
"""Operations on tiles of one step: beyond, compiling takes long and registers spill."""


class Plan(NamedTuple):
    """A step that fits a kernel.

    Attributes:
        step: Its flat program.
        stages: What runs when.
        cuts: Where its values are cut into tiles.
        launch: Lanes and warps.
    """

    step: Step
    stages: Stages
    cuts: dict[Any, Cuts]
    launch: Launch


def make_plan(
    function: Callable, consts: Any, carry: Any, entry: PyTree, lanes: int
) -> Plan | str:
    """Plan the kernel of a step, or say why there is none.

    Args:
        function: `function(consts, carry (D,), entry) -> carry`.
        consts: Its constants, or their shapes.
        carry: Shape and dtype of the state.
        entry: Shapes and dtypes of one entry.
        lanes: Number of lanes n.
    """
    step = trace(function, consts, carry, entry)
    why = _odd_state(step) or _odd_equation(step)
    if why is not None:
        return why
    few = lanes < FEW_LANES
    plan = _fit(step, lanes, with_products=few)
    return _fit(step, lanes, with_products=True) if isinstance(plan, str) else plan


def _odd_state(step: Step) -> str | None:
    before, after = step.carry.aval, step.result.aval
    if len(before.shape) != 1 or before.dtype.name not in ("float32", "float64"):
        return f"the state is {before.str_short()}, not a vector of float32 or float64"
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return f"the step turns {before.str_short()} into {after.str_short()}"
    return None


def _odd_equation(step: Step) -> str | None:
    """The refusal of the first equation that depends on the state, or prints."""
    level, equations = levels(step), step.equations
    moving = (e for e in equations if e.effects or level_of(e, level) > ENTRY)
    return next((why for e in moving if (why := rules.refusal(e))), None)


def _fit(step: Step, lanes: int, *, with_products: bool) -> Plan | str:
    def goes_ahead(equation: Any) -> bool:
        if rules.refusal(equation) is not None:
            return True
        return with_products and equation.primitive.name == "dot_general"

    stages = stage(step, goes_ahead)
    outside = [*stages.consts, *stages.entries, step.carry]
    odd = next((w for v in outside if (w := rules.odd_array(v.aval))), None)
    if any(0 in v.aval.shape for v in outside):
        odd = "an array without entries"
    if odd is not None:
        return f"the step reads {odd}"
    loop = link_whole(step.carry, 0, step.result, 0)
    cuts = find_cuts(stages.kernel, outside, rules.links, loop)
    if cuts is None:
        return f"slices cut the state into more than {MOST_PARTS} parts"
    tiles = sum(_operations(e, cuts) for e in stages.kernel)
    if tiles > MOST_TILES:
        return f"a step is {tiles} operations on tiles, more than {MOST_TILES}"
    launch = choose(_load(step, stages, cuts), lanes)
    return launch if isinstance(launch, str) else Plan(step, stages, cuts, launch)


def _operations(equation: Any, cuts: dict[Any, Cuts]) -> int:
    count = sum(prod(len(axis) - 1 for axis in cuts[v]) for v in equation.outvars)
    if equation.primitive.name != "dot_general":
        return count
    contracted = equation.params["dimension_numbers"][0][0]
    axes = cuts[equation.invars[0]]
    return count * prod(len(axes[i]) - 1 for i in contracted)


def _load(step: Step, stages: Stages, cuts: dict[Any, Cuts]) -> Load:
    """What a step holds in registers, in words of 32 bits."""
    words = step.carry.aval.dtype.itemsize // 4
    multiplied = (e for e in stages.kernel if e.primitive.name == "dot_general")
    values = [step.carry, *(v for e in stages.kernel for v in e.outvars)]
    return Load(
        held=words * sum(entries(cuts[v]) for v in stages.consts),
        each=words * sum(entries(cuts[v]) for v in (step.carry, *stages.entries)),
        tile=words * max(largest(cuts[v]) for v in values),
        product=words * max((products.volume(e, cuts) for e in multiplied), default=0),
    )
