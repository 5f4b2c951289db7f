# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Volatility of the S&P 500
#
# The log volatility follows a slow autoregression, and a day's return is normal with
# that volatility. The latent path is a MAP trajectory with bands; the parameters come
# from the Laplace approximation of the marginal likelihood. Needs `pip install arch`.

# %%
import os

import jax
import jax.numpy as jnp
import numpy as np
from arch.data import sp500

from elk_ssm.nssm.fit import fit
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.smooth import smooth

jax.config.update("jax_enable_x64", True)
SMALL = os.environ.get("ELK_SMALL") == "1"
prices = np.asarray(sp500.load()["Adj Close"])
returns = 100 * np.diff(np.log(prices))
returns = jnp.asarray(returns[-300:] if SMALL else returns)[:, None]
print(returns.shape)


# %%
def log_density(h, y, u):
    """Log density of a return y whose log variance is h."""
    return -0.5 * jnp.sum(jnp.log(2 * jnp.pi) + h + y**2 * jnp.exp(-h))


def build(params):
    """Log variance: an autoregression around a mean, started in its equilibrium."""
    mean, phi = params["mean"], jax.nn.sigmoid(params["phi"])
    q = jnp.exp(params["log_q"])
    return NonlinearSSM(
        initial_mean=jnp.atleast_1d(mean),
        initial_covariance=jnp.reshape(q / (1 - phi**2), (1, 1)),
        dynamics=lambda z, u: mean + phi * (z - mean),
        dynamics_covariance=jnp.reshape(q, (1, 1)),
        log_density=log_density,
    )


start = {"mean": jnp.zeros(()), "phi": jnp.array(3.0), "log_q": jnp.array(-3.0)}
fitted = fit(build, start, returns, num_steps=10 if SMALL else 200)
phi = jax.nn.sigmoid(fitted.params["phi"])
print("mean", fitted.params["mean"], "phi", phi, "q", jnp.exp(fitted.params["log_q"]))

# %%
path = smooth(build(fitted.params), returns)
deviation = jnp.sqrt(path.covariances[:, 0, 0])
low, high = (jnp.exp((path.means[:, 0] + s * 2 * deviation) / 2) for s in (-1, 1))
print("status", int(path.status), "passes", int(path.num_iters))
print("daily volatility, first days:", jnp.exp(path.means[:5, 0] / 2))
print("bands:", low[:5], high[:5])

# %% [markdown]
# **Takeaways.** The smoother that evaluates a recurrence also finds the path of a
# latent volatility; a zero return has a flat likelihood and needs no special care;
# learning the parameters is a gradient ascent.
