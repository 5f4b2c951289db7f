r"""What windows of time do to errors, seen by rolling them out twice.

From the node before each window f is rolled out once as it is, and once from a state
that is a tolerance away in every dimension: how far apart both end is the gain of the
window, and how far the first one ends from the nodes is its misfit. `certify` adds them
up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._platforms import by_platform
from elk_ssm._types import Array, PyTree
from elk_ssm.parallel.extremes import extremes
from elk_ssm.solve.nodes import Blocks
from elk_ssm.solve.rollout import equations_of_step
from elk_ssm.solve.unrolling import scan_by_platform

_WINDOW_STEPS, _GROUPS = 32, 8
LARGEST = 1e30
"""Numbers are cut off there, before they overflow."""


class Shot(NamedTuple):
    """What windows do to errors, each `(k,)`, in units of the tolerance.

    Attributes:
        gain: g at the end of each window.
        misfit: m at the end of each window.
        peak_gain: The largest gain anywhere inside.
        peak_misfit: The largest misfit anywhere inside.
        drift: Misfit of each dimension at the end of each window, signed, `(k, D)`.
    """

    gain: Array
    misfit: Array
    peak_gain: Array
    peak_misfit: Array
    drift: Array


def shoot(blocks: Blocks, nodes: Array, bound: tuple[Array, Array]) -> Shot:
    """Roll every window out, from its node and from beside it.

    Args:
        blocks: The recurrence in n blocks.
        nodes: States at their ends, `(n, D)`.
        bound: The largest error and the rounding floor of each node, `(n, D)`.
    """
    width = max(-(-_WINDOW_STEPS // blocks.size), 1)
    begins = jnp.arange(0, blocks.number, width)
    unit, floor = units_of(*bound), bound[1]
    starts = blocks.axis.shift(blocks.initial, nodes)
    nudges = blocks.axis.shift(unit[0], unit)

    def windows(begins: Array) -> Shot:
        """Shoot from the nodes before these."""
        signs = _signs(begins // width, nodes.shape[1]).astype(nodes.dtype)
        start, nudge = starts[begins], signs * nudges[begins]
        pair = jnp.stack([start, start + nudge])
        reach = begins[None, :] + jnp.arange(width)[:, None]
        index = jnp.minimum(reach, blocks.number - 1)
        moved = _through(blocks, pair, index)
        places = nodes[index], unit[index], floor[index]
        found = _measure((moved[:, 0], moved[:, 1]), *places)
        exists = reach < blocks.number
        exists = exists if blocks.real is None else exists & blocks.real[index]
        return _seen(*found, exists)

    def in_groups(begins: Array) -> Shot:
        count = len(begins)
        more = jnp.broadcast_to(begins[-1], (-count % _GROUPS,))
        groups = jnp.concatenate([begins, more]).reshape(-1, _GROUPS).T
        found = jax.lax.map(windows, groups)
        # Groups are strided, so that all are of one size.
        put_back = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], put_back)

    # A few windows at a time need little memory; all at once few launches.
    return by_platform(begins, cpu=in_groups, default=windows)


def _seen(gain: Array, misfit: Array, drift: Array, exists: Array) -> Shot:
    """Summarise windows from what was measured at their nodes, leading axis w."""
    gain, misfit = jnp.where(exists, gain, 0), jnp.where(exists, misfit, 0)
    end, lane = jnp.maximum(jnp.sum(exists, axis=0) - 1, 0), jnp.arange(gain.shape[1])
    return Shot(
        gain[end, lane],
        misfit[end, lane],
        jnp.max(gain, axis=0),
        jnp.max(misfit, axis=0),
        jnp.where(exists[end, lane, None], drift[end, lane], 0),
    )


def _through(blocks: Blocks, pair: Array, index: Array) -> Array:
    """Both states at the ends of the blocks `index` `(w, k)`, `(w, 2, k, D)`.

    Of blocks of one step the inputs are laid out as the windows run through them.
    """
    lanes = jax.vmap(jax.vmap(blocks.step), (0, None))
    single = blocks.size == 1
    inputs = _inputs(blocks, index, 0) if single else None

    def block(pair: Array, given: tuple) -> tuple[Array, Array]:
        places, inputs = given
        if single:
            pair = lanes(pair, inputs)
        else:
            pair = jax.lax.fori_loop(
                0,
                blocks.size,
                lambda j, pair: lanes(pair, _inputs(blocks, places, j)),
                pair,
            )
        return pair, pair

    equations = blocks.size * equations_of_step(blocks)
    return scan_by_platform(block, pair, (index, inputs), equations)[1]


def _inputs(blocks: Blocks, index: Array, j: Array | int) -> PyTree:
    """Inputs of step j of these blocks."""
    if blocks.laid_out:
        return jax.tree.map(lambda x: x[j, index], blocks.inputs)
    return jax.tree.map(lambda x: x[index, j], blocks.inputs)


class Twins(NamedTuple):
    """Windows that were rolled out twice, each `(k, D)`.

    Attributes:
        ends: Where they ended.
        beside: Where their twins did, from a tolerance beside their starts.
        nodes: Where they should have ended.
        unit: What errors of their ends are measured in.
        floor: What rounding alone may leave.
    """

    ends: Array
    beside: Array
    nodes: Array
    unit: Array
    floor: Array


def nudge(started: Array, unit: Array) -> Array:
    """Return where twins of blocks start, `(n, D)`.

    Args:
        started: Where the blocks did.
        unit: What errors of their ends are measured in, see `units_of`.
    """
    signs = _signs(jnp.arange(started.shape[0]), started.shape[1])
    before = jnp.concatenate([unit[:1], unit[:-1]])
    return started + signs.astype(started.dtype) * before


def shot_of(twins: Twins) -> Shot:
    """Return what windows do to errors."""
    ends, beside, *places = twins
    gain, misfit, drift = _measure((ends, beside), *places)
    return Shot(gain, misfit, gain, misfit, drift)


def worst_of(twins: Twins, states: Array) -> tuple[Array, Array]:
    """Return bounds of the gain and of the misfit and drift of all windows, `()`.

    By one reduction of all entries, and what is not finite counts as `inf`.

    Args:
        twins: The windows.
        states: Those inside, `(C, k, D)`; if one is not finite, no bound is.
    """

    def units(off: Array) -> Array:
        return jnp.where(jnp.isfinite(off), jnp.abs(off) / twins.unit, jnp.inf)

    apart = units(twins.beside - twins.ends), units(twins.ends - twins.nodes)
    gains, misfits = (jnp.broadcast_to(x, states.shape) for x in apart)
    misfits = jnp.where(jnp.isfinite(states), misfits, jnp.inf)
    (gain, misfit), _ = extremes((gains, misfits), ())
    return gain, misfit


def units_of(allowed_error: Array, floor: Array) -> Array:
    """What errors are measured in: the tolerance, where rounding is not larger."""
    tiny = jnp.finfo(floor.dtype).tiny
    return jnp.maximum(jnp.maximum(allowed_error, floor), tiny)


def _signs(rows: Array, dimension: int) -> Array:
    """Signs of nudges, `(k, dimension)`, which alternate in both directions."""
    along = jnp.asarray(np.arange(dimension) * 7 // 3, rows.dtype)
    signs = along[None, :] + rows[:, None]
    return 1 - 2 * (signs % 2)


def _measure(
    moved: tuple[Array, Array], nodes: Array, unit: Array, floor: Array
) -> tuple[Array, Array, Array]:
    """Return gain, misfit and drift where a rollout and its twin have arrived."""
    drift = (moved[0] - nodes) / unit
    drift = jnp.clip(jnp.where(jnp.isfinite(drift), drift, 0), -LARGEST, LARGEST)
    off = jnp.abs(moved[0] - nodes)
    off = jnp.where(off <= floor, 0, off)
    misfit = jnp.minimum(jnp.max(off / unit, axis=-1), LARGEST)
    # A NaN must not be dropped, as maxima may do.
    misfit = jnp.where(jnp.all(jnp.isfinite(off), axis=-1), misfit, jnp.inf)
    gain = jnp.max(jnp.abs(moved[1] - moved[0]) / unit, axis=-1)
    # Beside the trajectory f may be undefined; an error then counts as kept.
    gain = jnp.where(jnp.all(jnp.isfinite(moved[1]), axis=-1), gain, 1)
    return jnp.minimum(gain, LARGEST), misfit, drift
