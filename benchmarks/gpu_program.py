"""Compile for an H100 that is only described, and count what a run would do.

XLA compiles for a GPU that is not there: `data/h100.txtpb` describes it. The compiled
program says which kernels it launches, in which loops, and what each reads and writes.
Counts are exact; the milliseconds made of them are a model:

    2 us a launch + 15 us a synchronisation + bytes over 2.5 TB/s

Conventions:

- Every operation that is not free (`FREE`) is one launch; so is a call of a library.
- A loop of known length runs its rounds without asking anybody. One of unknown length
  computes its condition before each round and once more at the end, and every time the
  host waits for it: rounds + 1 launches of what computes the condition, and as many
  synchronisations. That also holds for a loop that is never entered.
- A conditional is one synchronisation and one of its branches.
- An outermost loop of unknown length runs `passes` rounds, an inner one a single round
  each time, unless `rounds` names it.

Needs the CUDA plugin of JAX and `nvcc`, and no GPU: `constraints-gpu.txt`.

    compiled = compile_for_h100(function, *arrays_or_shapes)
    print(count(compiled, rounds={"passes": 12, "trial": 1, "failure": 0}))
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import hlo
from benchmarks.hlo import Op, Program

LAUNCH_US, SYNC_US, BYTES_PER_MS = 2.0, 15.0, 2.5e9
DESCRIPTION = Path(__file__).parent / "data" / "h100.txtpb"
# No kernel: names for what is there, and the ends of what was started before.
FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("opt-barrier", "add-dependency", "partition-id", "replica-id"),
    *("copy-done", "async-done", "async-update"),
}

Branches = Literal["cheap", "dear"]


class Compiled(NamedTuple):
    """A compiled program.

    Attributes:
        text: What XLA prints of it.
        temporary_bytes: Memory beside arguments and results.
        seconds: Processor seconds of tracing, lowering and compiling, the assembler's
            included; other programs on the machine do not stretch them.
    """

    text: str
    temporary_bytes: int = 0
    seconds: float = 0.0


class Loop(NamedTuple):
    """A loop: its depth, rounds each time (None if unknown), launches in the run."""

    depth: int
    rounds: int | None
    launches: float


class Counts(NamedTuple):
    """What a run of a program does.

    Attributes:
        launches: Kernels launched.
        syncs: How often the host waits for the device.
        bytes_moved: Bytes read and written by kernels.
        loops: All loops that are entered, inner ones first.
        temporary_bytes: Memory beside arguments and results.
        seconds: Processor seconds of tracing, lowering and compiling.
    """

    launches: float = 0.0
    syncs: float = 0.0
    bytes_moved: float = 0.0
    loops: tuple[Loop, ...] = ()
    temporary_bytes: int = 0
    seconds: float = 0.0

    @property
    def modelled_ms(self) -> float:
        """Time that the model gives; never a measurement."""
        return modelled_ms(self.launches, self.syncs, self.bytes_moved)

    def plus(self, other: Counts) -> Counts:
        """What both do, one after the other."""
        return self._replace(
            launches=self.launches + other.launches,
            syncs=self.syncs + other.syncs,
            bytes_moved=self.bytes_moved + other.bytes_moved,
            loops=self.loops + other.loops,
        )

    def __str__(self) -> str:
        return (
            f"{self.launches:,.0f} launches, {self.syncs:,.0f} syncs, "
            f"{self.bytes_moved / 1e9:.3g} GB moved, {self.temporary_bytes / 1e6:.3g} "
            f"MB temporary, model {self.modelled_ms:.3g} ms"
        )


class Assumed(NamedTuple):
    """What the text of a program leaves open; the arguments of `count`."""

    program: Program
    passes: int
    rounds: Mapping[str, int]
    branches: Branches


class Place(NamedTuple):
    """Where the count is: runs of this place, loops around it, names they took."""

    times: float = 1.0
    depth: int = 0
    taken: frozenset[str] = frozenset()


def modelled_ms(launches: float, syncs: float, bytes_moved: float) -> float:
    """Milliseconds of the model."""
    return (launches * LAUNCH_US + syncs * SYNC_US) / 1e3 + bytes_moved / BYTES_PER_MS


def can_compile() -> bool:
    """Whether the CUDA plugin is installed."""
    plugins = find_spec("jax_plugins")
    return plugins is not None and find_spec("jax_plugins.xla_cuda12") is not None


@cache
def described_device() -> Any:
    """The H100 that is described."""
    from jax.experimental import topologies

    nvcc = Path(sysconfig.get_path("purelib")) / "nvidia" / "cuda_nvcc" / "bin"
    os.environ["PATH"] = os.pathsep.join([str(nvcc), os.environ.get("PATH", "")])
    return topologies.get_topology_desc(
        topology_name="1x1x1",
        topology="1x1x1",
        platform="cuda",
        target_config=DESCRIPTION.read_text(),
    ).devices[0]


def compile_for_h100(function: Callable, *args: Any) -> Compiled:
    """Compile for arguments of these shapes and dtypes; nothing is run."""
    there = jax.sharding.SingleDeviceSharding(described_device())

    def described(x: Any) -> jax.ShapeDtypeStruct:
        # A key array is not described by `result_type`.
        dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
        return jax.ShapeDtypeStruct(jnp.shape(x), dtype, sharding=there)

    begun = _processor_seconds()
    program = jax.jit(function).trace(*jax.tree.map(described, args)).lower().compile()
    seconds = _processor_seconds() - begun
    memory = program.memory_analysis()
    return Compiled(program.as_text() or "", memory.temp_size_in_bytes, seconds)


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def count(
    compiled: Compiled,
    *,
    passes: int = 1,
    rounds: Mapping[str, int] | None = None,
    branches: Branches = "dear",
) -> Counts:
    """Count what a run does.

    Args:
        compiled: The program.
        passes: Rounds of each outermost loop of unknown length that `rounds` does not
            name.
        rounds: Rounds, in the whole run, of loops of unknown length, by a name that
            they bear (see `hlo`); of nested loops that bear it the outermost is meant.
            Of a conditional that bears the name: how often its dearer branch is taken,
            and else the cheaper one.
        branches: Which branch of the other conditionals is taken.

    Raises:
        ValueError: A loop bears two of the names.
    """
    program = hlo.parse(compiled.text)
    how = Assumed(program, passes, rounds or {}, branches)
    found = _computation(how, program.entry, Place())
    return found._replace(
        temporary_bytes=compiled.temporary_bytes, seconds=compiled.seconds
    )


def _computation(how: Assumed, name: str, place: Place) -> Counts:
    total = Counts()
    ops = how.program.computations[name]
    shapes = {op.name: op.shape for op in ops}
    for op in ops:
        if op.kind in FREE or place.times == 0:
            continue
        if op.kind == "while":
            total = total.plus(_loop(how, op, place))
        elif op.kind == "conditional":
            total = total.plus(_conditional(how, op, place))
        elif inner := _called(how.program, op):
            total = total.plus(_computation(how, inner, place))
        else:
            total = total.plus(_kernel(how.program, op, shapes, place.times))
    return total


def _called(program: Program, op: Op) -> str | None:
    """What a call runs, which is no kernel itself."""
    if op.kind not in ("call", "async-start"):
        return None
    names = op.called("to_apply") + op.called("calls")
    return next((name for name in names if name in program.computations), None)


def _kernel(program: Program, op: Op, shapes: dict[str, str], times: float) -> Counts:
    bytes_moved = times * hlo.moved(op, shapes, program)
    return Counts(times, 0.0, bytes_moved)


def _loop(how: Assumed, op: Op, place: Place) -> Counts:
    known, named = op.trip_count, _named(how, op, place)
    taken = place.taken | ({named} if named else set())
    inside = Place(place.times, place.depth + 1, taken)
    if known is not None:
        rounds, condition = known * place.times, Counts()
    else:
        rounds = _unknown_rounds(how, named, place)
        looks = rounds + place.times
        (asked,) = op.called("condition")
        condition = _computation(how, asked, inside._replace(times=looks))
        condition = condition.plus(Counts(syncs=looks))
    (body,) = op.called("body")
    found = _computation(how, body, inside._replace(times=rounds)).plus(condition)
    if rounds == 0:
        return found
    return found.plus(Counts(loops=(Loop(place.depth, known, found.launches),)))


def _unknown_rounds(how: Assumed, named: str | None, place: Place) -> float:
    if named is not None:
        return how.rounds[named]
    return place.times * (how.passes if place.depth == 0 else 1)


def _named(how: Assumed, op: Op, place: Place) -> str | None:
    """Which of the names in `rounds` this operation is the outermost to bear."""
    found = (op.names & how.rounds.keys()) - place.taken
    if len(found) > 1:
        raise ValueError(
            f"{op.name} bears more than one of the names in `rounds`: {sorted(found)}."
        )
    return next(iter(found), None)


def _conditional(how: Assumed, op: Op, place: Place) -> Counts:
    names = op.called("branch_computations")
    names = names or op.called("true_computation") + op.called("false_computation")

    def launches(name: str) -> tuple[float, float]:
        found = _computation(how, name, place)
        return found.launches, found.bytes_moved

    named, often = _named(how, op, place), place.times * (how.branches == "dear")
    if named is not None:
        place = place._replace(taken=place.taken | {named})
    ordered = sorted(names, key=launches)
    if named is not None:
        often = min(how.rounds[named], place.times)
    found = _computation(how, ordered[-1], place._replace(times=often))
    seldom = place._replace(times=place.times - often)
    found = found.plus(_computation(how, ordered[0], seldom))
    return found.plus(Counts(syncs=place.times))
