r"""A Markov chain kernel as a recurrence: (f, x_0, keys).

A kernel of blackjax is a pure function `step(key, state) -> (state, info)`, so a chain
is x_t = f(x_{t-1}, u_t) with the key of step t as u_t, and what `evaluate` finds is the
chain that a loop over the same keys would have drawn, sample for sample.

**What is solved for.** The state of most kernels is a position z with numbers that
follow from it, log p(z) and its gradient. As unknowns they would let an iterate hold a
density that is not that of its position, on which acceptance then decides, and make the
Jacobian larger. So where the fields of the state are named `position`, `logdensity` and
`logdensity_grad`, and no others, the unknown is z and the rest is computed again by
`init`: one more evaluation of the density a step, in exchange for iterations. Of any
other state all floating-point leaves are unknowns. Leaves that are not floating point
are inputs where they evolve on their own, unknowns in digits otherwise; see `discrete`.

Nothing here imports blackjax: any object with `step` and `init`, or any function of
(key, state), is a kernel.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._options import check_count
from elk_ssm._trees import describe
from elk_ssm._types import Array, PyTree
from elk_ssm.interop.discrete import InDigits, in_digits
from elk_ssm.interop.positions import follows_from_position, same_kind, same_structure

__all__ = ["KernelStep", "to_recurrence"]

_ORDER = (
    "kernel must be step(key, state), which returns a state of the same kind, or the "
    "state and an info."
)


class MarkovKernel(NamedTuple):
    """A kernel in one form.

    Attributes:
        step: `step(key, state) -> (state, info)`.
        init: `init(position) -> state`, or None.
    """

    step: Callable[[Array, PyTree], tuple[PyTree, PyTree]]
    init: Callable[[PyTree], PyTree] | None = None


@dataclass(frozen=True, eq=False)
class KernelStep:
    """The recurrence of a kernel, on its unknowns.

    Attributes:
        kernel: The kernel.
        by_position: Whether the unknowns are the position alone.
        digits: Which of their leaves are written in digits.
        thinning: Steps of the kernel in one step of the recurrence; above 1 its input
            has a leading axis of so many keys.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop import blackjax as chain
        >>> def gibbs(key, state):
        ...     return 0.5 * state + jax.random.normal(key, state.shape)
        >>> f, x0, keys = chain.to_recurrence(gibbs, jnp.zeros(2), jax.random.key(0), 9)
        >>> isinstance(f, chain.KernelStep), f(x0, keys[0]).shape
        (True, (2,))
    """

    kernel: MarkovKernel
    by_position: bool
    digits: InDigits
    thinning: int = 1

    def __call__(self, unknowns: PyTree, keys: Array) -> PyTree:
        """Evaluate one step."""
        return self.reduce(self.advance(self.restore(unknowns), keys)[0])

    def reduce(self, state: PyTree) -> PyTree:
        """Return the unknowns of a state of the kernel, or of states over time."""
        return self.digits.write(state.position if self.by_position else state)

    def restore(self, unknowns: PyTree) -> PyTree:
        """Return the kernel's state with these unknowns."""
        found = self.digits.read(unknowns)
        if self.by_position and self.kernel.init is not None:
            return self.kernel.init(found)
        return found

    def states(self, unknowns: PyTree) -> PyTree:
        """Return the kernel's states over time, from unknowns with a leading axis."""
        return jax.vmap(self.restore)(unknowns)

    def advance(self, state: PyTree, keys: Array) -> tuple[PyTree, PyTree]:
        """Go `thinning` steps of the kernel; info then has a leading axis of them."""
        if self.thinning == 1:
            return self.kernel.step(keys, state)
        return jax.lax.scan(lambda x, key: self.kernel.step(key, x), state, keys)


def to_recurrence(
    kernel: Any, state: PyTree, key: Array, num_samples: int, *, thinning: int = 1
) -> tuple[KernelStep, PyTree, Array]:
    """Write a chain as `(f, x_0, keys)` for `evaluate`, `diagnose`, `sweep_noise`, ...

    `f.states(sol.states)` turns the solution into states of the kernel. `elk.chains`
    does all that for many chains at once.

    Args:
        kernel: A blackjax sampler such as `blackjax.mala(log_density, step_size)`, or
            a pure function `step(key, state)` that returns the state, or the state and
            an info.
        state: State of the kernel, such as `sampler.init(position)`.
        key: A JAX PRNG key, typed or raw, which is split into one key for each step as
            blackjax's own loops do.
        num_samples: Number of samples T.
        thinning: Steps of the kernel for each sample.

    Returns:
        f, a `KernelStep`; x_0, its unknowns: the position where the rest of the state
        follows from it, otherwise the state; and the keys, `(T,)`, or `(T, thinning)`
        where that is above 1.

    Raises:
        TypeError: What was passed is no kernel or no key, or a step does not return
            the state's structure and dtypes.
        ValueError: A count is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop import blackjax as chain
        >>> def metropolis(key, x):
        ...     ours, other = jax.random.split(key)
        ...     y = x + jax.random.normal(ours, x.shape)
        ...     ratio = jnp.exp(0.5 * jnp.sum(x**2) - 0.5 * jnp.sum(y**2))
        ...     return jnp.where(jax.random.uniform(other) < ratio, y, x)
        >>> f, x0, keys = chain.to_recurrence(
        ...     metropolis, jnp.ones(2), jax.random.key(0), 20
        ... )
        >>> sol = elk.evaluate(f, x0, keys)
        >>> f.states(sol.states).shape, int(sol.status)
        ((20, 2), 0)
    """
    check_count("num_samples", num_samples, 1)
    check_count("thinning", thinning, 1)
    found = as_kernel(kernel)
    state = jax.tree.map(jnp.asarray, state)
    axes = key_axes(key)
    if axes:
        raise ValueError(f"key must be one PRNG key; got an array of {axes} axes.")
    keys = jax.random.split(key, num_samples * thinning)
    f = kernel_step(found, state, keys[0], thinning)
    if thinning > 1:
        keys = keys.reshape(num_samples, thinning, *keys.shape[1:])
    return f, f.reduce(state), keys


