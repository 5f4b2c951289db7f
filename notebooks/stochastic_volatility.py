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
# # Volatility of the S&P 500
#
# The log variance of a daily return follows a slow autoregression:
#
#     h_t = m + phi (h_{t-1} - m) + N(0, q)        y_t ~ N(0, exp h_t)
#
# Its most probable path comes with bands, and the three parameters from the Laplace
# approximation of the marginal likelihood. Needs
# `pip install "elk-ssm[plots]" arch`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from arch.data import sp500

import elk_ssm as elk

jax.config.update("jax_enable_x64", True)
table = sp500.load()
days = table.index[1:].to_numpy()
returns = 100 * np.diff(np.log(np.asarray(table["Adj Close"])))
y = jnp.asarray(returns)[:, None]
print(f"{len(y)} returns in percent, {int(np.sum(returns == 0))} of them zero")


# %%
def log_density(h, y, u):
    """Log density of a return y whose log variance is h."""
    return -0.5 * jnp.sum(jnp.log(2 * jnp.pi) + h + y**2 * jnp.exp(-h))


def build(params):
    """Log variance: an autoregression around a mean, started in its equilibrium."""
    mean, phi = params["mean"], jax.nn.sigmoid(params["logit_phi"])
    q = jnp.exp(params["log_q"])
    return elk.NonlinearSSM(
        initial_mean=jnp.reshape(mean, (1,)),
        initial_covariance=jnp.reshape(q / (1 - phi**2), (1, 1)),
        dynamics=lambda h, u: mean + phi * (h - mean),
        dynamics_covariance=jnp.reshape(q, (1, 1)),
        log_density=log_density,
    )


start = {"mean": jnp.zeros(()), "logit_phi": jnp.array(3.0), "log_q": jnp.array(-3.0)}
fitted = elk.fit(build, start, y, num_steps=400)
phi, q = jax.nn.sigmoid(fitted.params["logit_phi"]), jnp.exp(fitted.params["log_q"])
print(f"m = {fitted.params['mean']:.3f}, phi = {phi:.4f}, sqrt q = {q**0.5:.3f}")
print(f"log likelihood of a return: {fitted.objective[0]:.4f} at the start, "
      f"{fitted.objective[-1]:.4f} at the end")  # fmt: skip

# %% [markdown]
# The fit returns the smoothed path at the learned parameters. Its status says whether
# to believe it, and the bands come from the curvature of the posterior at the mode.

# %%
path = fitted.smoothed
print(elk.Status(int(path.status)).name, "after", int(path.num_iters), "passes")
deviation = jnp.sqrt(path.covariances[:, 0, 0])
volatility, low, high = (
    np.exp((path.means[:, 0] + s * 1.96 * deviation) / 2) for s in (0, -1, 1)
)

figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
axis.plot(days, np.abs(returns), ".", color="0.55", ms=2, label="|return|")
axis.fill_between(days, low, high, color="0.8", lw=0, label="95 % band")
axis.plot(days, volatility, "k-", lw=1, label="volatility")
axis.set(yscale="log", ylim=(0.1, 20), ylabel="percent a day", xlabel="year")
axis.legend(loc="upper left", ncols=3)
plt.show()

# %% [markdown]
# **Takeaways.** The smoother that evaluates a recurrence also finds the path of a
# latent volatility: only the log density of a return had to be written. A zero return
# has a flat likelihood and needs no special care. Learning the parameters is gradient
# ascent through the smoother. `docs/nonlinear_ssm.md` compares path, bands and
# parameters with quadrature and with a long NUTS run.
