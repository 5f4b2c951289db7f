"""A recurrence that forgets at a rate which its input sets, step by step."""

import jax.numpy as jnp
import numpy as np


def leaky(x, u):
    """x_t = rate_t x_{t-1} + noise_t."""
    return u[0] * x + u[1]


def drive(rate, length, seed=0):
    """Rates, one or `(length,)`, beside standard normal noise, `(length, 2)`."""
    noise = np.random.default_rng(seed).normal(size=length)
    rates = np.broadcast_to(rate, length)
    return jnp.asarray(np.stack([rates, noise], 1), jnp.zeros(()).dtype)
