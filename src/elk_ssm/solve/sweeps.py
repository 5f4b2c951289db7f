r"""Tangents and cotangents swept through blocks of a path, all blocks side by side.

`sweep_blocks` always takes two sweeps of about sqrt(T) steps, the first of which pushes
(pulls) D unit vectors along. `sweep_short_blocks` does without: short blocks are
swept from where their neighbours ended until they fit, as `short_blocks` does with the
states; what the recurrence forgets, its derivatives forget. They fit when all misfits
together are rounding,

    sum_k max_d |m_k| / size <= 16 eps,

so that they stay rounding where nothing is forgotten; else the other sweep is taken.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._platforms import by_platform
from elk_ssm._types import Array
from elk_ssm.kalman.affine import affine_exclusive
from elk_ssm.linalg.structure import Dense
from elk_ssm.parallel.anywhere import anywhere
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.fitting_blocks import Fitted, fit_blocks
from elk_ssm.solve.nodes import fill_up, in_order
from elk_ssm.solve.path import Path
from elk_ssm.solve.stopping import scale_of
from elk_ssm.solve.unrolling import equations_of, scan_by_platform

_ROUNDING_UNITS = 16
# What is so much smaller than the largest counts as no smaller than that.
_SMALLEST = 1e-10


class _Sweep(NamedTuple):
    """Steps of a path in blocks, and how a (co)tangent goes through one of them.

    Attributes:
        path: The path.
        entries: State, inputs, whether the step exists and the source of every step,
            leading axes `(C, n)`. Steps that fill up the last block pass on what they
            are given.
        equations: How many equations a step has.
        reverse: Whether cotangents are pulled, from the last step to the first.
    """

    path: Path
    entries: tuple
    equations: int
    reverse: bool

    def through(self, entry: tuple, d: Array) -> tuple[Array, Array]:
        """Return what leaves a step that d enters, and its output."""
        x, u, exists, source = entry
        if self.reverse:
            return jnp.where(exists, self.path.pull(x, u, d + source), d), d + source
        d = jnp.where(exists, self.path.push(x, u, d) + source, d)
        return d, d

    def collect(self, begins: Array) -> tuple[Array, Array]:
        """Return what leaves every block, `(n, D)`, and all outputs, `(C, n, D)`."""

        def body(d: Array, entry: tuple) -> tuple[Array, Array]:
            return jax.vmap(self.through)(entry, d)

        def by_steps(begins: Array, entries: tuple) -> tuple[Array, Array]:
            each, reverse = self.equations, self.reverse
            return scan_by_platform(body, begins, entries, each, reverse=reverse)

        if not (self.path.kernel and self._fits_kernel(begins)):
            return by_steps(begins, self.entries)
        return by_platform(begins, self.entries, cuda=self._in_kernel, default=by_steps)

    def _walked(self, consts: list, d: Array, entry: tuple) -> Array:
        path = self.path._replace(consts=consts)
        return self._replace(path=path).through(entry, d)[0]

    def _fits_kernel(self, begins: Array) -> bool:
        from elk_ssm.kernels import why_not

        consts = self.path.consts
        return why_not(self._walked, consts, begins, self.entries) is None

    def _in_kernel(self, begins: Array, entries: tuple) -> tuple[Array, Array]:
        from elk_ssm.kernels import Walk, roll_out_lanes

        consts, how = self.path.consts, Walk(reverse=self.reverse)
        after = roll_out_lanes(self._walked, consts, begins, entries, how)
        if not self.reverse:
            return after[-1], after
        # What enters a step, and the source that it adds.
        entering = jnp.concatenate([after[1:], begins[None]])
        return after[0], entering + entries[3]

    def following(self, ends: Array) -> Array:
        """What enters every block, when this leaves them; zero the first."""
        zero = jnp.zeros_like(ends[:1])
        parts = [ends[1:], zero] if self.reverse else [zero, ends[:-1]]
        return jnp.concatenate(parts)


def sweep_blocks(path: Path, source: Array, *, reverse: bool) -> Array:
    """Blocks side by side: memory T x D and (T / C) x D x D, depth 2 C + 2 log2(T / C).

    A first sweep finds what each block adds on its own and how it maps its boundary, by
    pushing (pulling) the D unit vectors through it; an affine scan joins the blocks;
    a second sweep starts from the right boundaries.
    """
    length, size = source.shape
    sweep = _cut(path, source, max(int(length**0.5), 1), reverse)
    count = sweep.entries[2].shape[1]

    def columns(entry: tuple, m: Array) -> Array:
        quiet = (*entry[:3], jnp.zeros_like(entry[3]))
        return jax.vmap(lambda d: sweep.through(quiet, d)[0], -1, -1)(m)

    def body(carry: tuple, entry: tuple) -> tuple[tuple, None]:
        d, m = carry
        d = jax.vmap(sweep.through)(entry, d)[0]
        return (d, jax.vmap(columns)(entry, m)), None

    nothing = jnp.zeros((count, size), source.dtype)
    unit = jnp.broadcast_to(jnp.eye(size, dtype=source.dtype), (count, size, size))
    begin = nothing, unit
    (own, maps), _ = jax.lax.scan(body, begin, sweep.entries, reverse=reverse)
    how: Any = {"reverse": reverse, "backend": "auto", "axis": path.axis}
    begins = affine_exclusive(Dense(maps), own, **how)
    return in_order(sweep.collect(begins)[1])[:length]


def sweep_short_blocks(path: Path, source: Array, *, reverse: bool) -> Array:
    """Sweep short blocks until they fit; where they do not, `sweep_blocks`."""
    fitted, found = fit_sweeps(path, source, reverse=reverse)
    fits = fitted.fits & jnp.all(jnp.isfinite(found))

    def otherwise() -> Array:
        exact = sweep_blocks(path, source, reverse=reverse)
        return jnp.where(fits, found, exact)

    with jax.named_scope("long_sweeps"):
        return jax.lax.cond(anywhere(~fits), otherwise, lambda: found)


def fit_sweeps(path: Path, source: Array, *, reverse: bool) -> tuple[Fitted, Array]:
    """Sweep short blocks until they fit, or are not to be expected to.

    Returns:
        How it ended, and the outputs of all steps, `(T, D)`.
    """
    length, size = source.shape
    auto = Auto()
    block = min(auto.short_block_size(length, size), length)
    sweep = _cut(path, source, block, reverse)

    def follow(collected: tuple[Array, Array]) -> Array:
        return sweep.following(collected[0])

    def left(begins: Array, collected: tuple[Array, Array]) -> Array:
        scale = scale_of(collected[0], block)
        floor = _SMALLEST * jnp.max(scale)
        scale = jnp.maximum(scale, jnp.maximum(floor, jnp.finfo(scale.dtype).tiny))
        misfit = jnp.abs(follow(collected) - begins)
        off = jnp.sum(jnp.max(misfit / scale, axis=1))
        return jnp.log(off / (_ROUNDING_UNITS * jnp.finfo(scale.dtype).eps))

    begins = jax.ShapeDtypeStruct((sweep.entries[2].shape[1], size), source.dtype)
    shapes = jax.eval_shape(sweep.collect, begins)
    before = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    most = auto.most_short_passes(block)
    with jax.named_scope("sweeps"):
        fitted = fit_blocks(sweep.collect, follow, left, before, most)
    return fitted, in_order(fitted.rolled[1])[:length]


def _cut(path: Path, source: Array, block: int, reverse: bool) -> _Sweep:
    length = source.shape[0]
    fill = -length % block

    def lay_out(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(-1, block, *x.shape[1:]), 0, 1)

    given = path.before, path.inputs
    steps = jax.tree.map(lambda x: fill_up(x, length + fill), given)
    exists = jnp.arange(length + fill) < length
    source = jnp.concatenate([source, jnp.zeros_like(source[:1]).repeat(fill, 0)])
    entries = jax.tree.map(lay_out, (*steps, exists, source))
    first = jax.tree.map(lambda x: x[0], given)
    along = path.pull if reverse else path.push
    equations = equations_of(along, *first, source[0])
    return _Sweep(path, entries, equations, reverse)
