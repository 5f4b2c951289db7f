"""Pytree states as flat vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm._trees import StateLayout, describe, is_float

STATES = {
    "scalar": jnp.asarray(1.5),
    "vector": jnp.arange(3.0),
    "matrix": jnp.arange(6.0).reshape(2, 3),
    "tuple": (jnp.arange(2.0), jnp.arange(3.0)),
    "nested": {"b": [jnp.asarray(2.0), jnp.ones((2, 2))], "a": (jnp.zeros(1), None)},
}
states = pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())


@states
def test_unravel_inverts_ravel(state):
    layout = StateLayout.of(state)
    vector = layout.ravel(state)
    assert vector.shape == (layout.size,)
    assert layout.size == sum(x.size for x in jax.tree.leaves(state))
    back = layout.unravel(vector)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


@states
def test_leading_axes_are_kept(state):
    layout = StateLayout.of(state)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x + 1]), state)
    vectors = layout.ravel(stacked)
    assert vectors.shape == (2, layout.size)
    np.testing.assert_array_equal(vectors[0], layout.ravel(state))
    jax.tree.map(np.testing.assert_array_equal, layout.unravel(vectors), stacked)


def test_dtypes_are_promoted_and_restored(x64):
    state = jnp.ones(2, jnp.float32), jnp.ones(1, jnp.float64)
    layout = StateLayout.of(state)
    assert layout.ravel(state).dtype == layout.dtype == jnp.float64
    assert [x.dtype for x in layout.unravel(jnp.ones(3))] == [jnp.float32, jnp.float64]


def test_layouts_of_the_same_state_are_equal_and_hashable():
    one, two = StateLayout.of(STATES["tuple"]), StateLayout.of(STATES["tuple"])
    assert one == two
    assert hash(one) == hash(two)
    assert one != StateLayout.of(STATES["vector"])


def test_layout_of_shape_structs():
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert StateLayout.of(shape) == StateLayout.of(STATES["matrix"])


def test_describe_names_dtypes_and_shapes():
    text = describe({"h": jnp.ones((2, 3)), "n": jnp.asarray(1)})
    assert text == "{h: float32[2, 3], n: int32[]}"


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (1.0, True),
        (jnp.ones(1, jnp.bfloat16), True),
        (1, False),
        (True, False),
        (1j, False),
        (jax.random.key(0), False),
    ],
)
def test_is_float(leaf, expected):
    assert is_float(leaf) is expected
