r"""Markov chains side by side, each of them in parallel over its samples.

A chain is the recurrence of its kernel with keys as inputs (`interop.blackjax`), solved
by `evaluate` and mapped over chains. One more step from every state, all at once, then
gives the kernel's infos and makes rejections exact: where the kernel returns a leaf of
its state as it was, bit by bit, so does the chain,

    x_t = F(x_{t-1}, k_t)   where it moved,    x_t = x_{t-1}   where it did not,

with F at the solution; the second line is a running maximum of the last move.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction, hoist
from elk_ssm._trees import Split, describe, is_float
from elk_ssm._types import Array, PyTree
from elk_ssm.evaluation import evaluate
from elk_ssm.interop.blackjax import (
    KernelStep,
    MarkovKernel,
    as_kernel,
    check_count,
    kernel_step,
    key_axes,
    mismatch,
)
from elk_ssm.solution import History, Solution, Status, int_status
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method
from elk_ssm.surrogate.jacobians import ZeroJacobian

_OPTIONS = {"tol", "atol", "max_iters", "history", "backend", "adjoint", "guess"}


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


def chains(
    kernel: Any,
    state: PyTree,
    key: Array,
    num_samples: int,
    num_chains: int | None = None,
    *,
    method: Method | Auto | None = None,
    info: bool | Callable[[Any], PyTree] = False,
    thinning: int = 1,
    keep: str = "all",
    parameters: PyTree = None,
    **options: Any,
) -> Chains:
    """Run Markov chains in parallel over samples and over chains.

    The samples are those of a loop over the same keys, `x, info = kernel.step(key, x)`,
    up to the tolerance; a decision to accept that hangs on less than that may fall the
    other way. Rejected steps repeat the state exactly.

    Chains that couple, because steps from two states with one key come closer, need few
    iterations; heavily rejecting or chaotic ones many. On a CPU the default steps
    through chains side by side, as a loop does. A kernel that cannot be differentiated
    in forward mode (a callback) runs by the default without derivatives, and by
    `elk.jacobi` and `elk.picard`. One that loops until it accepts (elliptical slices)
    must be able to accept wherever an iterate may be: with hard constraints use
    `elk.jacobi()`, whose iterates are states that the kernel returned.

    Args:
        kernel: A blackjax sampler, `blackjax.hmc(log_density, ...)`, or a pure function
            `step(key, state)` that returns the state, or the state and an info.
        state: One state of the kernel, from which all chains start, or one for each
            chain, stacked, such as `jax.vmap(sampler.init)(positions)`. Integers and
            booleans in it may depend on anything.
        key: One PRNG key, typed or raw: split into one for each chain, which is split
            into one for each step. Or keys of shape `(M,)`, one for each chain; or
            `(M, T)` (`(M, T * thinning)`), one for each step.
        num_samples: Number of samples T of each chain.
        num_chains: Number of chains M. May be left out where `state` is stacked, and
            must be where it cannot be told whether it is.
        method: What to run; see `elk_ssm.methods`.
        info: Whether to return the kernel's infos, or a function of one step's info
            that says what of it: `lambda info: info.acceptance_rate`.
        thinning: Steps of the kernel for each sample. The recurrence is then that of
            so many steps.
        keep: `"all"` states, or the `"last"` ones alone, without memory for the others:
            for steps that are to be forgotten. There is no info then.
        parameters: Pytree with a leading axis of M: what differs between chains, such
            as step sizes from `jax.vmap` over `blackjax.window_adaptation`. `kernel`
            is then a function of one chain's parameters that returns a kernel.
        **options: `tol`, `atol`, `max_iters`, `history`, `backend`, `adjoint` and
            `guess` (states, `(M, T, ...)`) of `evaluate`.

    Returns:
        `Chains`. A failed chain does not raise, and leaves the others alone: look at
        `status`, or call `elk.raise_if_failed`.

    Raises:
        TypeError: What was passed is no kernel, state, key or option; or the method
            differentiates a kernel that cannot be.
        ValueError: Shapes do not fit, or both meanings of `state` are possible.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> def metropolis(key, x):
        ...     ours, other = jax.random.split(key)
        ...     y = x + jax.random.normal(ours, x.shape)
        ...     ratio = jnp.exp(0.5 * jnp.sum(x**2) - 0.5 * jnp.sum(y**2))
        ...     return jnp.where(jax.random.uniform(other) < ratio, y, x)
        >>> found = elk.chains(metropolis, jnp.ones(2), jax.random.key(0), 50, 3)
        >>> elk.raise_if_failed(found).states.shape
        (3, 50, 2)
    """
    check_count("num_samples", num_samples)
    check_count("thinning", thinning)
    _check_options(options, keep, info)
    make = _maker(kernel, parameters)
    arrays = (jax.tree.map(jnp.asarray, x) for x in (state, parameters))
    state, parameters = arrays
    first_parameters = jax.tree.map(lambda x: x[0], parameters)
    keys_by_axes = key_axes(key), key
    first_key = _first(*keys_by_axes)
    starts = _starts(make(first_parameters), state, first_key, num_chains)
    num_chains = len(jax.tree.leaves(starts)[0])
    _check_leading("parameters", parameters, num_chains)
    keys = _keys(*keys_by_axes, num_chains, num_samples, thinning)
    guess = jax.tree.map(jnp.asarray, options.pop("guess", None))
    _check_leading("guess", guess, num_chains)
    options |= {"method": method, "keep": keep}

    def one(state: PyTree, keys: Array, parameters: PyTree, guess: PyTree) -> Chains:
        entry = keys[0] if thinning == 1 else keys[0, 0]
        step = kernel_step(make(parameters), state, entry, thinning)
        return _chain(step, state, keys, guess, info, options)

    return jax.vmap(one)(starts, keys, parameters, guess)


def _chain(
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
        program, consts = hoist(advance, state, keys[0])
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
    before = jax.tree.map(_shift, start, sol.states)
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


def _shift(first: Array, later: Array) -> Array:
    return jnp.concatenate([first[None], later[:-1]])


@partial(jax.jit, static_argnums=(0, 1))
def _step_by_step(
    advance: HoistedFunction, keep: str, consts: list, state: PyTree, keys: Array
) -> Chains:
    """Loop over the keys, as blackjax does."""

    def body(carry: tuple, keys: Array) -> tuple[tuple, tuple]:
        state, failed, step = carry
        after, said = advance(consts, state, keys)
        leaves = [x for x in jax.tree.leaves(after) if is_float(x)]
        finite = jnp.asarray([jnp.all(jnp.isfinite(x)) for x in leaves] or [True])
        failed = jnp.where((failed < 0) & ~jnp.all(finite), step, failed)
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


def _maker(kernel: Any, parameters: PyTree) -> Callable[[PyTree], MarkovKernel]:
    """Return what gives the kernel of a chain, from that chain's parameters."""
    if parameters is None:
        found = as_kernel(kernel)
        return lambda _: found
    if not callable(kernel):
        raise TypeError(
            "With parameters, kernel must be a function of one chain's parameters that "
            "returns a kernel, as in lambda p: blackjax.hmc(log_density, **p); got "
            f"{type(kernel).__name__}."
        )
    return lambda parameters: as_kernel(kernel(parameters))


