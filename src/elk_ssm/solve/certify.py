r"""Whether small residuals are a small error: nodes are shot at, and errors added up.

A step bounds the error only where its operator is the Jacobian of f. A stand-in is not,
nor is the derivative of a jump or of what a `stop_gradient` hides; then residuals add
up along time. So nodes that look converged are tried by f itself. Time is cut into
windows of some 32 steps; from the node before each, f is rolled out twice side by side,
once as it is and once from a state that is a tolerance away in every dimension. In
units of the tolerance, window k then has

    m_k   how far its rollout ends from the nodes          its own misfit
    g_k   how far apart the two rollouts end               its gain

    e_k = g_k e_{k-1} + m_k                    the error that the nodes have at its end
    a_k = max(1, g_k a_{k-1})                  what one error of a tolerance grows to

and the nodes are accepted where e stays below 3 a: where they are as good as a
trajectory that was once put wrong by three tolerances (e adds up what may cancel).
Misfits at the rounding floor count as none, as the sequential trajectory has them too:
they cancel, unless they all go one way. So the misfits as they are, with their sign,
are added up for each dimension as well, and e is at least the size of their sum.

Cost: two evaluations of f for every step, 32 steps deep, once in a solve that succeeds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._loop import RUNNING
from elk_ssm._types import Array, PyTree
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.recursion import Recursion
from elk_ssm.parallel.time_axis import TimeAxis
from elk_ssm.solution import Status
from elk_ssm.solve.carry import Carry
from elk_ssm.solve.nodes import Blocks

_WINDOW_STEPS = 32
_LARGEST = 1e30
_SLACK = 3


class Shot(NamedTuple):
    """What windows do to errors, each `(k,)`, in units of the tolerance.

    Attributes:
        gain: g at the end of each window.
        misfit: m at the end of each window.
        peak_gain: The largest gain anywhere inside.
        peak_misfit: The largest misfit anywhere inside.
        drift: Misfit of each dimension at the end of each window, signed, `(k, D)`.
    """

    gain: Array
    misfit: Array
    peak_gain: Array
    peak_misfit: Array
    drift: Array


class Growth(NamedTuple):
    """An interval of time: its gain, the error it adds, what a tolerance grows to.

    And the drift that it adds, `(D,)`.
    """

    gain: Array
    error: Array
    allowed: Array
    drift: Array


@jax.named_scope("trial")
def try_out(
    blocks: Blocks,
    bound: tuple[Array, Array],
    backend: Backend,
    before: Carry,
    after: Carry,
) -> Carry:
    """Let f say whether nodes that look done are; each refusal is waited for longer.

    `bound` holds the largest error and the rounding floor of each node, `(n, D)`. At
    the rounding floor an iterate is better than its update, which rounding made.
    """
    limited = after.status == Status.precision_limit
    converged = (after.status == Status.converged) & (after.exact < blocks.unknowns)
    nodes = jnp.where(limited, before.nodes, after.nodes)
    open_ = limited | converged
    wanted = open_ & (before.iteration >= before.next_trial)

    def once(state: tuple[Array, Array]) -> tuple[Array, Array]:
        # Nothing in here is the same in every round, or the compiler would hoist it
        # out of the loop and run it in every pass.
        tried = jnp.where(state[1], before.nodes, nodes)
        certain = is_certain(blocks, tried, bound, backend)
        return jnp.zeros_like(state[0]), certain

    # A loop and no `cond`, of which `vmap` would run both branches in every pass.
    _, certain = jax.lax.while_loop(
        lambda state: state[0], once, (wanted, jnp.zeros_like(wanted))
    )
    refusals = before.refusals + (wanted & ~certain)
    later = after.iteration + refusals
    return after._replace(
        nodes=jnp.where(certain, nodes, after.nodes),
        status=jnp.where(open_ & ~certain, RUNNING, after.status),
        refusals=refusals,
        next_trial=jnp.where(wanted & ~certain, later, before.next_trial),
    )


def is_certain(
    blocks: Blocks, nodes: Array, bound: tuple[Array, Array], backend: Backend
) -> Array:
    """Whether the error of the nodes is below the tolerance, `()`.

    Args:
        blocks: The recurrence in n blocks.
        nodes: States at their ends, `(n, D)`.
        bound: The largest error of each node, and its rounding floor, `(n, D)`.
        backend: How windows are combined.
    """
    unit, floor = _unit(bound), bound[1]
    return is_accepted(_shoot(blocks, nodes, unit, floor), backend, blocks.axis)


def is_accepted(shot: Shot, backend: Backend, axis: TimeAxis) -> Array:
    """Whether windows that do this to errors keep all of them small, `()`."""
    error, allowed, drift = _accumulate(shot, backend, axis)
    error = jnp.maximum(error, jnp.max(jnp.abs(drift), axis=1))
    # Written so that a NaN fails it.
    worst = shot.peak_gain * error + shot.peak_misfit
    fine = worst <= _SLACK * jnp.maximum(1, shot.peak_gain * allowed)
    return axis.all(fine)


def shot_of_blocks(
    roll: Callable[[Array], Array],
    started: Array,
    ends: Array,
    bound: tuple[Array, Array],
) -> Shot:
    """Return what blocks do to errors, each of them a window that was rolled out.

    Args:
        roll: From where the blocks start, `(n, D)`, to their ends.
        started: Where they were started, `(n, D)`; the nodes.
        ends: Where they ended.
        bound: The largest error and the rounding floor of each end, `(n, D)`.
    """
    unit, floor = _unit(bound), bound[1]
    nudge = jnp.concatenate([unit[:1], unit[:-1]])
    beside = roll(started + _signs(*started.shape).astype(started.dtype) * nudge)
    nodes = jnp.concatenate([started[1:], ends[-1:]])
    gain, misfit, drift = _measure((ends, beside), nodes, unit, floor)
    return Shot(gain, misfit, gain, misfit, drift)


def _unit(bound: tuple[Array, Array]) -> Array:
    """What errors are measured in: the tolerance, where rounding is not larger."""
    allowed_error, floor = bound
    tiny = jnp.finfo(floor.dtype).tiny
    return jnp.maximum(jnp.maximum(allowed_error, floor), tiny)


def _signs(count: int, dimension: int) -> Array:
    """Signs of nudges, `(count, dimension)`, of which no two rows are alike for long."""
    signs = jnp.arange(dimension) * 7 // 3 + jnp.arange(count)[:, None]
    return 1 - 2 * (signs % 2)


def _measure(
    moved: tuple[Array, Array], nodes: Array, unit: Array, floor: Array
) -> tuple[Array, Array, Array]:
    """Return gain, misfit and drift where a rollout and its twin have arrived."""
    drift = (moved[0] - nodes) / unit
    drift = jnp.clip(jnp.where(jnp.isfinite(drift), drift, 0), -_LARGEST, _LARGEST)
    off = jnp.abs(moved[0] - nodes)
    off = jnp.where(off <= floor, 0, off)
    misfit = jnp.minimum(jnp.max(off / unit, axis=1), _LARGEST)
    # A NaN must not be dropped, as maxima may do.
    misfit = jnp.where(jnp.all(jnp.isfinite(off), axis=1), misfit, jnp.inf)
    gain = jnp.max(jnp.abs(moved[1] - moved[0]) / unit, axis=1)
    # Beside the trajectory f may be undefined; an error then counts as kept.
    gain = jnp.where(jnp.all(jnp.isfinite(moved[1]), axis=1), gain, 1)
    return jnp.minimum(gain, _LARGEST), misfit, drift


def _shoot(blocks: Blocks, nodes: Array, bound: Array, floor: Array) -> Shot:
    """Roll every window out, from its node and from beside it."""
    count, dimension = nodes.shape
    width = max(-(-_WINDOW_STEPS // blocks.size), 1)
    first = jnp.arange(0, count, width)
    start = blocks.axis.shift(blocks.initial, nodes)[first]
    nudge = blocks.axis.shift(bound[0], bound)[first]
    signs = _signs(len(first), dimension).astype(nodes.dtype)
    pair = jnp.stack([start, start + signs * nudge])
    lanes = jax.vmap(jax.vmap(blocks.step), (0, None))

    def through(pair: Array, index: Array) -> Array:
        """Both states through the block that ends at each of these nodes."""

        def body(j: Array | int, pair: Array) -> Array:
            return lanes(pair, _inputs(blocks, index, j))

        if blocks.size == 1:
            return body(0, pair)
        return jax.lax.fori_loop(0, blocks.size, body, pair)

    def node(carry: tuple[Array, Shot], j: Array) -> tuple[tuple[Array, Shot], None]:
        pair, seen = carry
        index = jnp.minimum(first + j, count - 1)
        exists = first + j < count
        if blocks.real is not None:
            exists = exists & blocks.real[index]
        moved = through(pair, index)
        places = nodes[index], bound[index], floor[index]
        gain, misfit, drift = _measure((moved[0], moved[1]), *places)
        now = Shot(
            gain,
            misfit,
            jnp.maximum(seen.peak_gain, gain),
            jnp.maximum(seen.peak_misfit, misfit),
            drift,
        )
        seen = jax.tree.map(partial(_where, exists), now, seen)
        return (moved, seen), None

    nothing = jnp.zeros(first.shape, nodes.dtype)
    begin = pair, Shot(nothing, nothing, nothing, nothing, jnp.zeros_like(start))
    return jax.lax.scan(node, begin, jnp.arange(width))[0][1]


def _inputs(blocks: Blocks, index: Array, j: Array | int) -> PyTree:
    """Inputs of step j of these blocks."""
    if blocks.laid_out:
        return jax.tree.map(lambda x: x[j, index], blocks.inputs)
    return jax.tree.map(lambda x: x[index, j], blocks.inputs)


def _where(condition: Array, chosen: Array, other: Array) -> Array:
    """Choose among windows."""
    return jnp.where(condition.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)


def _accumulate(shot: Shot, backend: Backend, axis: TimeAxis) -> "Claim":
    """Error, allowed error and drift that enter each window."""
    one, zero = jnp.ones_like(shot.gain), jnp.zeros_like(shot.gain[0])
    entries = Growth(shot.gain, shot.misfit, one, shot.drift)
    every = _Accumulated(entries, Claim(zero, zero + 1, jnp.zeros_like(shot.drift[0])))
    return run(every, backend=backend, axis=axis, before=True)


class Claim(NamedTuple):
    """An error, the one that is allowed, and the drift."""

    error: Array
    allowed: Array
    drift: Array


@dataclass(frozen=True)
class _Accumulated(Recursion[Claim, Growth]):
    entries: Growth
    initial: Claim

    @property
    def fan_in(self) -> int:
        return 16

    def step(self, state: Claim, entry: Growth) -> tuple[Claim, Claim]:
        state = self.act(entry, state)
        return state, state

    def element(self, entry: Growth) -> Growth:
        return entry

    def combine(self, earlier: Growth, later: Growth) -> Growth:
        return _then(earlier, later)

    def known(self, state: Claim) -> Growth:
        return Growth(jnp.zeros_like(state.error), *state)

    def state(self, element: Growth) -> Claim:
        return Claim(element.error, element.allowed, element.drift)

    def nothing(self) -> Growth:
        zero = jnp.zeros_like(self.initial.error)
        return Growth(zero + 1, zero, zero, jnp.zeros_like(self.initial.drift))


def _then(first: Growth, second: Growth) -> Growth:
    """One interval after another; numbers are cut off before they overflow."""

    def limited(x: Array) -> Array:
        return jnp.minimum(x, _LARGEST)

    return Growth(
        limited(second.gain * first.gain),
        limited(second.gain * first.error + second.error),
        limited(jnp.maximum(second.gain * first.allowed, second.allowed)),
        jnp.clip(
            second.gain[..., None] * first.drift + second.drift, -_LARGEST, _LARGEST
        ),
    )
