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

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._loop import RUNNING
from elk_ssm._types import Array
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.recursion import Recursion
from elk_ssm.parallel.time_axis import TimeAxis
from elk_ssm.solution import Status
from elk_ssm.solve.carry import Carry
from elk_ssm.solve.nodes import Blocks
from elk_ssm.solve.shooting import LARGEST, Shot, Twins, shoot, worst_of
from elk_ssm.solve.stopping import Tolerance, rounding_floor, scale_of

_SLACK = 3


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
    """Let f say whether nodes that look done are; each refusal is waited for longer."""
    limited = carry.status == Status.precision_limit
    converged = (carry.status == Status.converged) & (carry.exact < blocks.unknowns)
    open_ = limited | converged
    wanted = open_ & (carry.iteration > carry.next_trial)

    def once(state: tuple[Array, Array]) -> tuple[Array, Array]:
        # Nothing in here is the same in every round, or the compiler would hoist it
        # out of the loop and always run it.
        nodes = jnp.where(state[1], 0, carry.nodes)
        scale = carry.scale
        if scale is None:
            scale = scale_of(nodes, blocks.size)
        bound = tolerance.bound(scale), rounding_floor(scale)
        return jnp.zeros_like(state[0]), is_certain(blocks, nodes, bound, backend)

    # A loop and no `cond`, of which `vmap` would run both branches.
    begin = wanted, jnp.zeros_like(wanted)
    _, certain = jax.lax.while_loop(lambda state: state[0], once, begin)
    refused = wanted & ~certain
    refusals = carry.refusals + refused.astype(jnp.int32)
    later = carry.iteration + refusals
    return carry._replace(
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
    return is_accepted(shoot(blocks, nodes, bound), backend, blocks.axis)


def is_accepted(shot: Shot, backend: Backend, axis: TimeAxis) -> Array:
    """Whether windows that do this to errors keep all of them small, `()`."""
    error, allowed, drift = _accumulate(shot, backend, axis)
    error = jnp.maximum(error, jnp.max(jnp.abs(drift), axis=1))
    # Written so that a NaN fails it.
    worst = shot.peak_gain * error + shot.peak_misfit
    fine = worst <= _SLACK * jnp.maximum(1, shot.peak_gain * allowed)
    return axis.all(fine)


def is_plainly_accepted(twins: Twins, states: Array) -> Array:
    """Whether errors stay small by the worst window alone, `()`; cheap.

    With gains below g < 1 and misfits and drifts below m, they add up to less than
    m / (1 - g) wherever they are looked at.

    Args:
        twins: The windows.
        states: Those inside, `(C, k, D)`, which are finite where this says yes.
    """
    gain, misfit = worst_of(twins, states)
    return misfit <= _SLACK * (1 - gain)


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
        return 8

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
        return jnp.minimum(x, LARGEST)

    return Growth(
        limited(second.gain * first.gain),
        limited(second.gain * first.error + second.error),
        limited(jnp.maximum(second.gain * first.allowed, second.allowed)),
        jnp.clip(
            second.gain[..., None] * first.drift + second.drift, -LARGEST, LARGEST
        ),
    )
