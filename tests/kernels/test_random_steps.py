"""Steps put together at random: wherever values are cut, they stay what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.kernels import Walk, roll_out_lanes, why_not


def weights_like(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) / max(shape[0], 1) ** 0.5, jnp.float32)


def grow(rng, x):
    """One more operation on a vector, by chance; returns a vector."""
    n = x.shape[0]
    cut = int(rng.integers(0, n)) if n > 1 else 0
    if n % 2 == 0 and rng.random() < 0.2:
        m = x.reshape(n // 2, 2)
        grown = m.T.reshape(-1), (m * m.sum(0)).ravel(), m[:, ::-1].reshape(-1)
        return grown[rng.integers(3)]
    grown = [
        lambda: jnp.tanh(x) * 2,
        lambda: jnp.roll(x, cut),
        lambda: jnp.concatenate([x[cut:], jnp.sin(x[:cut])]),
        lambda: jnp.pad(x[cut:], (1, 2)),
        lambda: jnp.pad(x, (0, 1), constant_values=0.5),
        lambda: jnp.flip(x),
        lambda: x[::2] if n > 3 else x,
        lambda: x @ weights_like(rng, n, int(rng.integers(1, 7))),
        lambda: weights_like(rng, int(rng.integers(1, 7)), n) @ x,
        lambda: x / (1 + jnp.abs(x).sum()),
        lambda: x - x.max() + x[cut],
        lambda: jnp.where(x > x.mean(), x, -x),
        lambda: jnp.outer(x, x[: cut + 1]).sum(0),
        lambda: jnp.stack([x, x[cut] * x]).mean(0),
        lambda: jnp.concatenate([jnp.zeros(2), x]),
        lambda: jnp.repeat(x[cut], 3) + x[:1],
    ]
    return grown[rng.integers(len(grown))]()


def random_step(seed, size):
    def step(_, x, u):
        rng = np.random.default_rng(seed)
        values = [x, u]
        for _ in range(8):
            y = grow(rng, values[rng.integers(len(values))])
            values.append(y[:12])
            if rng.random() < 0.3:
                a, b = (values[rng.integers(len(values))] for _ in range(2))
                n = min(a.shape[0], b.shape[0])
                values.append(a[:n] * b[-n:])
        every = jnp.concatenate(values[2:])
        return jnp.tanh(jnp.resize(every, (size,)) + jnp.resize(values[-1], (size,)))

    return step


@pytest.mark.parametrize("pulls", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_random_step(seed, pulls):
    rng = np.random.default_rng(seed)
    size, lanes = int(rng.integers(1, 8)), int(rng.integers(1, 20))
    forward, entries = random_step(seed, size), weights_like(rng, 3, lanes, 3)
    step, starts = forward, weights_like(rng, lanes, size)
    if pulls:
        entries = weights_like(rng, 3, lanes, size), entries

        def step(_, w, entry):
            x, u = entry
            return jax.vjp(lambda x: forward(_, x, u), x)[1](w)[0]

    why = why_not(step, (), starts, entries)
    assert why is None or "tiles" in why
    if why is None:
        agree(step, starts, entries)


def agree(step, starts, entries):
    @jax.jit
    def both(starts, entries):
        def body(states, entry):
            states = jax.vmap(lambda x, e: step((), x, e))(states, entry)
            return states, states

        expected = jax.lax.scan(body, starts, entries)[1]
        return roll_out_lanes(
            step, (), starts, entries, Walk(), interpret=True
        ), expected

    found, expected = both(starts, entries)
    # Cotangents grow: errors count against the largest.
    scale = max(1.0, float(jnp.abs(expected).max()))
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=3e-5)
