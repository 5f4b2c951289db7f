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
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._loop import RUNNING
from elk_ssm._types import Array, PyTree
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.recursion import Recursion
from elk_ssm.parallel.time_axis import TimeAxis
from elk_ssm.parallel.unrolling import scan_by_platform
from elk_ssm.solution import Status
from elk_ssm.solve.carry import Carry
from elk_ssm.solve.nodes import Blocks
from elk_ssm.solve.rollout import equations_of_step
from elk_ssm.solve.stopping import Tolerance, rounding_floor

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
    blocks: Blocks, tolerance: Tolerance, backend: Backend, carry: Carry
) -> Carry:
    """Let f say whether nodes that look done are; each refusal is waited for longer.

    At the rounding floor an iterate is better than its update, which rounding made.
    """
    limited = carry.status == Status.precision_limit
    converged = (carry.status == Status.converged) & (carry.exact < blocks.unknowns)
    open_ = limited | converged
    wanted = open_ & (carry.iteration > carry.next_trial)

    def once(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # Nothing in here is the same in every round, or the compiler would hoist it
        # out of the loop and always run it.
        nodes = jnp.where(limited | state[1], carry.before, state[2])
        scale = jnp.where(state[1], 0, carry.scale)
        bound = tolerance.bound(scale), rounding_floor(scale)
        certain = is_certain(blocks, nodes, bound, backend)
        return jnp.zeros_like(state[0]), certain, jnp.where(certain, nodes, state[2])

    # A loop and no `cond`, of which `vmap` would run both branches.
    begin = wanted, jnp.zeros_like(wanted), carry.nodes
    _, certain, nodes = jax.lax.while_loop(lambda state: state[0], once, begin)
    refused = wanted & ~certain
    refusals = carry.refusals + refused
    later = carry.iteration + refusals
    return carry._replace(
        nodes=nodes,
        status=jnp.where(open_ & ~certain, RUNNING, carry.status),
        refusals=refusals,
        next_trial=jnp.where(refused, later, carry.next_trial),
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
    """Signs of nudges, `(count, dimension)`, which alternate in both directions."""
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
    misfit = jnp.minimum(jnp.max(off / unit, axis=-1), _LARGEST)
    # A NaN must not be dropped, as maxima may do.
    misfit = jnp.where(jnp.all(jnp.isfinite(off), axis=-1), misfit, jnp.inf)
    gain = jnp.max(jnp.abs(moved[1] - moved[0]) / unit, axis=-1)
    # Beside the trajectory f may be undefined; an error then counts as kept.
    gain = jnp.where(jnp.all(jnp.isfinite(moved[1]), axis=-1), gain, 1)
    return jnp.minimum(gain, _LARGEST), misfit, drift


def _shoot(blocks: Blocks, nodes: Array, unit: Array, floor: Array) -> Shot:
    """Roll every window out, from its node and from beside it."""
    count, dimension = nodes.shape
    width = max(-(-_WINDOW_STEPS // blocks.size), 1)
    start = blocks.axis.shift(blocks.initial, nodes)[::width]
    nudge = blocks.axis.shift(unit[0], unit)[::width]
    signs = _signs(len(start), dimension).astype(nodes.dtype)
    pair = jnp.stack([start, start + signs * nudge])
    moved = _through(blocks, pair, width)
    places = [_in_windows(x, width) for x in (nodes, unit, floor)]
    gain, misfit, drift = _measure((moved[:, 0], moved[:, 1]), *places)
    exists = jnp.arange(count) if blocks.real is None else jnp.where(blocks.real, 0, -1)
    exists = _in_windows(exists, width, fill=-1) >= 0
    gain, misfit = jnp.where(exists, gain, 0), jnp.where(exists, misfit, 0)
    end = jnp.maximum(jnp.sum(exists, axis=0) - 1, 0)
    lane = jnp.arange(len(start))
    return Shot(
        gain[end, lane],
        misfit[end, lane],
        jnp.max(gain, axis=0),
        jnp.max(misfit, axis=0),
        jnp.where(exists[end, lane, None], drift[end, lane], 0),
    )


def _through(blocks: Blocks, pair: Array, width: int) -> Array:
    """Both states at the ends of the `width` blocks of every window, `(w, 2, k, D)`."""
    lanes = jax.vmap(jax.vmap(blocks.step), (0, None))
    number, last = pair.shape[1], blocks.number - 1
    laid_out = width > 1 and blocks.size == 1 and blocks.laid_out
    inputs = blocks.inputs
    if laid_out:  # every step of a window where the next one finds it
        inputs = jax.tree.map(lambda x: _in_windows(x[0], width), inputs)

    def entry(place: Array, j: Array | int) -> PyTree:
        index = jnp.minimum(jnp.arange(number) * width + place, last)
        return _inputs(blocks, index, j)

    def block(pair: Array, given: tuple) -> tuple[Array, Array]:
        place, inputs = given
        if laid_out:
            pair = lanes(pair, inputs)
        else:
            pair = jax.lax.fori_loop(
                0, blocks.size, lambda j, pair: lanes(pair, entry(place, j)), pair
            )
        return pair, pair

    given = jnp.arange(width), inputs if laid_out else None
    return scan_by_platform(
        block, pair, given, blocks.size * equations_of_step(blocks)
    )[1]


def _in_windows(x: Array, width: int, fill: int | None = None) -> Array:
    """Fold `(n, ...)` into `(width, k, ...)`, the last window filled up."""
    more = -x.shape[0] % width
    rest = x[-1:] if fill is None else jnp.full_like(x[-1:], fill)
    filled = jnp.concatenate([x, jnp.repeat(rest, more, axis=0)]) if more else x
    return jnp.swapaxes(filled.reshape(-1, width, *x.shape[1:]), 0, 1)


def _inputs(blocks: Blocks, index: Array, j: Array | int) -> PyTree:
    """Inputs of step j of these blocks."""
    if blocks.laid_out:
        return jax.tree.map(lambda x: x[j, index], blocks.inputs)
    return jax.tree.map(lambda x: x[index, j], blocks.inputs)


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
