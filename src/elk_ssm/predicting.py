r"""How many passes a method will take: tried on a first stretch, and drawn out to T.

Let A_t stand for the Jacobian in a method without damping, and let e be the error of
the iterate. One pass makes of it, exactly,

    e'_t = A_t e'_{t-1} + (M_t - A_t) e_{t-1},

where M_t is the mean Jacobian between the iterate and the trajectory: what decides is
the Jacobian minus its stand-in, and how far the products of stand-ins carry it
(arXiv 2509.21716). With A = 0 these are the products of Jacobians themselves, whose
mean rate is the Lyapunov exponent; for Newton's method A is the Jacobian at the
iterate, the difference vanishes with the error, and growth decides how far ahead of the
exact prefix an iterate is of any use (arXiv 2508.16817).

M and A are taken where an iterate strays, and Jacobians on the trajectory do not say
what they are there: a cycle, a second rest state or steep slopes beside it make all the
difference. So the recursion is run and not modelled. A pass is that of `solve.loop`
without damping and gate; passes over the stretch and over its half say how they grow
with T.
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
from elk_ssm.parallel.time_axis import LOCAL
from elk_ssm.solve.nodes import shift
from elk_ssm.solve.stopping import make_tolerance, scale_of

_LONGEST, _LEAST, _MOST_NUMBERS = 512, 32, 2**22
# Entries of Jacobians that all passes of a method may have together.
_MOST_ENTRIES = 2**28

_STAND_INS: dict[str, Callable[[Array], Array]] = {
    "deer": lambda jacobian: jacobian,
    "quasi_deer": lambda j: Dense(j).diag(Dense(j).variances()).matrix,
}


def stretch_looked_at(length: int, size: int) -> int:
    """Steps whose Jacobians, `(steps, D, D)`, a prediction looks at."""
    most = max(_LEAST, _MOST_NUMBERS // size**2)
    return min(length, _LONGEST, most)


@partial(jax.jit, static_argnums=(0, 2))
def passes_of_methods(
    function: HoistedFunction, primals: tuple, length: int
) -> dict[str, Array]:
    """Passes over the first half of a stretch and over all of it, `(2,)` a method."""
    consts, initial, inputs = primals
    step = partial(forward_mode(function), consts)

    def linearized(x: Array) -> tuple[Array, Array]:
        def one(entry: tuple) -> tuple[Array, Array]:
            state, user_input = entry
            run = lambda x: (step(x, user_input),) * 2  # noqa: E731
            return jax.jacfwd(run, has_aux=True)(state)[::-1]

        return jax.lax.map(one, (shift(initial, x), inputs), batch_size=64)

    def values(x: Array) -> Array:
        return jax.vmap(step)(shift(initial, x), inputs)

    def newton(stand_in: Callable, x: Array) -> tuple[Array, Array]:
        found, jacobians = linearized(x)

        def body(d: Array, entry: tuple[Array, Array]) -> tuple[Array, Array]:
            d = jnp.matmul(entry[0], d, precision="highest") + entry[1]
            return d, d

        entries = stand_in(jacobians), found - x
        return found, x + jax.lax.scan(body, jnp.zeros_like(initial), entries)[1]

    def picard(x: Array) -> tuple[Array, Array]:
        return (found := values(x)), x + jnp.cumsum(found - x, axis=0)

    def jacobi(x: Array) -> tuple[Array, Array]:
        return (found := values(x)), found

    start = jnp.broadcast_to(initial, (length, *initial.shape))
    some = min(length, max(_MOST_ENTRIES // (length * initial.size**2), _LEAST))
    costly = {name: partial(newton, a) for name, a in _STAND_INS.items()}
    cheap = {"picard": picard, "jacobi": jacobi}
    return {
        **{name: _count_passes(run, start, some) for name, run in costly.items()},
        **{name: _count_passes(run, start, length) for name, run in cheap.items()},
    }


def _count_passes(one_pass: Callable, start: Array, most: int) -> Array:
    """Run passes until no state moves; those that are left at the end are estimated.

    Args:
        one_pass: From an iterate to the values of f at it, and the next iterate.
        start: The first iterate, `(n, D)`.
        most: How many passes to run.
    """
    length = start.shape[0]
    times, half = jnp.arange(length), length // 2
    tolerance = make_tolerance(None, None, start.dtype)

    def goes_on(carry: tuple) -> Array:
        _, count, close, _ = carry
        return (count < most) & (close < length)

    def body(carry: tuple) -> tuple:
        x, count, _, halfway = carry
        values, after = one_pass(x)
        bound = tolerance.bound(scale_of(values, 1))
        close = _leading(jnp.abs(values - x) <= bound)
        # A step from an exact state is exact; what is not finite begins there anew.
        exact = _leading(values == x)
        edge = values[jnp.minimum(exact, length - 1)]
        finite = jnp.all(jnp.isfinite(after), axis=1)
        after = jnp.where(finite[:, None], after, edge)
        after = jnp.where((times <= exact)[:, None], values, after)
        count = count + 1
        halfway = jnp.where((close >= half) & (halfway < 0), count, halfway)
        return after, count, close, halfway

    zero, none = jnp.asarray(0, jnp.int32), jnp.asarray(-1, jnp.int32)
    _, count, close, halfway = jax.lax.while_loop(
        goes_on, body, (start, zero, zero, none)
    )
    # What is left goes on as it went: every pass makes at least one more step exact.
    sizes, reached = jnp.asarray([half, length], jnp.int32), jnp.maximum(close, count)
    drawn_out = -(-(count * sizes) // jnp.maximum(reached, 1))
    done = jnp.stack([halfway >= 0, close >= length])
    found = jnp.where(done, jnp.stack([halfway, count]), drawn_out)
    return jnp.clip(found, 1, jnp.maximum(sizes, 1))


def _leading(holds: Array) -> Array:
    """Of how many first steps something holds in every dimension, `()`."""
    return LOCAL.first_true(~jnp.all(holds, axis=1))[0].astype(jnp.int32)


def passes_at(found: Array, looked: int, length: int) -> int:
    """Passes over T steps from those over half of a stretch and over all of it.

    Where the half took as many passes as it has steps, and all of it fewer, more time
    than that was not needed: there is no growth to go by.
    """
    half, whole = (int(x) for x in found)
    if looked >= length or looked < 2:
        return min(whole, length)
    cut_off = half >= looked // 2 > 1 and whole < looked
    slope = 0 if cut_off else max(whole - half, 0) / (looked - looked // 2)
    return int(min(np.ceil(whole + slope * (length - looked)), length))
