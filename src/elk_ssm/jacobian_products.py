"""How products of Jacobians J_t ... J_{s+1} along a trajectory grow and die out.

A few tangent directions are pushed along from several starts s, and made small again
after every step; the logarithm of what was divided out is the growth since the start.
Before a start there is no product: -inf while the program runs, NaN in what is shown.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction
from elk_ssm._forward_mode import forward_mode
from elk_ssm._jax import deliberate_nans
from elk_ssm._types import Array, FlatStep, PyTree
from elk_ssm.solve.nodes import shift

DIRECTIONS, FORGOTTEN = 8, 1e-6
_SAMPLES = 64


@partial(jax.jit, static_argnums=(0, 1))
def follow_products(
    function: HoistedFunction, num_starts: int, primals: tuple, states: Array
) -> tuple[Array, Array, Array]:
    """Log norms of products `(S, T)`, -inf before they start `(S,)`, and the share."""
    consts, initial, inputs = primals
    step = partial(forward_mode(function), consts)
    before = shift(initial, states)
    length, size = states.shape
    begins = jnp.arange(num_starts) * length // num_starts
    directions = _orthonormal(size, states.dtype)
    shape = (num_starts, *directions.shape)
    frames = jnp.broadcast_to(directions, shape)
    logs = jnp.zeros(num_starts, states.dtype)

    def body(carry: tuple, entry: tuple) -> tuple[tuple, Array]:
        frames, logs = carry
        time, state, user_input = entry
        tangent = jax.linearize(lambda x: step(x, user_input), state)[1]
        tiny = jnp.finfo(state.dtype).tiny
        pushed = jax.vmap(jax.vmap(tangent))(frames)
        largest = jnp.max(jnp.abs(pushed), axis=(1, 2), keepdims=True)
        pushed = pushed / jnp.where(largest > 0, largest, 1)
        norms = jnp.max(jnp.linalg.norm(pushed, axis=-1), axis=-1)
        grown = jnp.log(jnp.maximum(largest[:, 0, 0], tiny))
        active = begins <= time
        scaled = pushed / jnp.maximum(norms, tiny)[:, None, None]
        frames = jnp.where(active[:, None, None], scaled, frames)
        grown = grown + jnp.where(norms > 0, jnp.log(norms), 0)
        logs = jnp.where(active, logs + grown, logs)
        return (frames, logs), jnp.where(active, logs, -jnp.inf)

    times = jnp.arange(length)
    _, growth = jax.lax.scan(body, (frames, logs), (times, before, inputs))
    share = _off_diagonal_share(step, before, inputs)
    return growth.T, begins, share


def _orthonormal(size: int, dtype: jnp.dtype) -> Array:
    """At most eight orthonormal directions; all of them for small states."""
    if size <= DIRECTIONS:
        return jnp.eye(size, dtype=dtype)
    random = np.random.default_rng(0).normal(size=(size, DIRECTIONS))
    return jnp.asarray(np.linalg.qr(random)[0].T, dtype)


def _off_diagonal_share(step: FlatStep, before: Array, inputs: PyTree) -> Array:
    stride = max(before.shape[0] // _SAMPLES, 1)
    some = jax.tree.map(lambda x: x[::stride], (before, inputs))

    def share(state: Array, user_input: PyTree) -> Array:
        jacobian = jax.jacfwd(lambda x: step(x, user_input))(state)
        total = jnp.sum(jacobian**2)
        rest = total - jnp.sum(jnp.diagonal(jacobian) ** 2)
        return jnp.sqrt(jnp.maximum(rest, 0) / jnp.where(total > 0, total, 1))

    return jnp.mean(jax.lax.map(lambda xu: share(*xu), some, batch_size=16))


def summarize_products(growth: Array, begins: Array, share: Array) -> dict[str, Array]:
    """Return what a `Diagnosis` says of the products, by the names of its fields."""
    length = growth.shape[1]
    lyapunov = growth[0, -1] / length
    growth = jnp.where(jnp.isnan(growth), -jnp.inf, growth)
    index = jnp.argmax(growth)
    largest = jnp.maximum(growth.reshape(-1)[index], 0)
    interval = jnp.stack([begins[index // length], index % length])
    # Steps from the start of each product to where it has died out for good.
    alive = growth >= jnp.log(FORGOTTEN)
    times = jnp.arange(length)[None, :]
    steps = jnp.max(jnp.where(alive, times, -1), axis=1) + 1 - begins
    decided = ~alive[:, -1]
    # Products that begin near the end have no time to die out: they do not count.
    judged = begins <= length // 2
    forgets = jnp.all(decided | ~judged) & jnp.any(judged)
    memory = jnp.max(jnp.where(judged, steps, 0))
    with deliberate_nans():
        log_growth = jnp.where(times < begins[:, None], jnp.nan, growth)
    return {
        "lyapunov_exponent": lyapunov,
        "growth": largest,
        "growth_interval": interval,
        "forgetting_length": jnp.where(forgets, memory, -1),
        "off_diagonal_share": share,
        "log_growth": log_growth,
    }
