r"""Filter and smoother elements across devices, whatever model they come from.

*Filter.* The steps of a device are one filter element (see `elements`). The elements of
all devices are gathered, and the earlier ones combined are the moments that enter:
one all-gather of 3 D^2 + 2 D numbers from each device.

*Smoother.* With the moments that entered, a device knows the backward transition into
the state before each of its n steps, also before the first,

    x_{k-1} = E_k x_k + g_k + N(0, L_k),

so no halo is needed. It composes them into one, gathers, and starts its own backward
run from what the later devices hand back: one more all-gather, of 2 D^2 + D numbers.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.elements import (
    FilterElement,
    SmootherElement,
    combine_filter_dense,
    combine_filter_diagonal,
    combine_smoother_dense,
    combine_smoother_diagonal,
)
from elk_ssm.kalman.runs import Run, combine_runs
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.prefix import prefix_scan
from elk_ssm.parallel.time_axis import TimeAxis

Element = TypeVar("Element", FilterElement, SmootherElement, Run)
Steps = TypeVar("Steps", FilterElement, Run)


def no_steps(like: Array, *, diagonal: bool) -> FilterElement:
    """Return the element of an empty run for states like `like`, `(D,)`."""
    one, zero = jnp.ones_like(like), jnp.zeros_like(like)
    if diagonal:
        return FilterElement(one, zero, zero, zero, zero)
    none = jnp.zeros((*like.shape, *like.shape), like.dtype)
    return FilterElement(jnp.diag(one), zero, none, zero, none)


def enter(axis: TimeAxis, whole: Steps, backend: Backend) -> Steps:
    """Combine the runs of all earlier devices; zeros on the first one.

    `b` and `C` are the moments of the state before this device's first step. They come
    from a first device whose `b` and `C` are moments and not conditional ones.
    """
    nothing = jax.tree.map(jnp.zeros_like, whole)
    return axis.entering(_filter_combine(whole), whole, nothing, backend)


def join(entered: Steps, up_to: Steps) -> Steps:
    """Put what entered before every prefix, `(n, ...)`."""
    return _filter_combine(entered)(_like(entered, up_to), up_to)


def prefixes(elements: Steps) -> Steps:
    """Combine every element, `(n, ...)`, with those before it on this device."""
    single = jax.tree.map(lambda x: x[0], elements)
    return prefix_scan(_filter_combine(single), elements)


def smooth_sequential(
    axis: TimeAxis,
    transition: Callable[[Any], SmootherElement],
    entries: Any,
    end: SmootherElement,
) -> tuple[SmootherElement, SmootherElement]:
    """Run backwards through this device's steps, for the summary and then for good.

    Args:
        axis: Where time lives.
        transition: Makes the backward transition of a step from its entry.
        entries: Leaves with leading axis n.
        end: What ends all of time if this device is the last: E = 0 and moments.

    Returns:
        The moments after each step as elements `(n, ...)` with E = 0, and the
        backward transitions.
    """
    combine = _smoother_combine(end)

    def compose(
        run: SmootherElement, entry: Any
    ) -> tuple[SmootherElement, SmootherElement]:
        element = transition(entry)
        return combine(run, element), element

    def smooth(
        later: SmootherElement, element: SmootherElement
    ) -> tuple[SmootherElement, SmootherElement]:
        return combine(later, element), later

    start = _open_end(axis, end)
    whole, elements = jax.lax.scan(compose, start, entries, reverse=True)
    last = axis.reversed().entering(combine, whole, end, "sequential")
    return jax.lax.scan(smooth, last, elements, reverse=True)[1], elements


def smooth_associative(
    axis: TimeAxis, elements: SmootherElement, end: SmootherElement
) -> SmootherElement:
    """Return the moments after each step from all backward transitions, `(n, ...)`."""
    combine = _smoother_combine(end)
    from_end = prefix_scan(combine, elements, reverse=True)
    first = jax.tree.map(lambda x: x[0], from_end)
    whole = combine(_open_end(axis, end), first)
    last = axis.reversed().entering(combine, whole, end, "associative")
    # Element k leads to the state before step k; that of step k is element k + 1's.
    rest = jax.tree.map(lambda x: x[1:], from_end)
    joined = combine(_like(last, rest), rest)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), joined, last)


def previous(entered: Any, moments: Any) -> Any:
    """Shift by one step: what entered, then all moments but the last."""
    return jax.tree.map(
        lambda first, x: jnp.concatenate([first[None], x[:-1]]), entered, moments
    )


def _open_end(axis: TimeAxis, end: SmootherElement) -> SmootherElement:
    """Onto what a device composes: nothing, or on the last one the end of time."""
    empty = no_steps(end.g, diagonal=end.E.ndim == end.g.ndim)
    identity = SmootherElement(empty.A, empty.b, empty.C)
    is_last = axis.place == axis.size - 1
    return jax.tree.map(lambda a, b: jnp.where(is_last, a, b), end, identity)


def _like(single: Element, many: Element) -> Element:
    return jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), single, many)


def _filter_combine(single: FilterElement | Run) -> Callable:
    if isinstance(single, Run):
        return combine_runs
    diagonal = single.A.ndim == single.b.ndim
    return combine_filter_diagonal if diagonal else combine_filter_dense


def _smoother_combine(single: SmootherElement) -> Callable:
    diagonal = single.E.ndim == single.g.ndim
    return combine_smoother_diagonal if diagonal else combine_smoother_dense
