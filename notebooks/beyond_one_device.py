# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Beyond one device
#
# A sequence that does not fit one accelerator is cut over time, one piece to each
# device of a mesh. A pass of any method then is: every device runs through its own
# piece, tells the others what its piece does to a state (D x D numbers), and corrects
# its piece for what comes in. Nothing of length T ever travels.
#
# On a CPU, XLA makes devices up, so that this notebook runs anywhere.
# Needs `pip install elk-ssm`.

# %%
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import elk_ssm as elk

T, D = 80_000, 4
mesh = Mesh(np.array(jax.devices()), ("time",))
rng = np.random.default_rng(0)
W = jnp.asarray(1.2 * rng.normal(size=(D, D)) / D**0.5, jnp.float32)
inputs = rng.normal(size=(T, D)).astype(np.float32)
inputs = jax.device_put(inputs, NamedSharding(mesh, P("time")))


def solve(W, inputs, **options):
    """Evaluate an Elman network."""
    return elk.evaluate(
        lambda x, u: jnp.tanh(W @ x + u), jnp.zeros(D), inputs, **options
    )


# %% [markdown]
# ## The same answer
#
# The mesh is one argument. Status, iterations and states are those without it.

# %%
for name, method in {
    "DEER": elk.deer(),
    "quasi-DEER": elk.quasi_deer(),
    "blocks of 16 with a gate": elk.deer(block_size=16, gate=elk.Gate()),
}.items():
    spread = elk.raise_if_failed(solve(W, inputs, method=method, mesh=mesh))
    alone = solve(W, jax.device_get(inputs), method=method)
    error = np.abs(np.asarray(spread.states) - np.asarray(alone.states)).max()
    print(
        f"{name}: {int(spread.num_iters)} and {int(alone.num_iters)} passes, "
        f"largest difference {error:.1e}"
    )

# %% [markdown]
# ## Where the states are

# %%
spread = solve(W, inputs, method=elk.deer(), mesh=mesh)
for shard in spread.states.addressable_shards[:3]:
    print(shard.device, "holds steps", shard.index[0], "of", spread.states.shape)

# %% [markdown]
# ## What is sent
#
# The compiled program can be read. These are all its collectives, forwards and
# backwards: none of them has a dimension of length T.


# %%
def loss(W):
    """Mean square of the states."""
    return jnp.mean(solve(W, inputs, method=elk.deer(), mesh=mesh).states ** 2)


text = jax.jit(jax.grad(loss)).lower(W).compile().as_text()
kinds = "all-gather|all-reduce|collective-permute"
for line in text.splitlines():
    if found := re.search(rf"= (.*?) ({kinds})\(", line):
        where = "in every pass" if "one_pass" in line else "before or after the passes"
        where = "backwards" if "transpose" in line else where
        print(f"{found[2]:20s} {found[1]:25s} {where}")

# %% [markdown]
# ## A batch over the other axis

# %%
both = Mesh(mesh.devices.reshape(2, 4), ("batch", "time"))
batch = jnp.stack([jax.device_get(inputs)] * 2)
batch = jax.device_put(batch, NamedSharding(both, P("batch", "time")))
run = jax.jit(jax.vmap(lambda u: solve(W, u, method=elk.deer(), mesh=both).states))
print(run(batch).sharding.spec)

# %% [markdown]
# **Takeaways.** `mesh=` is the whole change. A pass costs two small all-gathers and one
# halo, whatever T is; the gradient costs one of each more. Batches stay on their own
# axis. For several processes see `examples/two_processes.py`; for what it costs on 64
# and 1,024 devices, `docs/sharding.md`.
