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
# # Together with dynamax
#
# A model written for dynamax is evaluated, sampled, smoothed and fitted here without
# being rewritten, and what comes back are dynamax's own types. The last section goes
# the other way: the surrogate of an RNN becomes a dynamax model. Needs
# `pip install "elk-ssm[plots]"`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from dynamax.linear_gaussian_ssm import lgssm_filter
from dynamax.nonlinear_gaussian_ssm import ParamsNLGSSM, extended_kalman_smoother

import elk_ssm as elk
from elk_ssm.interop import dynamax as bridge
from elk_ssm.interop import dynamax_nonlinear as nonlinear

jax.config.update("jax_enable_x64", True)
SEED, DTYPE = 0, jnp.float64
T, DT, STEPS = 400, 0.05, 60

# %% [markdown]
# ## An existing model
# A pendulum whose horizontal position is seen with noise, with dynamax's parameters.

# %%
GRAVITY = 9.8


def swing(z, gravity=GRAVITY):
    velocity = z[1] - gravity * DT * jnp.sin(z[0])
    return jnp.array([z[0] + DT * velocity, velocity])


params = ParamsNLGSSM(
    initial_mean=jnp.array([1.2, 0.0], DTYPE),
    initial_covariance=0.01 * jnp.eye(2, dtype=DTYPE),
    dynamics_function=swing,
    dynamics_covariance=1e-3 * jnp.eye(2, dtype=DTYPE),
    emission_function=lambda z: jnp.sin(z[:1]),
    emission_covariance=0.09 * jnp.eye(1, dtype=DTYPE),
)

# %% [markdown]
# ## Evaluate and sample
# Without noise, the dynamics are a recurrence. With noise, a trajectory is one too,
# once the noise is drawn: `elk.sample` draws it first and evaluates in parallel.

# %%
still = elk.evaluate(
    lambda z, u: swing(z), params.initial_mean, length=T, method=elk.deer()
)
model = nonlinear.from_dynamax(params)
drawn = elk.sample(model, jax.random.key(SEED), T)
print(elk.Status(int(still.status)).name, elk.Status(int(drawn.status)).name)
emissions = drawn.emissions.at[T // 2 : T // 2 + T // 10].set(jnp.nan)  # a gap

# %% [markdown]
# ## Smooth
# dynamax's extended Kalman smoother is one linearisation along a filter pass. Ours
# starts there, iterates to a mode of the posterior, and takes NaN for missing; without
# the gap the two can be compared. (A sine is seen at two angles: from a worse start the
# iteration can end in a worse mode.)

# %%
theirs = extended_kalman_smoother(params, drawn.emissions)
ours, found = nonlinear.smooth_with_status(params, drawn.emissions, guess="extended")
print(type(ours).__name__, elk.Status(int(found.status)).name, end="; ")
for name, posterior in (("extended", theirs), ("iterated", ours)):
    means = posterior.smoothed_means
    error = jnp.sqrt(jnp.mean((means - drawn.states) ** 2))
    density = elk.log_prob(model, means, drawn.emissions)
    print(f"{name}: error {error:.4f}, log posterior {density:.2f}", end="; ")
print()

gap = elk.smooth(model, emissions, guess="extended")
time = DT * np.arange(T)
angle, deviation = gap.means[:, 0], gap.covariances[:, 0, 0] ** 0.5
_, ax = plt.subplots(figsize=(9, 3.5), layout="constrained")
truth, labels = drawn.states[:, 0], ["smoothed ± 2 std"]
elk.plotting.bands(time, truth, angle, deviation, ax, labels=labels)
ax.plot(
    time, emissions, "k.", markersize=2, alpha=0.5, label="observed sine of the angle"
)
ax.set(xlabel="time (s)", ylabel="angle (rad)")
ax.legend(loc="upper right", ncols=3, fontsize="small")
plt.show()

# %% [markdown]
# ## Fit
# `elk.fit` ascends the marginal likelihood of the Gaussian approximation at the mode;
# its gradient is implicit. The gravity is forgotten and found again.


# %%
def build(gravity):
    return nonlinear.from_dynamax(
        params._replace(dynamics_function=lambda z: swing(z, gravity))
    )


fitted = elk.fit(
    build,
    jnp.asarray(7.0, DTYPE),
    emissions,
    num_steps=STEPS,
    optimizer=0.2,
    guess=gap.means,
)
print(f"gravity: started at 7, true {GRAVITY}, fitted {float(fitted.params):.2f}")
observed_count = int(jnp.isfinite(emissions).sum())
plt.figure(figsize=(6, 3), layout="constrained")
plt.plot(range(1, STEPS + 1), fitted.objective * observed_count, "k-")
plt.xlabel("step of the optimiser")
plt.ylabel("log likelihood (nats)")
plt.show()

# %% [markdown]
# ## The other way: an RNN's surrogate in dynamax
# The surrogate of a recurrence around a guess is a linear-Gaussian model, so dynamax
# can filter it. Its filtered mean is the next iterate of ELK.

# %%
W = jax.random.normal(jax.random.key(SEED + 1), (3, 3), DTYPE)
inputs = jax.random.normal(jax.random.key(SEED + 2), (T, 3), DTYPE)
guess = jnp.zeros((T, 3), DTYPE)
surrogate = elk.linearize(
    lambda x, u: jnp.tanh(W @ x + u),
    guess,
    inputs,
    initial_state=guess[0],
    noise=1e2,
)
as_dynamax, observed = bridge.to_dynamax(surrogate)
theirs = lgssm_filter(as_dynamax, observed)
difference = jnp.abs(theirs.filtered_means - surrogate.filter().means).max()
print(f"dynamax's filter and ours differ by {difference:.0e}")

# %% [markdown]
# **Takeaways.**
#
# - `interop.dynamax_nonlinear.smooth(params, emissions)` takes and returns dynamax's
#   types; `from_dynamax` gives the model that `elk.sample`, `elk.smooth` and `elk.fit`
#   take.
# - The iterated smoother ends at the mode, so its log posterior is not below that of
#   the extended one, and gaps in the data are NaN.
# - For linear models, `elk_ssm.interop.dynamax` has `lgssm_filter`, `lgssm_smoother`
#   and `lgssm_posterior_sample` under dynamax's own names.
