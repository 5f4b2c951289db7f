r"""One Markov chain, in parallel over its samples.

A chain is the recurrence of its kernel with keys as inputs (`interop.blackjax`), solved
by `evaluate`. One more step from every state, all at once, then gives the kernel's
infos and makes rejections exact: where the kernel returns a leaf of its state as it
was, bit by bit, so does the chain,

    x_t = F(x_{t-1}, k_t)   where it moved,    x_t = x_{t-1}   where it did not,

with F at the solution; the second line is a running maximum of the last move.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction, hoist
from elk_ssm._showing import as_html, show
from elk_ssm._trees import Split, is_float
from elk_ssm._types import Array, PyTree
from elk_ssm.evaluation import evaluate
from elk_ssm.interop.blackjax import KernelStep
from elk_ssm.solution import History, Solution, Status, int_status, solved
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.nodes import shift
from elk_ssm.surrogate.jacobians import ZeroJacobian


class Chains(NamedTuple):
    """Samples of M chains with what became of each solve; see `Solution`.

    Attributes:
        states: States of the kernel, `(M, T, ...)` on every leaf; `(M, ...)`, the last
            ones, with `keep="last"`.
        status: Values of `Status`, `(M,)`. `elk.raise_if_failed` names the chains.
        num_iters: Iterations of each chain, `(M,)`.
        residual_norm: `(M,)`.
        step_norm: `(M,)`.
        failed_step: `(M,)`; -1 where no step failed.
        history: `History` of each chain, `(M, n)`, or None when not asked for.
        plan: What `auto` chose for each chain, None for other methods.
        info: What the kernel said at each step, `(M, T, ...)`, with a third axis of the
            thinned steps where there are any; None when not asked for.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Chains._fields[0], elk.Chains._fields[-1]
        ('states', 'info')
    """

    states: PyTree
    status: Array
    num_iters: Array
    residual_norm: Array
    step_norm: Array
    failed_step: Array
    history: History | None = None
    plan: Any = None
    info: PyTree = None

    @property
    def converged(self) -> Array:
        """Whether each chain converged, boolean, of the shape of `status`."""
        return self.status == Status.converged

    @property
    def _elements(self) -> str:
        """What `raise_if_failed` calls what failed."""
        return "chains"

    def __repr__(self) -> str:
        return show("Chains", **solved(self))

    def _repr_html_(self) -> str:
        return as_html(self)


def run_chain(
    f: KernelStep,
    state: PyTree,
    keys: Array,
    guess: PyTree,
    info: bool | Callable[[Any], PyTree],
    options: dict[str, Any],
) -> Chains:
    """Run one chain."""

    def advance(state: PyTree, keys: Array) -> tuple[PyTree, PyTree]:
        after, said = f.advance(state, keys)
        if not info or said is None:
            return after, None
        if not callable(info):
            return after, said
        return after, info(said) if f.thinning == 1 else jax.vmap(info)(said)

    method, keep = options["method"], options["keep"]
    if isinstance(method, Auto) and method.strategy == "sequential":

        def checked(state: PyTree, keys: Array) -> tuple[PyTree, PyTree, Array]:
            after, said = advance(state, keys)
            # A density of zero is a density: as for every method, unknowns count.
            leaves = filter(is_float, jax.tree.leaves(f.reduce(after)))
            finite = [jnp.all(jnp.isfinite(x)) for x in leaves]
            return after, said, jnp.all(jnp.asarray(finite or [True]))

        program, consts = hoist(checked, state, keys[0])
        return _step_by_step(program, keep, consts, state, keys)
    start = f.reduce(state)
    guess = None if guess is None else f.reduce(guess)
    sol = _solve(f, start, keys, options | {"guess": guess})
    if keep == "last":
        return Chains(f.restore(sol.states), *sol[1:])

    def again(unknowns: PyTree, keys: Array) -> tuple[PyTree, PyTree, PyTree]:
        before = f.restore(unknowns)
        return before, *advance(before, keys)

    program, consts = hoist(again, start, keys[0])
    before = jax.tree.map(shift, start, sol.states)
    states, said = _retrace(program, consts, before, keys, state, sol)
    return Chains(states, *sol[1:], info=said)


def _solve(f: KernelStep, start: PyTree, keys: Array, options: dict) -> Solution:
    """Evaluate, without derivatives where there are none and nobody asked for them."""
    try:
        return evaluate(f, start, keys, **options)
    except Exception as error:  # whatever a primitive without a derivative raises
        reason = _why_no_derivative(f, start, keys[0])
        if reason is None:
            raise
        if options["method"] is not None:
            raise TypeError(
                "The method differentiates the kernel, which cannot be differentiated "
                "in forward mode; use elk.jacobi(), elk.picard() or "
                f'elk.auto(strategy="sequential"). What JAX said: {reason}'
            ) from error
    free = Auto(linearization=ZeroJacobian())
    return evaluate(f, start, keys, **options | {"method": free})


def _why_no_derivative(f: KernelStep, start: PyTree, keys: Array) -> str | None:
    """Say why f has no forward-mode derivative, None if it has one."""
    split = Split.of(start)
    floats, discrete = split.part(start)

    def pushed(floats: list) -> tuple:
        def step(floats: list) -> list:
            return split.part(f(split.join(floats, discrete), keys))[0]

        return jax.jvp(step, (floats,), (floats,))

    try:
        jax.eval_shape(pushed, floats)
    except Exception as error:  # as above
        return str(error).splitlines()[0]
    return None


@partial(jax.jit, static_argnums=0)
def _retrace(
    again: HoistedFunction,
    consts: list,
    unknowns: PyTree,
    keys: Array,
    state: PyTree,
    sol: Solution,
) -> tuple[PyTree, PyTree]:
    """Take one more step from every state: infos, and rejections that are exact."""
    length = keys.shape[0]
    before, after, said = jax.vmap(partial(again, consts))(unknowns, keys)
    steps = jnp.arange(length)
    sound = (sol.failed_step < 0) | (steps < sol.failed_step)

    def held(first: Array, before: Array, after: Array) -> Array:
        axes = tuple(range(1, after.ndim))
        moved = sound
        if is_float(first):
            moved &= jnp.any(before != after, axis=axes)
            finite = jnp.all(jnp.isfinite(after), axis=axes)
            moved &= finite | (sol.status == Status.converged)
        last = jax.lax.cummax(jnp.where(moved, steps, -1))
        stays = (last < 0).reshape(length, *(1,) * len(axes))
        return jnp.where(stays, first, after[jnp.maximum(last, 0)])

    return jax.tree.map(held, state, before, after), said


@partial(jax.jit, static_argnums=(0, 1))
def _step_by_step(
    advance: HoistedFunction, keep: str, consts: list, state: PyTree, keys: Array
) -> Chains:
    """Loop over the keys, as blackjax does."""

    def body(carry: tuple, keys: Array) -> tuple[tuple, tuple]:
        state, failed, step = carry
        after, said, finite = advance(consts, state, keys)
        failed = jnp.where((failed < 0) & ~finite, step, failed)
        # As for every method, what follows a failed step is the last finite state.
        after = jax.tree.map(lambda a, b: jnp.where(failed < 0, a, b), after, state)
        kept = (None, None) if keep == "last" else (after, said)
        return (after, failed, step + 1), kept

    zero = jnp.asarray(0, jnp.int32)
    (last, failed, _), (states, said) = jax.lax.scan(
        body, (state, zero - 1, zero), keys
    )
    converged, nonfinite = int_status(Status.converged), int_status(Status.nonfinite)
    status = jnp.where(failed < 0, converged, nonfinite)
    one, nothing = zero + 1, jnp.zeros(())
    states = last if keep == "last" else states
    return Chains(states, status, one, nothing, nothing, failed, info=said)
