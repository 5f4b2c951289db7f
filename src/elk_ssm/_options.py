"""What every task does first: check the options and separate choices from numbers."""

from dataclasses import dataclass, replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._memory import MemoryLimitError, in_words, left_bytes, matrices_bytes
from elk_ssm._recurrence import Recurrence
from elk_ssm._trees import StateLayout, describe, is_float
from elk_ssm._types import Array, ArrayLike, PyTree
from elk_ssm._values import check_count
from elk_ssm.parallel.backend import Backend, check_backend
from elk_ssm.parallel.mesh import Shards, check_off_explicit, off_explicit
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import near_divisor
from elk_ssm.solve.options import Adjoint, Keep, Kernel, Options
from elk_ssm.solve.stopping import make_tolerance
from elk_ssm.surrogate.jacobians import DenseJacobian
from elk_ssm.surrogate.linearization import forms_dense
from elk_ssm.surrogate.policy import NoisePolicy, is_shardable


@dataclass(frozen=True)
class Asked:
    """The options of `evaluate`, as its caller wrote them, and `scan`'s `fall_back`."""

    method: Method | Auto | None = None
    guess: PyTree = None
    tol: ArrayLike | None = None
    atol: ArrayLike | None = None
    max_iters: int | None = None
    history: int = 0
    backend: Backend = "auto"
    adjoint: Adjoint = "auto"
    keep: Keep = "all"
    fall_back: bool = False
    shards: Shards | None = None
    kernel: Kernel | None = None
    progress: bool = False


def prepare(recurrence: Recurrence, asked: Asked) -> Options:
    """Check what was asked for and write it as the engine takes it."""
    shards = asked.shards
    if shards is not None:
        check_off_explicit(recurrence.consts, "f")
    check_backend(asked.backend)
    check_adjoint(asked.adjoint)
    _check_choice("keep", asked.keep, Keep)
    method = bind_method(asked.method, recurrence)
    length, guess = recurrence.length, asked.guess
    block_size = method.block_size if isinstance(method, Method) else 1
    nodes = max(length // block_size, 1)
    if shards is not None:
        check_sharded_options(method, asked.adjoint)
        nodes = shards.unknowns(length, block_size)
    if isinstance(method, Method):
        _check_memory(method, nodes, recurrence.layout, shards)
    check_tolerance("tol", asked.tol, zero=False)
    check_tolerance("atol", asked.atol, zero=True)
    limit = nodes if asked.max_iters is None else asked.max_iters
    check_count("max_iters", limit, at_least=1)
    check_count("history", asked.history, at_least=0)
    return Options(
        method=method,
        guess=None if guess is None else recurrence.flatten_states(guess, "guess"),
        tolerance=make_tolerance(asked.tol, asked.atol, recurrence.initial.dtype),
        max_iters=jnp.asarray(limit, jnp.int32),
        length=length,
        history=int(asked.history),
        backend=asked.backend,
        adjoint=asked.adjoint,
        keep=asked.keep,
        every=1 if asked.keep == "all" else _spacing(method, recurrence, shards),
        fall_back=asked.fall_back,
        shards=shards,
        kernel=asked.kernel is not None and check_kernel(recurrence, asked, method),
        progress=asked.progress,
    )


def check_kernel(
    recurrence: Recurrence, asked: Asked, method: Method | Auto | None = None
) -> bool:
    """Raise `ValueError` where a kernel was asked for that cannot be had, else true."""
    from elk_ssm.kernels import why_not  # Pallas takes 0.2 s to import

    _check_choice("kernel", asked.kernel, Kernel)
    if isinstance(method, Method) or asked.shards is not None:
        raise ValueError(
            'kernel="pallas" runs the rollouts of elk.auto() and elk.sequential on one '
            "device; other methods and meshes have none of that kind."
        )

    def lanes(x: Array, drop: int, axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1,) * axes + x.shape[drop:], x.dtype)

    entries = jax.tree.map(lambda x: lanes(x, 1, 2), recurrence.inputs)
    starts = lanes(recurrence.initial, 0, 1)
    why = why_not(recurrence.function, recurrence.consts, starts, entries)
    if why is not None:
        raise ValueError(f'kernel="pallas" does not fit this f: {why}.')
    return True


def for_mesh(shards: Shards | None, task: str, state: PyTree, *others: PyTree) -> tuple:
    """Check a state and take it, and other arrays, off Explicit axes for a mesh."""
    if shards is None:
        return state, *others
    check_float_state(state)
    return off_explicit((state, *others), task)


