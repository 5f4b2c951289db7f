# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which method when
#
# Whether a recurrence can be evaluated in parallel depends on how it treats small
# differences: forgets them, carries them along, or amplifies them. `elk.diagnose`
# measures that; this notebook checks its advice on three recurrences. Needs
# `pip install "elk-ssm[plots]"`.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import elk_ssm as elk

jax.config.update("jax_enable_x64", True)
SEED, DTYPE = 1, jnp.float64
T, D = 500, 8

# %% [markdown]
# ## Three recurrences
# The same random network, with weak weights, as a slow leaky integrator, and with
# strong weights.

# %%
W = jax.random.normal(jax.random.key(SEED), (D, D), DTYPE) / D**0.5
inputs = 0.3 * jax.random.normal(jax.random.key(SEED + 1), (T, D), DTYPE)
x0 = 0.1 * jnp.ones(D, DTYPE)

recurrences = {
    "forgetful": lambda x, u: jnp.tanh(0.6 * W @ x + u),
    "slow": lambda x, u: 0.98 * x + 0.02 * jnp.tanh(W @ x + u),
    "chaotic": lambda x, u: jnp.tanh(3.0 * W @ x + u),
}

# %% [markdown]
# ## Ask first
# A grey line follows a perturbation from its start: falling is forgetting, rising is
# amplification. The largest rise over *any* interval is what costs iterations.

# %%
_, panels = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
for (name, f), ax in zip(recurrences.items(), panels):
    found = elk.diagnose(f, x0, inputs)
    print(f"{name}\n{found}\n")
    elk.plotting.diagnosis(found, ax)
    ax.set_title(name)
plt.show()

# %% [markdown]
# ## Then try
# Iterations until convergence, and how deep the computation is: an iteration is one
# step of $f$ and a scan of depth about $2 \log_2 T$; with blocks of $C$ steps it is $C$
# steps and a scan over $T / C$ of them. One sequential evaluation has depth $T$.

# %%
GATE = elk.Gate()
methods = {
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "elk, annealed": elk.elk(elk.Annealed()),
    "deer, C = 16, gate": elk.deer(block_size=16, gate=GATE),
    "quasi_deer, C = 16, gate": elk.quasi_deer(block_size=16, gate=GATE),
    "auto, as on a GPU": elk.auto(strategy="short_blocks"),
}


def depth(method, sol):
    block = method.block_size or int(sol.plan.block_size)
    return int(sol.num_iters) * (block + 2 * np.log2(max(T / block, 2))) / T


print(f"{'iterations (depth / T)':>26}", *(f"{name:>16}" for name in recurrences))
histories = {}
for label, method in methods.items():
    cells = []
    for name, f in recurrences.items():
        sol = elk.evaluate(f, x0, inputs, method=method, history=T)
        count = int(sol.num_iters)
        if sol.status != elk.Status.converged:
            cells.append(elk.Status(int(sol.status)).name)
        else:
            cells.append(f"{count} ({depth(method, sol):.2f})")
        if name == "chaotic" and isinstance(method, elk.Method):
            histories[label] = sol.history
    print(f"{label:>26}", *(f"{cell:>16}" for cell in cells))

# %% [markdown]
# The forgetful one is easy for everybody. The slow one is nearly diagonal, and the
# advice is a diagonal method: its iterations are cheap, `(T, D)` memory instead of
# `(T, D, D)`, but there are many, because small off-diagonal entries act for many
# steps. The chaotic one is where nothing parallel wins: depths come to $T$ and beyond.

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
elk.plotting.residuals(histories, left)
left.set_ylim(1e-16, 1e6)
left.set_title("chaotic: residuals")
elk.plotting.gate(histories["deer, C = 16, gate"], right)
right.set_title("chaotic: blocks of 16, gate")
plt.show()

# %% [markdown]
# ## On this machine's clock
# `auto()` against `jax.lax.scan`, long sequences, the default precision. Above 1 the
# scan was faster.

# %%
LONG = 30_000
long_inputs = jnp.tile(inputs, (LONG // T + 1, 1))[:LONG].astype(jnp.float32)
weights, start = W.astype(jnp.float32), x0.astype(jnp.float32)
networks = {
    "forgetful": lambda x, u: jnp.tanh(0.6 * weights @ x + u),
    "chaotic": lambda x, u: jnp.tanh(3.0 * weights @ x + u),
}


def compared(*runs):
    """Median seconds of each, taking turns so that a busy machine disturbs all."""
    compiled = [jax.jit(run).lower(long_inputs).compile() for run in runs]
    times = []
    for _ in range(15):
        for run in compiled:
            begun = time.perf_counter()
            jax.block_until_ready(run(long_inputs))
            times.append(time.perf_counter() - begun)
    return np.median(np.reshape(times, (-1, len(runs))), axis=0)


for name, f in networks.items():
    scan, auto = compared(
        lambda u, f=f: elk.sequential(f, start, u).states,
        lambda u, f=f: elk.evaluate(f, start, u).states,
    )
    plan = elk.evaluate(f, start, long_inputs).plan.describe()
    print(f"{name}: auto / scan = {auto / scan:.2f}  ({plan})")

# %% [markdown]
# **Takeaways.**
#
# - `print(elk.diagnose(f, x0, inputs))` before anything else.
# - Forgetting: blocks agree after two or three passes, and `auto()` uses that.
# - Carrying along: diagonal methods if the Jacobian is nearly diagonal, else `deer()`.
# - Amplifying: blocks with a gate need the fewest passes, but no method makes chaos
#   cheap. On a CPU, evaluate it sequentially; `auto()` does.