def _starts(
    kernel: MarkovKernel, state: PyTree, key: Array, num_chains: int | None
) -> PyTree:
    """Return one start for each chain, `(M, ...)` on every leaf."""
    leaves = jax.tree.leaves(state)
    lead = {leaf.shape[:1] for leaf in leaves}
    stacked = len(lead) == 1 and lead != {()}
    first = jax.tree.map(lambda x: x[0], state) if stacked else None
    several = stacked and mismatch(kernel, first, key) is None
    if num_chains is None:
        if several:
            return state
        raise ValueError(
            "Pass num_chains, or a state of the kernel for each chain, with a leading "
            f"axis on every leaf; got {describe(state)}."
        )
    check_count("num_chains", num_chains)
    reason = mismatch(kernel, state, key)
    if several and reason is not None:
        if lead != {(num_chains,)}:
            raise ValueError(
                f"num_chains is {num_chains}, but state has starts for "
                f"{lead.pop()[0]} chains."
            )
        return state
    if several and lead == {(num_chains,)}:
        raise ValueError(
            f"state may be one start or {num_chains}: the kernel takes "
            f"{describe(state)} either way. Stack the starts, with a leading axis of "
            "chains on every leaf, and leave num_chains out."
        )
    if reason is not None:
        raise TypeError(reason)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_chains, *x.shape)), state)


def _keys(
    axes: int, key: Array, num_chains: int, num_samples: int, thinning: int
) -> Array:
    """Return the keys of every step, `(M, T)` or `(M, T, thinning)`."""
    steps = num_samples * thinning
    wanted = [(), (num_chains,), (num_chains, steps)]
    if axes > 2 or key.shape[:axes] != wanted[axes]:
        raise ValueError(
            f"key must be one PRNG key, {num_chains} of them, one for each chain, or "
            f"{(num_chains, steps)}, one for each step; got shape {key.shape[:axes]}."
        )
    if axes == 0:
        key = jax.random.split(key, num_chains)
    if axes < 2:
        key = jax.vmap(lambda key: jax.random.split(key, steps))(key)
    if thinning == 1:
        return key
    return key.reshape(num_chains, num_samples, thinning, *key.shape[2:])


def _first(axes: int, key: Array) -> Array:
    return key[(0,) * axes]


def _check_leading(name: str, tree: PyTree, num_chains: int) -> None:
    """Raise unless every leaf has a leading axis of chains."""
    if any(leaf.shape[:1] != (num_chains,) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            f"Every leaf of {name} needs a leading axis of {num_chains} chains; got "
            f"{describe(tree)}."
        )


def _check_options(options: dict[str, Any], keep: str, info: Any) -> None:
    unknown = set(options) - _OPTIONS
    if unknown:
        raise TypeError(f"chains got unknown options {sorted(unknown)}.")
    if keep not in ("all", "last"):
        raise ValueError(
            f'keep must be "all" or "last"; got {keep!r}. For every k-th state use '
            "thinning=k."
        )
    if keep == "last" and info:
        raise ValueError('There is no info with keep="last"; leave info out.')
