r"""How many passes a method will take: its error, followed from pass to pass.

Let A_t stand for the Jacobian in a method without damping, and let e be the error of
the iterate. One pass makes of it, exactly,

    e'_t = A_t e'_{t-1} + (M_t - A_t) e_{t-1},

where M_t is the mean Jacobian between the iterate and the trajectory: what decides is
the Jacobian minus its stand-in, and how far the products of stand-ins carry it
(arXiv 2509.21716). With A = 0 these are the products of Jacobians themselves, whose
mean rate is the Lyapunov exponent; for Newton's method A is the Jacobian at the
iterate, the difference vanishes with the error, and growth decides how far ahead of the
exact prefix an iterate is of any use (arXiv 2508.16817).

M_t and A_t are modelled from two Jacobians: J_t on the trajectory and K_t at the state
of another, random time, a typical error r away,

    Jacobian at the iterate = J_t + s (K_t - J_t),    M_t = J_t + s (K_t - J_t) / 2,

with s = |e_{t-1}| / r. Errors and s stop at a multiple of their typical size: an
iterate that is carried away meets Jacobians that no state of the trajectory has, but
does not go on for ever. The passes over a first stretch and over its half say how they
grow with T.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction
from elk_ssm._forward_mode import forward_mode
from elk_ssm._types import Array
from elk_ssm.linalg.structure import Dense
from elk_ssm.solve.nodes import shift
from elk_ssm.solve.stopping import default_tolerance

_LONGEST, _LEAST, _MOST_NUMBERS = 512, 32, 2**22
# How far a diverging iterate gets, in typical errors: see benchmarks/predictions.py.
_EXCURSION = 5.0

_STAND_INS: dict[str, Callable[[Array], Array]] = {
    "deer": lambda jacobian: jacobian,
    "quasi_deer": lambda j: Dense(j).diag(Dense(j).variances()).matrix,
    "picard": lambda j: jnp.broadcast_to(jnp.eye(j.shape[-1], dtype=j.dtype), j.shape),
    "jacobi": jnp.zeros_like,
}


def stretch_looked_at(length: int, size: int) -> int:
    """Steps whose Jacobians, `(steps, D, D)`, a prediction looks at."""
    most = max(_LEAST, _MOST_NUMBERS // size**2)
    return min(length, _LONGEST, most)


@partial(jax.jit, static_argnums=0)
def passes_of_methods(
    function: HoistedFunction, primals: tuple, states: Array
) -> dict[str, Array]:
    """Passes over the first half of a stretch and over all of it, `(2,)` a method."""
    consts, initial, inputs = primals
    step = partial(forward_mode(function), consts)
    before = shift(initial, states)
    length = states.shape[0]
    elsewhere = before[np.random.default_rng(0).permutation(length)]

    def jacobians(at: Array) -> Array:
        one = jax.jacfwd(lambda x, u: step(x, u))
        return jax.lax.map(lambda xu: one(*xu), (at, inputs), batch_size=64)

    pair = jacobians(before), jacobians(elsewhere)
    apart = jnp.sqrt(jnp.mean(jnp.sum((before - elsewhere) ** 2, axis=1)))
    largest = jnp.max(jnp.abs(before))
    tiny = jnp.finfo(states.dtype).tiny
    size = jnp.maximum(jnp.maximum(apart, 1e-3 * largest), tiny)
    first = _limit(initial[None] - states, size)
    return {
        name: _count_passes(stand_in, pair, first, size)
        for name, stand_in in _STAND_INS.items()
    }


def _count_passes(
    stand_in: Callable, jacobians: tuple[Array, Array], first: Array, size: Array
) -> Array:
    """Follow the error of a method until it is below the tolerance."""
    on, elsewhere = jacobians
    length = first.shape[0]
    bound = default_tolerance(first.dtype) * size

    def one_pass(error: Array) -> Array:
        entering = shift(jnp.zeros_like(error[0]), error)
        far = jnp.linalg.norm(entering, axis=1)[:, None, None] / size
        change = jnp.minimum(far, _EXCURSION) * (elsewhere - on)
        operator = stand_in(on + change)
        rest = on + change / 2 - operator
        source = jnp.einsum("tij,tj->ti", rest, entering, precision="highest")

        def body(x: Array, entry: tuple[Array, Array]) -> tuple[Array, Array]:
            x = _limit(jnp.matmul(entry[0], x, precision="highest") + entry[1], size)
            return x, x

        return jax.lax.scan(body, jnp.zeros_like(error[0]), (operator, source))[1]

    def goes_on(carry: tuple) -> Array:
        error, count, _ = carry
        return (count < length) & ~(jnp.max(jnp.abs(error)) <= bound)

    def body(carry: tuple) -> tuple:
        error, count, half = carry
        error, count = one_pass(error), count + 1
        done = jnp.max(jnp.abs(error[: length // 2]), initial=0) <= bound
        return error, count, jnp.where(done & (half < 0), count, half)

    start = first, jnp.asarray(0, jnp.int32), jnp.asarray(-1, jnp.int32)
    _, count, half = jax.lax.while_loop(goes_on, body, start)
    half = jnp.where(half < 0, jnp.minimum(count, length // 2), half)
    # One more pass sees that nothing moves.
    return jnp.minimum(jnp.stack([half, count]) + 1, length)


def _limit(error: Array, size: Array) -> Array:
    """Errors no larger than a multiple of their typical size; not finite is largest."""
    norm = jnp.linalg.norm(error, axis=-1, keepdims=True)
    most = _EXCURSION * size
    error = jnp.where(norm > most, error * (most / jnp.where(norm > 0, norm, 1)), error)
    return jnp.where(jnp.isfinite(error), error, most)


def passes_at(found: Array, looked: int, length: int) -> int:
    """Passes over T steps from those over half of a stretch and over all of it."""
    half, whole = (int(x) for x in found)
    if looked >= length or looked < 2:
        return min(whole, length)
    slope = max(whole - half, 0) / (looked - looked // 2)
    return int(min(np.ceil(whole + slope * (length - looked)), length))
