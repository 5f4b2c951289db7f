"""A user's recurrence in canonical form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm._recurrence import canonicalize

H = jnp.zeros(2)
U = jnp.ones((5, 2))


def lstm_like(state, u):
    c, h = state["c"], state["h"]
    return {"c": 0.5 * c + u, "h": jnp.tanh(h + c), "n": state["n"] + 1}


STATE = {"c": H, "h": H + 1, "n": jnp.asarray(7)}


def test_the_flat_step_is_the_user_s_function():
    found = canonicalize(lstm_like, STATE, U)
    assert found.length == 5
    assert found.initial.tolist() == [0.0, 0.0, 1.0, 1.0]
    first = jax.tree.map(lambda x: x[0], found.inputs)
    stepped = found.step(found.initial, first)
    np.testing.assert_allclose(stepped, [1, 1, np.tanh(1), np.tanh(1)], rtol=1e-6)


def test_discrete_leaves_are_computed_first():
    found = canonicalize(lstm_like, STATE, U)
    assert found.discrete[0].tolist() == [8, 9, 10, 11, 12]
    assert found.inputs[1][0].tolist() == [7, 8, 9, 10, 11]
    rebuilt = found.rebuild(jnp.zeros((3, 5, 4)))
    assert rebuilt["n"].shape == (3, 5)
    assert rebuilt["h"].shape == (3, 5, 2)
    assert rebuilt["n"][2].tolist() == [8, 9, 10, 11, 12]


def test_flatten_states_inverts_rebuild():
    found = canonicalize(lstm_like, STATE, U)
    flat = jnp.arange(20.0).reshape(5, 4)
    np.testing.assert_array_equal(
        found.flatten_states(found.rebuild(flat), "states"), flat
    )
    with pytest.raises(ValueError, match="guess must be the state with a leading"):
        found.flatten_states(STATE, "guess")


def test_what_f_closes_over_is_an_argument():
    weight = jnp.full(2, 3.0)
    found = canonicalize(lambda x, u: weight * x + u, H, U)
    assert [c.tolist() for c in found.consts] == [[3.0, 3.0]]
    entry = (jnp.ones(2), [])
    assert found.function([jnp.full(2, 9.0)], H + 1, entry).tolist() == [10.0, 10.0]


def test_python_numbers_are_arrays():
    found = canonicalize(lambda x, _: jnp.cos(x), 0.5, length=4)
    assert found.initial.shape == (1,)
    assert found.length == 4
    assert found.rebuild(jnp.ones((4, 1))).shape == (4,)


def test_no_time_axis_reaches_f():
    shapes = []

    def f(x, u):
        shapes.append((x.shape, jax.tree.map(jnp.shape, u)))
        return x

    canonicalize(f, jnp.zeros((2, 3)), {"a": jnp.ones(4), "b": jnp.ones((4, 5))})
    assert set(map(str, shapes)) == {"((2, 3), {'a': (), 'b': (5,)})"}


WRAPPERS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "twice": lambda f: jax.jit(lambda x, u: jax.jit(f)(x, u)),
    "cond": lambda f: (
        lambda x, u: jax.lax.cond(u[0] > 0, f, lambda x, u: f(x, u), x, u)
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_wrapping_f_does_not_tie_its_leaves_together(wrap):
    found = canonicalize(wrap(lstm_like), STATE, U)
    assert found.discrete[0].tolist() == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_a_counter_fed_by_floats_is_refused(wrap):
    def f(state, u):
        x, n = state
        return x + u, n + (x[0] > 0).astype(n.dtype)

    with pytest.raises(TypeError, match=r"independently.*elk\.sequential"):
        canonicalize(wrap(f), (H, jnp.asarray(0)), U)


def test_counters_may_feed_floats_and_each_other():
    def f(state, u):
        x, n, m = state
        return x + n + u, n + m, m + 1

    found = canonicalize(f, (H, jnp.asarray(0), jnp.asarray(1)), U)
    assert found.discrete[0].tolist() == [1, 3, 6, 10, 15]


def test_errors_of_f_keep_their_cause():
    def f(x, u):
        raise ValueError("the cell is broken")

    with pytest.raises(ValueError, match=r"float32\[2\].*the cell is broken") as info:
        canonicalize(f, H, U)
    assert isinstance(info.value.__cause__, ValueError)
