# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # The firing rate of a grasshopper's receptor
#
# Spike times that the package `nitime` ships are counted in bins; the counts are
# Poisson with a log rate that is a random walk. Needs `pip install nitime`.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import nitime
import numpy as np

from elk_ssm.nssm.fit import fit
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.smooth import smooth

jax.config.update("jax_enable_x64", True)
SMALL = os.environ.get("ELK_SMALL") == "1"
folder = Path(nitime.__file__).parent / "data"
spikes = np.loadtxt(folder / "grasshopper_spike_times1.txt")  # microseconds
BIN = 10_000.0
edges = np.arange(0, spikes.max() + BIN, BIN)
counts = np.histogram(spikes, edges)[0].astype(float)
counts = jnp.asarray(counts[:200] if SMALL else counts)[:, None]
print(len(spikes), "spikes,", counts.shape[0], "bins of 10 ms")


# %%
def log_density(h, y, u):
    """Poisson with log rate h."""
    return jnp.sum(y * h - jnp.exp(h) - jax.scipy.special.gammaln(y + 1))


def build(log_q):
    """Build the log rate: a random walk."""
    return NonlinearSSM(
        initial_mean=jnp.zeros(1),
        initial_covariance=jnp.eye(1),
        dynamics=lambda z, u: z,
        dynamics_covariance=jnp.exp(log_q) * jnp.eye(1),
        log_density=log_density,
    )


fitted = fit(build, jnp.array(-3.0), counts, num_steps=10 if SMALL else 150)
path = smooth(build(fitted.params), counts)
rate = jnp.exp(path.means[:, 0]) / (BIN * 1e-6)
deviation = jnp.sqrt(path.covariances[:, 0, 0])
print("q", jnp.exp(fitted.params), "status", int(path.status))
print("rate, spikes a second:", rate[:5], "times or divided by", jnp.exp(deviation[:5]))

# %% [markdown]
# **Takeaways.** Counts need only a log density; the bands come from its Newton weights;
# the smoothness of the rate is learned from the data.
