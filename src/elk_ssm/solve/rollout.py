"""Rollouts: the states that f gives, of blocks side by side or step after step."""

from functools import partial

import jax
import jax.numpy as jnp

from elk_ssm._platforms import by_platform
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.solve.nodes import Blocks, in_order
from elk_ssm.solve.problem import Problem
from elk_ssm.solve.unrolling import equations_of, scan_by_platform


def roll_out(blocks: Blocks, nodes: Array) -> Array:
    """Return all T states, each block rolled out from the node before it."""
    states = nodes
    if blocks.size > 1:
        states = roll_out_whole(blocks, nodes)
    if blocks.rest == 0:
        return states
    before = states[-1] if states.shape[0] else blocks.initial
    tail = roll_out_sequentially(blocks.step, before, blocks.tail, blocks.rest)
    return jnp.concatenate([states, tail])


def roll_out_whole(blocks: Blocks, nodes: Array) -> Array:
    """Return the states of the whole blocks, each rolled out from the node before."""
    lanes = jax.vmap(blocks.step)

    def body(states: Array, j: Array) -> tuple[Array, Array]:
        states = lanes(states, blocks.entry(j)[0])
        return states, states

    begin = blocks.axis.shift(blocks.initial, nodes)
    by_step = jax.lax.scan(body, begin, jnp.arange(blocks.size))[1]
    return in_order(by_step)


def walk(blocks: Blocks, starts: Array, *, keep_all: bool, kernel: bool) -> Array:
    """Return all states `(C, n, D)` of blocks rolled out from `starts`.

    Or only the ends, `(1, n, D)`. With a kernel, in one where the platform has Triton.
    """
    lanes = jax.vmap(blocks.step)

    def body(states: Array, entry: tuple) -> tuple[Array, Array | None]:
        states = lanes(states, entry[1])
        return states, states if keep_all else None

    def by_steps(starts: Array, inputs: PyTree) -> Array:
        steps = jnp.arange(blocks.size), inputs
        ends, states = scan_by_platform(body, starts, steps, equations_of_step(blocks))
        return ends[None] if states is None else states

    def in_kernel(starts: Array, inputs: PyTree) -> Array:
        from elk_ssm.kernels import Walk, roll_out_lanes

        assert isinstance(blocks.step, partial)
        function, (consts,) = blocks.step.func, blocks.step.args
        how = Walk("all" if keep_all else "last", steps=blocks.size)
        found = roll_out_lanes(function, consts, starts, inputs, how)
        return found if keep_all else found[None]

    if not kernel:
        return by_steps(starts, blocks.inputs)
    return by_platform(starts, blocks.inputs, cuda=in_kernel, default=by_steps)


def roll_to_ends(blocks: Blocks, states: Array, first: Array | int = 0) -> Array:
    """Advance all blocks side by side from step `first` to their ends, `(n, D)`."""
    lanes = jax.vmap(blocks.step)

    def body(j: Array, states: Array) -> Array:
        return lanes(states, blocks.entry(j)[0])

    return jax.lax.fori_loop(first, blocks.size, body, states)


def roll_out_sequentially(
    step: FlatStep, initial: Array, inputs: PyTree, length: int
) -> Array:
    """Return the states of `length` steps from `initial`, one after the other."""

    def body(state: Array, inputs: PyTree) -> tuple[Array, Array]:
        state = step(state, inputs)
        return state, state

    return jax.lax.scan(body, initial, inputs, length=length)[1]


def roll_out_in_turn(problem: Problem, states: Array) -> Array:
    """Return the states `(n, D)` of this device, one device after the other.

    Every round all devices run through their steps, and one more starts from the right
    state; `states` stand in for what is not known yet.
    """
    axis, step, inputs = problem.axis, problem.step, problem.inputs

    def one_round(_: int, states: Array) -> Array:
        begin = axis.shift(problem.initial, states)[0]
        return roll_out_sequentially(step, begin, inputs, states.shape[0])

    return jax.lax.fori_loop(0, axis.size, one_round, states)


def equations_of_step(blocks: Blocks) -> int:
    """How many equations a step of these blocks has."""
    entry = jax.tree.map(lambda x: x[0, 0], blocks.inputs)
    return equations_of(blocks.step, blocks.initial, entry)
