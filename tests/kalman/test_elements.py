import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.kalman import elements
from elk_ssm.kalman.elements import FilterElement, SmootherElement


def psd(rng, scale, size=3):
    root = rng.normal(size=(size, size))
    return jnp.asarray(scale * (root @ root.T), jnp.float32)


def vector(rng, size=3):
    return jnp.asarray(rng.normal(size=size), jnp.float32)


def filter_element(seed, noise):
    rng = np.random.default_rng(seed)
    A = jnp.asarray(rng.normal(size=(3, 3)) / 2, jnp.float32)
    return FilterElement(
        A, vector(rng), psd(rng, 1.0), vector(rng) / noise, psd(rng, 1 / noise)
    )


def smoother_element(seed):
    rng = np.random.default_rng(seed)
    E = jnp.asarray(rng.normal(size=(3, 3)) / 2, jnp.float32)
    return SmootherElement(E, vector(rng), psd(rng, 1.0))


def close(left, right, rtol=1e-4):
    for a, b in zip(left, right):
        assert np.abs(a - b).max() <= rtol * max(np.abs(b).max(), 1e-30)


@pytest.mark.parametrize("noise", [1e-2, 1.0, 1e4, 1e8])
def test_filter_operator_is_associative(noise):
    one, two, three = (filter_element(seed, noise) for seed in range(3))
    join = elements.combine_filter_dense
    close(join(join(one, two), three), join(one, join(two, three)))


def test_smoother_operator_is_associative():
    one, two, three = (smoother_element(seed) for seed in range(3))
    join = elements.combine_smoother_dense
    close(join(join(one, two), three), join(one, join(two, three)))


def test_no_evidence_leaves_the_affine_map():
    one, two = filter_element(0, 1.0), filter_element(1, 1.0)
    zero = {"eta": jnp.zeros(3), "J": jnp.zeros((3, 3))}
    both = elements.combine_filter_dense(one._replace(**zero), two._replace(**zero))
    close(both[:2], (two.A @ one.A, two.A @ one.b + two.b))
    assert not both.eta.any()
    assert not both.J.any()


def test_smoother_order_is_that_of_a_reversed_scan():
    early, late = smoother_element(0), smoother_element(1)
    both = elements.combine_smoother_dense(late, early)
    close(both[:2], (early.E @ late.E, early.E @ late.g + early.g))


@pytest.mark.parametrize("kind", ["filter", "smoother"])
def test_diagonal_equals_dense(kind):
    rng = np.random.default_rng(0)
    make = FilterElement if kind == "filter" else SmootherElement
    vectors = {"b", "eta", "g"}
    pair = [
        make(*(jnp.asarray(rng.uniform(0.5, 1, 3)) for _ in make._fields))
        for _ in range(2)
    ]
    dense = [
        make(*(x if n in vectors else jnp.diag(x) for n, x in e._asdict().items()))
        for e in pair
    ]
    small = getattr(elements, f"combine_{kind}_diagonal")(*pair)
    large = getattr(elements, f"combine_{kind}_dense")(*dense)
    for name, value in small._asdict().items():
        full = getattr(large, name)
        assert np.allclose(
            value if name in vectors else jnp.diag(value), full, rtol=1e-5
        )