def _spacing(
    method: Method | Auto, recurrence: Recurrence, shards: Shards | None
) -> int:
    """Steps between the states that are kept, the block size of the method."""
    length, dimension = recurrence.length, recurrence.initial.shape[0]
    shard = length if shards is None else shards.shard(length)
    if isinstance(method, Auto):
        size = min(method.forgetful_block_size(length, dimension), shard)
        size = size if shards is None else near_divisor(shard, size)
    else:
        size = min(method.block_size, shard)
    if shards is not None and (shard % size or length % shards.axis.size):
        raise ValueError(
            f'With a mesh keep="boundaries" and "last" need whole blocks: T = {length} '
            f"must be a multiple of {shards.axis.size} devices times blocks of {size}."
        )
    return size


def check_sharded_options(method: Method | Auto, adjoint: Adjoint) -> None:
    """Raise `ValueError` for options that make no sense with time sharded over devices.

    What goes from one step to the next on one device would have the devices wait for
    each other; a noise policy that looks at all residuals would see only some.
    """
    if adjoint in ("sequential", "short_blocks"):
        raise ValueError(
            f'adjoint="{adjoint}" would take one device after the other; with a mesh '
            'use "blocks", "parallel" or "auto".'
        )
    if isinstance(method, Auto) and method.strategy not in ("auto", "newton"):
        raise ValueError(
            f'strategy="{method.strategy}" is for one device; with a mesh auto uses '
            '"newton" on every platform.'
        )
    check_shardable(method.noise)


def _check_memory(
    method: Method, nodes: int, layout: StateLayout, shards: Shards | None
) -> None:
    """Raise `ValueError` where the Jacobians alone are more than the device holds."""
    limit = left_bytes() if forms_dense(method.linearization) else None
    if limit is None:
        return
    here = nodes if shards is None else -(-nodes // shards.axis.size)
    needed = matrices_bytes(here, layout.size, layout.dtype.itemsize)
    if needed <= limit:
        return
    least = -(-needed * method.block_size // limit)
    raise MemoryLimitError(
        f"Dense Jacobians at {here:,} nodes in {layout.size} dimensions take "
        f"{in_words(needed)}, and a device holds {in_words(limit)}. Take diagonal ones "
        "(elk.quasi_deer), blocks (elk.BlockDiagonalJacobian), or nodes further apart "
        f"(block_size={least} at the very least)."
    )


def check_shardable(noise: NoisePolicy | None) -> None:
    """Raise `ValueError` for a noise policy that would not see all devices alike."""
    if noise is None or is_shardable(noise):
        return
    raise ValueError(
        "With a mesh a noise policy must look at numbers that all devices share; "
        f"{type(noise).__name__} would see the residuals of one device. A policy that "
        "uses the other numbers of elk.Seen only says so with `shardable = True`."
    )


def check_float_state(initial_state: PyTree) -> None:
    """Raise `ValueError` for leaves that a sequential scan would have to follow."""
    leaves = jax.tree.leaves(initial_state)
    if all(is_float(leaf) for leaf in leaves):
        return
    raise ValueError(
        "With a mesh all leaves of the state must be floating point; got "
        f"{describe(initial_state)}. Counters and keys are followed step by step, on "
        "one device: compute them beforehand and pass them as inputs."
    )


def bind_method(method: Method | Auto | None, recurrence: Recurrence) -> Method | Auto:
    """Fill in the default and let the linearisation learn the state's layout."""
    method = Auto() if method is None else method
    if not isinstance(method, Method | Auto):
        raise TypeError(
            "method must be made by elk.auto(), elk.deer(), elk.quasi_elk(noise) and "
            f"so on; got {method!r}."
        )
    if method.linearization is None:
        return method
    bound = method.linearization.bind(recurrence)
    return replace(method, linearization=bound)


def concrete_method(
    method: Method | Auto | None, recurrence: Recurrence, task: str
) -> Method:
    """Bind a method that has one linearisation; the default is DEER's."""
    bound = bind_method(
        Method(DenseJacobian()) if method is None else method, recurrence
    )
    if not isinstance(bound, Method):
        raise TypeError(
            f"{task} needs a method with one linearisation, such as elk.deer(); "
            "elk.auto() chooses as it goes."
        )
    return bound


def check_adjoint(adjoint: Any) -> None:
    """Raise `ValueError` for an adjoint that there is not."""
    _check_choice("adjoint", adjoint, Adjoint)


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        names = ", ".join(get_args(choices))
        raise ValueError(f"{name} must be one of {names}; got {value!r}.")


def check_tolerance(name: str, value: ArrayLike | None, *, zero: bool) -> None:
    """Raise unless `value` is None, traced, or one positive (or zero) number."""
    if value is None or is_traced(value):
        return
    number = np.asarray(value)
    real = number.ndim == 0 and number.dtype.kind in "iuf"
    if real and (number > 0 or (zero and number == 0)):
        return
    kind = "a positive number, or zero" if zero else "a positive number"
    raise ValueError(f"{name} must be {kind}; got {value!r}.")
