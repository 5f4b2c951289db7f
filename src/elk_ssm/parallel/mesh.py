r"""Programs over a mesh: what of them is sharded over time, and how T is padded.

    on_mesh(shards, body, timed, common)     body(timed, common) on every device

`timed` are arrays with a leading time axis, of which each device sees its shard of
ceil(T / P) rows; `common` every device sees whole. Where P does not divide T, rows are
appended that repeat the first one, and the results are cut back to T rows (no sharding
of T rows over P devices is even, so such a result is not sharded either).

Only the time axis of the mesh is taken over: its other axes stay with the compiler,
which is how a batch (`jax.vmap`) that is sharded over another axis stays where it is.
Axis types are about programs that see whole arrays; here every device sees its shard,
and an Explicit mesh is used as the Auto one of the same devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from elk_ssm._jax import is_traced
from elk_ssm.parallel.time_axis import TimeAxis

PyTree: TypeAlias = Any


@dataclass(frozen=True)
class Shards:
    """A mesh and the name of its axis over which time is sharded."""

    mesh: Mesh
    axis_name: str

    @property
    def axis(self) -> TimeAxis:
        """The time axis as a device sees it."""
        return TimeAxis(self.axis_name, self.mesh.shape[self.axis_name])

    def shard(self, length: int) -> int:
        """Steps that each device holds, the last ones also steps past the end."""
        return -(-length // self.axis.size)

    def unknowns(self, length: int, block_size: int) -> int:
        """Number of blocks of all devices; of steps, if C = 1."""
        shard = self.shard(length)
        if block_size == 1:
            return length
        return self.axis.size * -(-shard // min(block_size, shard))


def on_mesh(
    shards: Shards,
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    timed: PyTree,
    common: PyTree,
    length: int,
) -> tuple[PyTree, PyTree]:
    """Run a program on every device of the mesh.

    Args:
        shards: The mesh.
        body: The program on one device, from its shards of `timed` and all of `common`
            to results with a leading time axis and results that are the same on every
            device.
        timed: Arrays whose leading axis is sharded over the devices.
        common: Arrays that every device gets.
        length: T, to which results with a time axis are cut.
    """
    name, count = shards.axis_name, shards.axis.size
    over_time, whole = PartitionSpec(name), PartitionSpec()
    run = jax.shard_map(
        body,
        mesh=shards.mesh,
        in_specs=(over_time, whole),
        out_specs=(over_time, whole),
        axis_names={name},
        check_vma=False,
    )
    padded = jax.tree.map(lambda x: _pad(x, -x.shape[0] % count), timed)
    found, shared = run(padded, common)
    return jax.tree.map(lambda x: _crop(x, length), found), shared


def _pad(x: Array, rows: int) -> Array:
    return jnp.concatenate([x, jnp.repeat(x[:1], rows, axis=0)]) if rows else x


def _crop(x: Array, length: int) -> Array:
    return x if x.shape[0] == length else x[:length]


def shards_of(mesh: Mesh | None, axis_name: str) -> Shards | None:
    """Check the options `mesh` and `axis_name`; None without a mesh.

    Raises:
        TypeError: `mesh` is no `jax.sharding.Mesh`.
        ValueError: The mesh has no such axis, or the context's mesh is Explicit.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh or None; got {type(mesh).__name__}."
        )
    if axis_name not in mesh.axis_names:
        raise ValueError(
            f"axis_name must be an axis of the mesh, one of "
            f"{', '.join(map(repr, mesh.axis_names))}; got {axis_name!r}."
        )
    around = jax.sharding.get_abstract_mesh()
    if any(kind == AxisType.Explicit for kind in around.axis_types):
        raise ValueError(
            "mesh= cannot be used inside jax.set_mesh of a mesh with Explicit axes, "
            f"{around.axis_names}: set one with Auto axes, such as "
            "Mesh(mesh.devices, mesh.axis_names), or none."
        )
    return Shards(_auto(mesh), axis_name)


def _auto(mesh: Mesh) -> Mesh:
    """Return the same devices and axes with every axis left to the compiler."""
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def off_explicit(tree: PyTree, what: str) -> PyTree:
    """Take arrays off the Explicit axes of a mesh (the default of `jax.make_mesh`).

    The data stay where they are; only their type no longer names the axes, which the
    program of one device knows nothing of.

    Raises:
        ValueError: An array is traced, so that its type is part of the program.
    """

    def one(x: Any) -> Any:
        if not isinstance(x, Array):
            return x
        mesh = jax.typeof(x).sharding.mesh
        if all(kind == AxisType.Auto for kind in mesh.axis_types):
            return x
        if is_traced(x):
            raise ValueError(
                f"{what}: a traced array lives on a mesh with Explicit axes, "
                f"{jax.typeof(x)}. Inside jit, grad or vmap, and for arrays that a "
                "function closes over, place arrays on a mesh with Auto axes, such as "
                "Mesh(mesh.devices, mesh.axis_names)."
            )
        sharding: Any = x.sharding
        return jax.device_put(x, NamedSharding(_auto(sharding.mesh), sharding.spec))

    return jax.tree.map(one, tree)


def check_off_explicit(captured: PyTree, what: str) -> None:
    """Raise `ValueError` for arrays on Explicit axes that a function closes over."""
    for x in jax.tree.leaves(captured):
        kinds = jax.typeof(x).sharding.mesh.axis_types
        if any(kind != AxisType.Auto for kind in kinds):
            raise ValueError(
                f"{what} closes over an array on a mesh with Explicit axes, "
                f"{jax.typeof(x)}; place it on Mesh(mesh.devices, mesh.axis_names), "
                "whose axes are Auto."
            )
