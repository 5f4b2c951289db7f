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
# # The firing rate of a grasshopper's receptor
#
# 929 spike times that the package `nitime` ships are counted in bins of 10 ms. The
# counts are Poisson, and their log rate is a random walk:
#
#     z_t = z_{t-1} + N(0, q)        y_t ~ Poisson(exp z_t)
#
# How fast the rate changes, q, is learned. Needs
# `pip install "elk-ssm[plots]" nitime`.

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import nitime
import numpy as np
from tensorflow_probability.substrates.jax import distributions as tfd

import elk_ssm as elk

jax.config.update("jax_enable_x64", True)
folder = Path(nitime.__file__).parent / "data"
spikes = np.loadtxt(folder / "grasshopper_spike_times1.txt") * 1e-6  # seconds
BIN = 0.01
edges = np.arange(0, spikes.max() + BIN, BIN)
counts = np.histogram(spikes, edges)[0].astype(float)
seconds = edges[: len(counts)] + BIN / 2
print(len(spikes), "spikes,", len(counts), "bins,", f"mean count {counts.mean():.2f}")


# %%
def build(log_q):
    """Build the log rate: a random walk. Any TFP distribution can be the emission."""
    return elk.NonlinearSSM.from_distribution(
        initial_mean=jnp.zeros(1),
        initial_covariance=jnp.eye(1),
        dynamics=lambda z, u: z,
        dynamics_covariance=jnp.reshape(jnp.exp(log_q), (1, 1)),
        distribution=lambda z, u: tfd.Poisson(log_rate=z),
    )


fitted = elk.fit(build, jnp.array(-6.0), counts[:, None], num_steps=300)
print(f"sqrt q = {float(jnp.exp(fitted.params / 2)):.4f} a bin")

# %%
path = fitted.smoothed
print(elk.Status(int(path.status)).name, "after", int(path.num_iters), "passes")
deviation = jnp.sqrt(path.covariances[:, 0, 0])
rate, low, high = (
    np.exp(path.means[:, 0] + s * 1.96 * deviation) / BIN for s in (0, -1, 1)
)

figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
axis.eventplot(
    spikes[spikes < seconds[-1]],
    colors="0.4",
    lineoffsets=50,
    linelengths=6,
    linewidths=0.3,
)
axis.fill_between(seconds, low, high, color="0.8", lw=0, label="95 % band")
axis.plot(seconds, rate, "k-", lw=1.5, label="rate")
axis.set(xlabel="seconds", ylabel="spikes a second", ylim=(45, None))
axis.legend(loc="upper right")
plt.show()

# %% [markdown]
# **Takeaways.** The rate falls from about 115 to 80 spikes a second: the receptor
# adapts. Counts need only a distribution, the bands come from its Newton weights, and
# the smoothness of the rate is learned. The cell is more regular than a Poisson
# process (its counts vary less than their mean), so these bands are on the wide side.