def kernel_step(
    kernel: MarkovKernel,
    state: PyTree,
    key: Array,
    thinning: int = 1,
    by_position: bool | None = None,
) -> KernelStep:
    """Check a kernel at one state and key, and find its unknowns."""
    reason = mismatch(kernel, state, key)
    if reason is not None:
        raise TypeError(reason)
    if by_position is None:
        by_position = follows_from_position(kernel, state)
    unknowns = state.position if by_position else state
    plain = InDigits(
        jax.tree.structure(unknowns), (None,) * len(jax.tree.leaves(unknowns))
    )
    once = KernelStep(kernel, by_position, plain)
    return KernelStep(kernel, by_position, in_digits(once, unknowns, key), thinning)


def as_kernel(kernel: Any) -> MarkovKernel:
    """Bring a sampler of blackjax, or a function of (key, state), into one form."""
    if hasattr(kernel, "build_kernel") and not hasattr(kernel, "step"):
        raise TypeError(
            "kernel is a factory of samplers: call it, as in "
            "blackjax.mala(log_density, step_size)."
        )
    step = getattr(kernel, "step", kernel)
    if not callable(step):
        raise TypeError(
            "kernel must be a sampler with a step, such as blackjax.mala(log_density, "
            f"step_size), or a function step(key, state); got {type(kernel).__name__}."
        )

    if not takes(step, 2):
        raise TypeError(
            f"{_ORDER} This one takes other arguments: a log density needs a sampler, "
            "as blackjax.mala(log_density, step_size), and a function of one chain's "
            "parameters that returns a kernel needs parameters= of elk.chains."
        )

    def pair(key: Array, state: PyTree) -> tuple[PyTree, PyTree]:
        found = step(key, state)
        alone = same_structure(found, state) or not isinstance(found, tuple)
        if alone:
            return found, None
        return found if len(found) == 2 else (found, None)

    return MarkovKernel(pair, getattr(kernel, "init", None))


def takes(function: Callable, count: int) -> bool:
    """Whether a function takes so many arguments, as far as its signature says."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*(None,) * count)
    except TypeError:
        return False
    return True


def mismatch(kernel: MarkovKernel, state: PyTree, key: Array) -> str | None:
    """Say why a kernel does not take this state to one of its kind, None if it does."""
    advice = "Pass one of its own states, such as kernel.init(position)."
    if kernel.init is None:
        advice = f"{_ORDER} Pass it one of its own states."
    try:
        found = jax.eval_shape(lambda *args: kernel.step(*args)[0], key, state)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        return (
            f"The kernel failed on a key and the state {describe(state)}. {advice} "
            f"What it said: {error}"
        )
    if same_kind(found, state):
        return None
    return (
        "A kernel must keep structure, shapes and dtypes of its state; it took "
        f"{describe(state)} to {describe(found)}. {advice}"
    )


def key_axes(key: Any) -> int:
    """Return the number of axes of an array of PRNG keys, typed or raw."""
    axes: int | None = None
    how = str(jax.random.key_impl(jax.random.key(0)))  # that of raw keys
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            axes, how = key.ndim, str(jax.random.key_impl(key))
        elif key.dtype == jnp.uint32 and key.ndim:
            axes = key.ndim - 1
    if axes is None:
        raise TypeError(
            f"key must be a PRNG key, as jax.random.key(0); got {_named(key)}."
        )
    if "rbg" in how:
        raise ValueError(
            f"Keys of {how} draw other numbers side by side than one by one, so no "
            'chain is defined; use jax.random.key(0, impl="threefry2x32").'
        )
    return axes


def _named(key: Any) -> str:
    if isinstance(key, jax.Array):
        return describe(key)
    if isinstance(key, np.ndarray):
        return f"{describe(key)} of NumPy"
    return type(key).__name__
