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
# # Training an RNN whose recurrences are evaluated in parallel
#
# A classifier of shoulder exercises from the watch recordings that `seglearn` ships:
# 140 recordings, 6 channels, 947 to 2,618 samples, 10 subjects. The layer is
# `flax.linen.RNN` with one more option, `method`; parameters and results are flax's.
# Needs `pip install "elk-ssm[plots,flax]" seglearn`.

# %%
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from seglearn.datasets import load_watch

import elk_ssm as elk
from elk_ssm.interop import cells
from elk_ssm.interop.cells.layers import linen

SEED, DTYPE = 0, jnp.float32
SIZE, STEPS, STRIDE = 16, 150, 2

# %% [markdown]
# ## The data
# Subjects 8 to 10 are kept for testing. Recordings are padded at the end, and their
# lengths go along.

# %%
data = load_watch()
subjects, labels = np.asarray(data["subject"], int), np.asarray(data["y"], int)
series = [np.asarray(x)[::STRIDE] for x in data["X"]]
lengths = np.array([len(x) for x in series])
together = np.concatenate(series)
inputs = np.zeros((len(series), lengths.max(), 6), DTYPE)
for row, x in zip(inputs, series):
    row[: len(x)] = (x - together.mean(0)) / together.std(0)
test = subjects >= 8
print(inputs.shape, f"{(~test).sum()} to train on, {test.sum()} to test")


# %% [markdown]
# ## The model
# Two layers; the mean over the valid steps is classified, so padding cannot reach it.


# %%
class Classifier(nn.Module):
    layer: type = linen.RNN

    @nn.compact
    def __call__(self, x, lengths):
        for _ in range(2):
            x = self.layer(nn.GRUCell(SIZE))(x, seq_lengths=lengths)
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        mean = jnp.where(valid[..., None], x, 0).sum(1) / lengths[:, None]
        return nn.Dense(7)(mean)


def train(layer, steps=STEPS):
    model, adam = Classifier(layer), optax.adam(1e-2)
    params = model.init(jax.random.key(SEED), inputs[:2], lengths[:2])
    state, rng, losses = adam.init(params), np.random.default_rng(SEED), []

    def loss(params, x, n, y):
        scores = model.apply(params, x, n)
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    @jax.jit
    def step(params, state, *batch):
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    for _ in range(steps):
        rows = rng.choice(np.flatnonzero(~test), 16, replace=False)
        batch = inputs[rows], lengths[rows], labels[rows]
        params, state, value = step(params, state, *batch)
        losses.append(float(value))
    scores = jax.jit(model.apply)(params, inputs[test], lengths[test])
    return params, losses, float((scores.argmax(-1) == labels[test]).mean())


params, ours, our_accuracy = train(linen.RNN)
_, flax_losses, flax_accuracy = train(nn.RNN)
# The default on a CPU steps through a batch, which fills the vector unit by itself. So
# the first steps once more, with a method that is parallel over time everywhere.
blocks = elk.deer(block_size=16, gate=elk.Gate())
_, newton, _ = train(partial(linen.RNN, method=blocks), steps=min(STEPS, 10))

# %%
print(f"test accuracy: default {our_accuracy:.3f}, flax's scan {flax_accuracy:.3f}")
for name, losses in (("default", ours), ("Newton over blocks", newton)):
    gap = max(abs(a - b) for a, b in zip(losses, flax_losses[: len(newton)]))
    print(f"{name}: first {len(newton)} losses differ from flax's by {gap:.0e}")
plt.plot(ours, "k-", label="this layer, default method")
plt.plot(flax_losses, ":", color="tab:orange", label="flax's scan")
plt.plot(newton, "ko", label="this layer, Newton over blocks")
plt.xlabel("step of the optimiser")
plt.ylabel("training loss (nats)")
plt.legend()
plt.show()

# %% [markdown]
# ## The trained cell on its own
# `from_cell` turns the cell and its variables into a recurrence, and `diagonal` gives
# the exact diagonal of its Jacobian in closed form.

# %%
variables = {"params": params["params"]["GRUCell_0"]}
f, h0 = cells.from_cell(nn.GRUCell(SIZE), variables)
for name, method in {
    "auto": elk.auto(),
    "deer": elk.deer(),
    "quasi_deer, closed form": elk.quasi_deer(linearization=cells.diagonal(f)),
}.items():
    sol = elk.evaluate(f, h0, jnp.asarray(inputs[0, : lengths[0]]), method=method)
    print(f"{name:>24}: {elk.Status(int(sol.status)).name}, {int(sol.num_iters)}")

# %% [markdown]
# **Takeaways.** The layer is a drop-in: same parameters, same losses up to rounding,
# same accuracy, whatever the method. Which one is fast depends on the machine, the
# batch and how long the trained cell remembers: `python -m benchmarks.training`
# measures it.
