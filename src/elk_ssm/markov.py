r"""Markov chains side by side, each of them in parallel over its samples.

Chains are `interop.chain` mapped over starts, keys and parameters. A key is split into
one for each chain, and that into one for each step, as a loop would.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._options import check_count
from elk_ssm._trees import describe
from elk_ssm._types import Array, ArrayLike, PyTree
from elk_ssm.interop.blackjax import (
    MarkovKernel,
    as_kernel,
    kernel_step,
    key_axes,
    mismatch,
    takes,
)
from elk_ssm.interop.chain import Chains, run_chain
from elk_ssm.interop.positions import agrees, is_not_false, may_follow
from elk_ssm.parallel.backend import Backend
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method
from elk_ssm.solve.options import Adjoint


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
    guess: PyTree = None,
    tol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_iters: int | None = None,
    history: int = 0,
    backend: Backend = "auto",
    adjoint: Adjoint = "auto",
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
        guess: First iterates, states `(M, T, ...)`.
        tol: Relative tolerance, as for `evaluate`; so all that follow.
        atol: Absolute tolerance.
        max_iters: Largest number of iterations.
        history: Record so many first iterations.
        backend: Which scans to use.
        adjoint: How derivatives solve their linear recursion.

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
    check_count("num_samples", num_samples, 1)
    check_count("thinning", thinning, 1)
    if num_chains is not None:
        check_count("num_chains", num_chains, 1)
    _check_kept(keep, info)
    make = _maker(kernel, parameters)
    state, parameters = jax.tree.map(jnp.asarray, (state, parameters))
    _check_leading(parameters, _number(num_chains, state))
    axes = key_axes(key)
    first = make(jax.tree.map(lambda x: x[0], parameters))
    starts = _starts(first, state, key[(0,) * axes], num_chains)
    num_chains = len(jax.tree.leaves(starts)[0])
    _check_leading(parameters, num_chains)
    keys = _keys(axes, key, num_chains, num_samples, thinning)
    guess = jax.tree.map(jnp.asarray, guess)
    if guess is not None:
        _check_guess(guess, starts, num_samples)
    options: dict[str, Any] = {"method": method, "keep": keep, "tol": tol, "atol": atol}
    options |= {"max_iters": max_iters, "history": history}
    options |= {"backend": backend, "adjoint": adjoint}

    by_position = _follow_from_positions(make, starts, parameters)

    def one(state: PyTree, keys: Array, parameters: PyTree, guess: PyTree) -> Chains:
        entry = keys[0] if thinning == 1 else keys[0, 0]
        step = kernel_step(make(parameters), state, entry, thinning, by_position)
        return run_chain(step, state, keys, guess, info, options)

    return jax.vmap(one)(starts, keys, parameters, guess)


def _follow_from_positions(
    make: Callable[[PyTree], MarkovKernel], starts: PyTree, parameters: PyTree
) -> bool:
    """Whether the starts of all chains follow from their positions."""
    first = jax.tree.map(lambda x: x[0], (parameters, starts))
    if not may_follow(make(first[0]), first[1]):
        return False
    return is_not_false(jax.vmap(lambda p, x: agrees(make(p), x))(parameters, starts))


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
    if not takes(kernel, 1):
        raise TypeError(
            "With parameters, kernel must be a function of one chain's parameters; "
            "this one takes other arguments. Leave parameters out for a kernel "
            "step(key, state)."
        )
    return lambda parameters: as_kernel(kernel(parameters))


def _number(num_chains: int | None, state: PyTree) -> int | None:
    """Return the number of chains, as far as it is seen before the kernel is."""
    lead = {leaf.shape[:1] for leaf in jax.tree.leaves(state)}
    if num_chains is None and len(lead) == 1 and lead != {()}:
        return lead.pop()[0]
    return num_chains


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
        reason = mismatch(kernel, state, key)
        if reason is not None:  # neither one state of the kernel nor several
            raise TypeError(mismatch(kernel, first, key) if stacked else reason)
        raise ValueError(
            "Pass num_chains, or a state of the kernel for each chain, with a leading "
            f"axis on every leaf; got {describe(state)}."
        )
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


def _check_leading(parameters: PyTree, num_chains: int | None) -> None:
    """Raise unless every leaf has a leading axis of chains, of a number if known."""
    wanted = "chains" if num_chains is None else f"{num_chains} chains"
    for leaf in jax.tree.leaves(parameters):
        if leaf.ndim and num_chains in (None, leaf.shape[0]):
            continue
        raise ValueError(
            f"Every leaf of parameters needs a leading axis of {wanted}; got "
            f"{describe(parameters)}."
        )


def _check_guess(guess: PyTree, starts: PyTree, num_samples: int) -> None:
    """Raise `ValueError` unless a guess holds states of the kernel, over time."""

    def over_time(x: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(x), num_samples, *x.shape[1:]), x.dtype)

    expected = jax.tree.map(over_time, starts)
    structure: Any = jax.tree.structure(guess)
    fits = structure == jax.tree.structure(expected) and all(
        a.shape == b.shape
        for a, b in zip(jax.tree.leaves(guess), jax.tree.leaves(expected))
    )
    if not fits:
        raise ValueError(
            "guess must hold states of the kernel, with leading axes (chains, "
            f"samples), {describe(expected)}; got {describe(guess)}."
        )


def _check_kept(keep: str, info: Any) -> None:
    if keep not in ("all", "last"):
        raise ValueError(
            f'keep must be "all" or "last"; got {keep!r}. For every k-th state use '
            "thinning=k."
        )
    if not isinstance(info, bool) and not callable(info):
        raise TypeError(
            "info must be True, False or a function of one step's info, such as lambda "
            f"info: info.acceptance_rate; got {info!r}."
        )
    if keep == "last" and info:
        raise ValueError('There is no info with keep="last"; leave info out.')
