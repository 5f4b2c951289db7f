"""A model with its data in shards of time, one on each device of a mesh."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from elk_ssm._types import Array
from elk_ssm.nssm.options import Limits
from elk_ssm.nssm.posed import Posed, time_axis
from elk_ssm.parallel.mesh import Shards, on_mesh
from elk_ssm.surrogate.noise import unknowns_apart


def on_shards(
    shards: Shards, run: Callable, posed: Posed, guess: Array, limits: Limits
) -> dict[str, Array]:
    """Run a program on every device's shard of a series.

    `run(posed, guess, limits, policy)` returns a NamedTuple, in which means and
    covariances have a time axis and all else is the same on every device.
    """
    steps, policy, of_steps = posed.shape[0], None, None
    if limits.noise is not None:
        noise, policy, of_steps = unknowns_apart(
            limits.noise, posed.shape, posed.initial_mean.dtype
        )
        limits = limits._replace(noise=noise)
    timed: dict[str, Any] = {
        name: getattr(posed, name) for name in ("inputs", "observations")
    }
    for name in ("dynamics_covariance", "emission_covariance"):
        if time_axis(covariance := getattr(posed, name)) == 0:
            timed[name] = covariance
    nothing: dict[str, Any] = dict.fromkeys(timed)
    held = replace(posed, **nothing)

    def body(timed: tuple, common: tuple) -> tuple[dict, dict]:
        (fields, guess, of_steps), (held, limits, policy) = timed, common
        exists = shards.axis.exists(steps)
        if exists is not None:
            seen = fields["observations"].only(exists[:, None])
            fields = {**fields, "observations": seen}
        shard = replace(held, **fields, axis=shards.axis, exists=exists)
        state = policy if of_steps is None else of_steps
        found = run(shard, guess, limits, state)._asdict()
        over_time = [name for name in found if name.endswith(("means", "covariances"))]
        return {name: found.pop(name) for name in over_time}, found

    timed_and_common = (timed, guess, of_steps), (held, limits, policy)
    over_time, numbers = on_mesh(shards, body, *timed_and_common, steps)
    return {**over_time, **numbers}
