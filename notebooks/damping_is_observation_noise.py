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
# # Damping is observation noise
#
# Newton's method for a recurrence can overshoot. Optimisers damp it: a penalty on the
# step, or a trust region. In the state-space view that penalty already has a name: it
# is how precisely the surrogate model *observes* the previous iterate. Needs
# `pip install "elk-ssm[plots]"`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import elk_ssm as elk

jax.config.update("jax_enable_x64", True)
SEED, DTYPE = 3, jnp.float64
T = 300

# %% [markdown]
# ## A particle between two wells
# It sits near $+1$ or $-1$, and noise kicks it across. Between the wells small
# differences grow; outside them the force is cubic, and a linearisation that leaves the
# wells is very wrong.

# %%
inputs = jax.random.normal(jax.random.key(SEED), (T,), DTYPE)
x0 = jnp.array([0.1], DTYPE)


def f(x, u):
    return x + 0.3 * (x - x**3) + 0.3 * u


truth = elk.sequential(f, x0, inputs).states
plt.figure(figsize=(7, 2.5), layout="constrained")
plt.plot(truth, "k", linewidth=1)
plt.xlabel("time step")
plt.ylabel("position")
plt.show()

# %% [markdown]
# ## The smoother's mean is the Levenberg-Marquardt step
# The residuals $r_t = x_t - f(x_{t-1}, u_t)$ have a block-bidiagonal Jacobian $J$.
# Levenberg-Marquardt solves $(J^T J + \lambda I)\, d = -J^T r$. We write that down
# densely and compare with a Kalman smoother whose observation noise is
# $s^2 = 1/\lambda$.

# %%
guess = jnp.zeros((T, 1), DTYPE)
noise = 100.0
model = elk.linearize(f, guess, inputs, initial_state=x0, noise=noise)
step = np.asarray(model.smooth().means - guess)[:, 0]

before = np.concatenate([x0, guess[:-1, 0]])
r = np.asarray(model.residual)[:, 0]
J = np.eye(T) - np.diag((1 + 0.3 * (1 - 3 * before**2))[1:], -1)
dense = np.linalg.solve(J.T @ J + np.eye(T) / noise, -J.T @ r)
print(f"largest difference {np.abs(step - dense).max():.1e}")

# %% [markdown]
# ## Small noise, short steps
# The sharper the iterate is observed, the closer the next one has to stay. Without any
# observation ($s^2 = \infty$) the step is Newton's, which is the method DEER. Here that
# step is absurd: at the guess $y = 0$ the linearised force pushes away from the middle
# for ever, and nothing says that the particle stays near.

# %%
for noise in (1e-2, 1e0, 1e2, 1e4, 1e8, np.inf):
    moved = elk.linearize(f, guess, inputs, initial_state=x0, noise=noise).smooth()
    distance = float(jnp.linalg.norm(moved.means - guess))
    print(f"s^2 = {noise:8.0e}: step length {distance:10.4g}")
newton = elk.iterates(f, x0, inputs, method=elk.deer(), guess=guess, num_iters=1)[1]
same = bool((newton == elk.iterates(
    f, x0, inputs, method=elk.elk(np.inf), guess=guess, num_iters=1)[1]).all()
)  # fmt: skip
print("elk(inf) is deer(), bit for bit:", same)

# %% [markdown]
# ## Which noise?
# Too little noise, and the iteration creeps; too much, and it overshoots. `sweep_noise`
# runs a whole grid in one compiled call.

# %%
grid = np.array([1e-1, 1e0, 1e1, 3e1, 1e2, 3e2, 1e3, 1e4, np.inf])
sweep = elk.sweep_noise(
    f, x0, inputs, grid, method=elk.elk(1.0), max_iters=T, history=T
)
_, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
elk.plotting.noise_sweep(sweep, left)
best = float(sweep.noises[sweep.best])
methods = {
    f"constant, best of the grid ({best:g})": elk.elk(best),
    "undamped": elk.deer(),
    "annealed: 1, 4, 16, ...": elk.elk(elk.Annealed()),
    "blocks of 10 and a gate, undamped": elk.deer(block_size=10, gate=elk.Gate()),
}
histories = {}
for name, method in methods.items():
    sol = elk.evaluate(f, x0, inputs, method=method, history=T)
    error = float(jnp.abs(sol.states - truth).max())
    print(f"{name:>36}: {int(sol.num_iters):4d} iterations, error {error:.0e}")
    histories[name] = sol.history
elk.plotting.residuals(histories, right)
right.set_ylim(1e-16, 1e6)  # Newton's spikes are higher than any picture
right.legend(loc="lower left", frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# The best constant here is far better than no damping and than a constant a hundred
# times smaller or larger. It is also specific to this recurrence. A *gate* asks for no
# such number: it refuses only those states that leave the range that has been seen.

# %% [markdown]
# ## Scaled and clipped Jacobians stand for a noise
# The filter multiplies what comes from the state before by its gain. A number $k$ in
# the gain's place needs no filter: `Scaled` makes the Jacobian $k$ times as large, and
# `Clipped` shrinks only what is above a radius. For a constant Jacobian $a$ the noise
# with the same transition is $s^2 = k / ((1 - k)(1 - k a^2))$; here with $a = 1$.

# %%
for k in (0.5, 0.8, 0.95):
    noise = k / (1 - k) ** 2
    scaled = elk.deer(linearization=elk.Scaled(elk.DenseJacobian(), k))
    counts = [
        int(elk.evaluate(f, x0, inputs, method=method, max_iters=T).num_iters)
        for method in (scaled, elk.elk(noise))
    ]
    print(f"k = {k:4}: {counts[0]:4d}   s^2 = {noise:5.3g}: {counts[1]:4d} iterations")
clipped = elk.deer(linearization=elk.Clipped(elk.DenseJacobian()))
sol = elk.evaluate(f, x0, inputs, method=clipped, max_iters=T)
print(f"clipped to 1: {int(sol.num_iters)} iterations, no number to choose")

# %% [markdown]
# **Takeaways.**
#
# - `noise` is $s^2$: the variance with which the surrogate observes the last iterate,
#   in units of its process variance. It is $1/\lambda$ of Levenberg-Marquardt.
# - $s^2 \to \infty$ is Newton (DEER); small $s^2$ is a tight trust region.
# - The best constant depends on the recurrence, so sweep it, let a policy change it, or
#   use blocks and the gate, which is what `elk.auto()` does on an accelerator.
# - A scaled or clipped Jacobian is damping without a filter.
