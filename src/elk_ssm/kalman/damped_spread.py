r"""The damped filter and smoother with time spread over the devices of a mesh axis.

Sequentially a device runs through its steps once for its summary and once more from
the moments that entered; associatively it joins its prefixes to them. See `spread` for
what is sent, and `damped` for the model.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.damped import filter_elements, filter_step
from elk_ssm.kalman.damped_steps import Marginals, advance, smoother_gain
from elk_ssm.kalman.elements import FilterElement, SmootherElement
from elk_ssm.kalman.spread import (
    enter,
    join,
    no_steps,
    prefixes,
    previous,
    smooth_associative,
    smooth_sequential,
)
from elk_ssm.linalg.structure import Diagonal, Operator
from elk_ssm.parallel.backend import Backend, by_backend
from elk_ssm.parallel.time_axis import TimeAxis


def spread_filter_means(
    operator: Operator,
    offsets: Array,
    noise: Array,
    *,
    backend: Backend,
    axis: TimeAxis,
) -> Array:
    """Filtered means of this device's steps; arguments as `damped_filter`, plus `axis`.

    Returns:
        Means, `(n, D)`.
    """

    def sequential(operator: Operator, offsets: Array, noise: Array) -> Array:
        entered = _enter_sequential(axis, operator, offsets, noise)
        step, _, entries = filter_step(operator, offsets, noise)

        def means_only(carry: Marginals, entry: tuple) -> tuple[Marginals, Array]:
            carry, _ = step(carry, entry)
            return carry, carry.means

        return jax.lax.scan(means_only, entered, entries)[1]

    def associative(operator: Operator, offsets: Array, noise: Array) -> Array:
        return _filter_associative(axis, operator, offsets, noise)[1].means

    return by_backend(backend, sequential, associative, operator, offsets, noise)


def spread_smoother(
    operator: Operator,
    offsets: Array,
    noise: Array,
    *,
    backend: Backend,
    axis: TimeAxis,
) -> Marginals:
    """Smoothed marginals of this device's steps; arguments as `spread_filter_means`."""
    run = partial(_sequential, axis), partial(_associative, axis)
    return by_backend(backend, *run, operator, offsets, noise)


def _sequential(
    axis: TimeAxis, operator: Operator, offsets: Array, noise: Array
) -> Marginals:
    entered = _enter_sequential(axis, operator, offsets, noise)
    step, _, scanned = filter_step(operator, offsets, noise)
    filtered = jax.lax.scan(step, entered, scanned)[1]
    entries = previous(entered, filtered), operator, offsets
    smoothed, _ = smooth_sequential(axis, _transition, entries, _end(filtered))
    return Marginals(smoothed.g, type(operator)(smoothed.L))


def _associative(
    axis: TimeAxis, operator: Operator, offsets: Array, noise: Array
) -> Marginals:
    entered, filtered = _filter_associative(axis, operator, offsets, noise)
    elements = _transition((previous(entered, filtered), operator, offsets))
    smoothed = smooth_associative(axis, elements, _end(filtered))
    return Marginals(smoothed.g, type(operator)(smoothed.L))


def _enter_sequential(
    axis: TimeAxis, operator: Operator, offsets: Array, noise: Array
) -> Marginals:
    """Marginal of the state before this device's first step."""
    noise = jnp.broadcast_to(noise, offsets.shape)

    def append(run: FilterElement, entry: tuple) -> tuple[FilterElement, None]:
        return advance(run, *entry), None

    empty = no_steps(offsets[0], diagonal=isinstance(operator, Diagonal))
    whole = jax.lax.scan(append, empty, (operator, offsets, noise))[0]
    entered = enter(axis, whole, "sequential")
    return Marginals(entered.b, type(operator)(entered.C))


def _filter_associative(
    axis: TimeAxis, operator: Operator, offsets: Array, noise: Array
) -> tuple[Marginals, Marginals]:
    """Marginal before this device's first step, and those after each of its steps."""
    known = axis.index(offsets.shape[0]) == 0
    up_to = prefixes(filter_elements(operator, offsets, noise, known))
    whole = jax.tree.map(lambda x: x[-1], up_to)
    entered = enter(axis, whole, "associative")
    joined, wrap = join(entered, up_to), type(operator)
    before = Marginals(entered.b, wrap(entered.C))
    return before, Marginals(joined.b, wrap(joined.C))


def _transition(entry: tuple) -> SmootherElement:
    """Backward transition into the state before a step; leading axes are free."""
    gain, rest, spread = smoother_gain(*entry)
    return SmootherElement(gain[0], rest, spread[0])


def _end(filtered: Marginals) -> SmootherElement:
    covariance = filtered.covariances[0][-1]
    return SmootherElement(jnp.zeros_like(covariance), filtered.means[-1], covariance)
