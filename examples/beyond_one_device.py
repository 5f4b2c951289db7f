r"""One sequence over the devices of one process; on a CPU, devices that XLA makes up.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python examples/beyond_one_device.py

On a machine with several accelerators leave the flag out. The example evaluates an
Elman network over time, a batch of them over batch and time, differentiates, and
smooths a linear-Gaussian model: with a mesh in one argument each time.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import elk_ssm as elk


def main(length: int) -> None:
    """Run all parts with T = `length` steps."""
    devices = np.array(jax.devices())
    mesh = Mesh(devices, ("time",))
    print(f"{devices.size} devices of kind {devices[0].device_kind}")

    rng = np.random.default_rng(0)
    W = jnp.asarray(rng.normal(size=(8, 8)) / 8**0.5, jnp.float32)
    x0, inputs = jnp.zeros(8), rng.normal(size=(length, 8)).astype(np.float32)
    inputs = jax.device_put(inputs, NamedSharding(mesh, P("time")))

    def states_of(W, inputs, mesh=mesh):
        def f(x, u):
            return jnp.tanh(W @ x + u)

        method = elk.deer(block_size=16, gate=elk.Gate())
        return elk.evaluate(f, x0, inputs, method=method, mesh=mesh)

    sol = elk.raise_if_failed(states_of(W, inputs))
    pieces = sorted({shard.data.shape for shard in sol.states.addressable_shards})
    passes = int(sol.num_iters)
    print(f"states {sol.states.shape}, on each device {pieces}, {passes} passes")

    def loss(W, mesh):
        return jnp.mean(states_of(W, inputs, mesh).states ** 2)

    spread, alone = jax.grad(loss)(W, mesh), jax.grad(loss)(W, None)
    error = jnp.max(jnp.abs(spread - alone)) / jnp.max(jnp.abs(alone))
    print(f"gradient: {float(error):.1e} relative to the one without a mesh")

    if devices.size % 2 == 0:
        both = Mesh(devices.reshape(2, -1), ("batch", "time"))
        batch = jnp.stack([inputs, -inputs])
        batch = jax.device_put(batch, NamedSharding(both, P("batch", "time")))
        run = jax.jit(jax.vmap(lambda u: states_of(W, u, both)))
        print(f"batch of two: sharded as {run(batch).states.sharding.spec}")

    one = elk.ScaledIdentity(1.0)
    model = elk.LGSSM(jnp.zeros(8), one, 0.3 * W, one, one, one)
    posterior = elk.lgssm_smoother(model, inputs, mesh=mesh)
    means = posterior.smoothed_means
    print(f"smoothed means {means.shape}, sharded as {means.sharding.spec}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=160_000, help="steps")
    main(parser.parse_args().length)
