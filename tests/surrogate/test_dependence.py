"""What is read off a program, against the zeros of its Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm._recurrence import canonicalize
from elk_ssm.surrogate.dependence import keeps_apart

N, B = 4, 3
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(N, B, B)))
BY_ROW = np.repeat(np.arange(N), B)


def heads(x, u):
    mixed = jnp.einsum("hij,hj->hi", WEIGHTS, x)
    long = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return jax.nn.softmax(mixed, -1) + jnp.where(x > u, long, jnp.max(x, 1)[:, None])


def moved(x, u):
    x = jnp.stack(jnp.unstack(jnp.tile(x[:, :1], (1, B)) + x, axis=1), axis=1)
    left, right = jnp.split(x[::-1][::-1], 2)
    x = jnp.concatenate([left.T.reshape(B, 2).T, right])
    return jnp.squeeze(jnp.expand_dims(jax.nn.gelu(x), 0), 0) * u


def looped(x, u):
    def body(carry, entry):
        count, x = carry
        x = jax.lax.cond(count > entry, jnp.sin, lambda x: x * WEIGHTS[0, 0], x)
        return (count + 1, x), x[:, ::-1]

    (_, x), ys = jax.lax.scan(body, (0, x), jnp.arange(3))
    return jax.checkpoint(jnp.tanh)(x) + ys[1] + u


@jax.custom_jvp
def odd(x):
    return x**3


odd.defjvp(lambda x, t: (odd(x[0]), 3 * x[0] ** 2 * t[0]))

APART = {
    "heads": heads,
    "moved": moved,
    "looped": looped,
    "with a rule": lambda x, u: odd(x) * u,
    "nothing": lambda x, u: jnp.ones_like(x) * u,
}
TOGETHER = {
    "one unit sees another": lambda x, u: x.at[0].add(x[1]) * u,
    "rolled": lambda x, u: jnp.roll(x, 1, axis=0),
    "reversed": lambda x, u: x[::-1],
    "mean": lambda x, u: x - x.mean(),
    "product": lambda x, u: jnp.einsum("hij,gj->hi", WEIGHTS, x),
    "sorted": lambda x, u: jnp.sort(x, axis=0),
    "cumulative": lambda x, u: jnp.cumsum(x, axis=0),
    "by a condition": lambda x, u: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "late in a loop": lambda x, u: jax.lax.fori_loop(
        0, 3, lambda _, x: jnp.concatenate([x[:1], x[:-1]]), x
    ),
    "a loop of unknown length": lambda x, u: jax.lax.while_loop(
        lambda x: x.sum() > 10, jnp.sin, x
    ),
}


def apart(f, labels=BY_ROW):
    return keeps_apart(canonicalize(f, jnp.ones((N, B)), jnp.ones((5, N, B))), labels)


@pytest.mark.parametrize("name", APART)
def test_rows_that_keep_to_themselves_are_seen(name):
    assert apart(APART[name])


@pytest.mark.parametrize("name", TOGETHER)
def test_rows_that_mix_are_never_said_to_be_apart(name):
    assert not apart(TOGETHER[name])


def test_entries_of_a_row_are_not_apart():
    assert not apart(heads, np.arange(N * B))
    assert apart(lambda x, u: jnp.tanh(x) * u, np.arange(N * B))


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_have_no_derivative_where_nothing_is_said_to_depend(seed):
    """Random moves, sums and products: the claim is checked on the Jacobian itself."""
    rng = np.random.default_rng(seed)
    moves = [
        lambda x: jnp.tanh(x),
        lambda x: x[rng.permutation(N)] if rng.random() < 0.5 else x[:, ::-1],
        lambda x: jnp.einsum("hij,hj->hi", WEIGHTS, x),
        lambda x: x - jnp.max(x, axis=1, keepdims=True),
        lambda x: x.reshape(2, 2, B).transpose(1, 0, 2).reshape(N, B),
        lambda x: jnp.concatenate([x[2:], x[:2]]),
        lambda x: x * x.sum(rng.integers(2), keepdims=True),
    ]
    chosen = [moves[i] for i in rng.integers(len(moves), size=4)]

    def f(x, u):
        state = rng.bit_generator.state
        for move in chosen:
            x = move(x)
        rng.bit_generator.state = state
        return x

    x = jnp.asarray(rng.normal(size=(N, B)))
    jacobian = np.asarray(jax.jacfwd(f)(x, None)).reshape(N * B, N * B)
    between = jacobian[BY_ROW[:, None] != BY_ROW]
    said = keeps_apart(canonicalize(f, x, length=3), BY_ROW)
    assert not said or np.all(between == 0)
    if np.all(between == 0):
        # Gathers by a list of indices are not followed; all else here is.
        assert said or any(move is moves[1] for move in chosen)
