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
# # Evaluating an RNN is inference
#
# An RNN, $x_t = f(x_{t-1}, u_t)$, is usually evaluated from left to right. Here we
# evaluate it all at once, by asking a question that a Kalman smoother answers: *given
# a guess of the whole trajectory, where is the trajectory?* Needs
# `pip install "elk-ssm[plots]"`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import elk_ssm as elk

SEED, DTYPE = 2, jnp.float32
T, D = 200, 4
NOISE = 100.0

# %% [markdown]
# ## A recurrence
# Four units that excite and inhibit each other, driven by a slow wave.

# %%
W = jax.random.normal(jax.random.key(SEED), (D, D), DTYPE) / D**0.5
V = jax.random.normal(jax.random.key(SEED + 1), (D,), DTYPE)
inputs = 0.5 * jnp.sin(2 * jnp.pi * jnp.arange(1, T + 1, dtype=DTYPE) / 50)
x0 = jnp.zeros(D, DTYPE)


def f(x, u):
    return jnp.tanh(W @ x + V * u)


truth = elk.sequential(f, x0, inputs).states
print(truth.shape, truth.dtype)

# %% [markdown]
# ## The surrogate
# Take any guess $y_{1:T}$ of the trajectory; zeros will do. Around it, $f$ is nearly
# linear, which gives a linear-Gaussian state-space model for the unknown states:
#
# - *dynamics*: $x_t \approx f(y_{t-1}, u_t) + A_t (x_{t-1} - y_{t-1})$ plus process
#   noise of variance $q$, with $A_t$ the Jacobian of $f$ at the guess;
# - *observations*: the guess itself, $y_t = x_t$ plus noise of variance $q s^2$. They
#   say that the answer is not far from the guess.
#
# `elk.linearize` returns this model. It is an ordinary Kalman problem.

# %%
guess = jnp.zeros((T, D), DTYPE)
model = elk.linearize(f, guess, inputs, initial_state=x0, noise=NOISE)
filtered, smoothed = model.filter(), model.smooth()
print("error of the guess   ", float(jnp.abs(guess - truth).max()))
print("of the filtered mean ", float(jnp.abs(filtered.means - truth).max()))
print("of the smoothed mean ", float(jnp.abs(smoothed.means - truth).max()))

# %% [markdown]
# The posterior mean is a better guess. So take it as the next guess, linearise again,
# and filter again: that loop *is* the method ELK, and one filter pass is one iteration.

# %%
method = elk.elk(NOISE, estimate="filter")
guesses = elk.iterates(f, x0, inputs, method=method, guess=guess, num_iters=20)
# The two differ in the first state: an iteration makes it exact, which the filter,
# which has to believe the guess a little, does not know.
print("first iterate = filtered mean, up to", end=" ")
print(f"{float(jnp.abs(guesses[1] - filtered.means)[1:].max()):.1e}")
checked = elk.raise_if_failed(elk.evaluate(f, x0, inputs, method=method, guess=guess))

# %% [markdown]
# ## The posterior tightens
# The process variance $q$ is estimated from the guess, as the mean squared residual
# $x_t - f(x_{t-1}, u_t)$. A guess that violates the dynamics gives a vague posterior;
# a trajectory that obeys them leaves nothing to be uncertain about.


# %%
@jax.jit
def posterior_around(y):
    return elk.linearize(f, y, inputs, initial_state=x0, method=method).smooth()


shown = (1, 2, 3, 4)
_, panels = plt.subplots(
    len(shown), 1, figsize=(7, 8), sharex=True, layout="constrained"
)
spreads = []
for number in range(len(guesses) - 1):
    posterior = posterior_around(guesses[number])
    spreads.append(float(posterior.standard_deviations.mean()))
    if number + 1 in shown:
        ax = panels[shown.index(number + 1)]
        elk.plotting.iterates({f"pass {number + 1}": posterior}, ax, reference=truth)
        ax.set(xlabel="", ylim=(-1.6, 1.6))
        ax.legend(frameon=False, ncols=2)
panels[-1].set_xlabel("time step")
plt.show()

# %% [markdown]
# The mean band and the true error fall together, and the states near $t = 0$ are right
# first: the initial state is known, and certainty travels from it.

# %%
errors = np.abs(np.asarray(guesses) - truth)
_, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.semilogy(range(1, 21), spreads, "k-o", label="mean posterior deviation")
left.semilogy(range(21), errors.max((1, 2)), "k--s", label="largest error")
left.set(xlabel="iteration", ylabel="state units")
left.legend(frameon=False)
history = elk.evaluate(f, x0, inputs, method=method, guess=guess, history=20).history
elk.plotting.error_map(guesses, truth, right, history=history)
plt.show()

# %% [markdown]
# **Takeaways.**
#
# - A guess of a trajectory defines a linear-Gaussian model; its posterior mean is a
#   better guess. One Kalman pass, parallel over time, is one iteration.
# - The exact trajectory is the fixed point. Every iteration makes at least one more
#   state exact, most make many more right.
# - The bands are the surrogate's own statement of how far the iteration is.
