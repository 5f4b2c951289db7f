r"""Whether a step fits a kernel, and with how many lanes and warps.

Registers bound everything: a multiprocessor has 65,536, a thread at most 255. What a
program holds through all steps is the matrices, once, and for every lane the state and
the entry of the next step. With one lane the entries of the matrices are spread over
the threads of up to 16 warps; with 16 the hardware's matrix product repeats them in
many threads, which fits up to 32 x 32. Few lanes get a program each: they run at the
same time on different multiprocessors, and none waits for another.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from elk_ssm._types import PyTree
from elk_ssm.kernels import products, rules
from elk_ssm.kernels.cuts import MOST_PIECES, Cuts, find_cuts, link_whole
from elk_ssm.kernels.tiles import entries, largest, power_of_two
from elk_ssm.kernels.tracing import ENTRY, Stages, Step, level_of, levels, stage, trace

WARP = 32
MOST_WARPS = 16
HELD = 104
"""Registers of a thread for what is held through all steps, of 128 with 16 warps."""

FEW_LANES = 1024
"""Below, every lane has a program of its own."""

SMALL, SQUARE, SHARED = 256, 32, 8192
"""What 16 lanes of a program can share: products that small are written out, matrices
have at most so many rows, and all of them together so many entries."""

MOST_TILES = 1024
"""Operations on tiles of one step: beyond, compiling takes long and registers spill."""


class Launch(NamedTuple):
    """How a kernel is started: lanes of a program, and its warps of 32 threads."""

    lanes: int
    warps: int


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
    if odd is not None:
        return f"the step reads {odd}"
    loop = link_whole(step.carry, 0, step.result, 0)
    cuts = find_cuts(stages.kernel, outside, rules.links, loop)
    if cuts is None:
        return f"slices cut the state into more than {MOST_PIECES} pieces"
    tiles = sum(_operations(e, cuts) for e in stages.kernel)
    if tiles > MOST_TILES:
        return f"a step is {tiles} operations on tiles, more than {MOST_TILES}"
    launch = _choose(step, stages, cuts, lanes)
    return launch if isinstance(launch, str) else Plan(step, stages, cuts, launch)


def _operations(equation: Any, cuts: dict[Any, Cuts]) -> int:
    count = sum(prod(len(axis) - 1 for axis in cuts[v]) for v in equation.outvars)
    if equation.primitive.name != "dot_general":
        return count
    contracted = equation.params["dimension_numbers"][0][0]
    axes = cuts[equation.invars[0]]
    return count * prod(len(axes[i]) - 1 for i in contracted)


def _choose(
    step: Step, stages: Stages, cuts: dict[Any, Cuts], lanes: int
) -> Launch | str:
    words = step.carry.aval.dtype.itemsize // 4
    held = words * sum(entries(cuts[v]) for v in stages.consts)
    each = words * sum(entries(cuts[v]) for v in (step.carry, *stages.entries))
    volumes = [
        products.volume(e, cuts)
        for e in stages.kernel
        if e.primitive.name == "dot_general"
    ]
    values = [step.carry, *(v for e in stages.kernel for v in e.outvars)]
    wide = words * max([*(largest(cuts[v]) for v in values), *volumes])
    if volumes:
        size = products.MATRIX if lanes >= FEW_LANES and _share(volumes, words) else 1
    else:
        size = min(power_of_two(lanes), max(1, WARP // wide))
    threads = power_of_two(-(-max(held + size * each, size * wide // 4) // HELD))
    if size == products.MATRIX and max(volumes) > SMALL:
        threads = max(threads, 4 * WARP)
    warps = max(1, threads // WARP)
    if warps > MOST_WARPS:
        return (
            f"matrices and state of {held + each:,} words, products of {wide:,} do not "
            "fit the registers"
        )
    return Launch(size, warps)


def _share(volumes: list[int], words: int) -> bool:
    """Whether 16 lanes can share the matrices of a program."""
    return words * max(volumes) <= SQUARE**2 and words * sum(volumes) <= SHARED
