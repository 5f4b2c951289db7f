import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.kalman import elements
from elk_ssm.kalman.elements import FilterElement, SmootherElement
from elk_ssm.linalg.structure import Dense, Diagonal, to_dense


def psd(rng, scale, size=3):
    root = rng.normal(size=(size, size))
    return Dense(jnp.asarray(scale * (root @ root.T), jnp.float32))


def vector(rng, size=3):
    return jnp.asarray(rng.normal(size=size), jnp.float32)


def filter_element(seed, noise):
    rng = np.random.default_rng(seed)
    A = Dense(jnp.asarray(rng.normal(size=(3, 3)) / 2, jnp.float32))
    return FilterElement(
        A, vector(rng), psd(rng, 1.0), vector(rng) / noise, psd(rng, 1 / noise)
    )


def smoother_element(seed):
    rng = np.random.default_rng(seed)
    E = Dense(jnp.asarray(rng.normal(size=(3, 3)) / 2, jnp.float32))
    return SmootherElement(E, vector(rng), psd(rng, 1.0))


def close(left, right, rtol=1e-4):
    for a, b in zip(left, right):
        a, b = (x.to_dense() if isinstance(x, Dense) else x for x in (a, b))
        assert np.abs(a - b).max() <= rtol * max(np.abs(b).max(), 1e-30)


@pytest.mark.parametrize("noise", [1e-2, 1.0, 1e4, 1e8])
def test_filter_operator_is_associative(noise):
    one, two, three = (filter_element(seed, noise) for seed in range(3))
    join = elements.combine_filter
    close(join(join(one, two), three), join(one, join(two, three)))


def test_smoother_operator_is_associative():
    one, two, three = (smoother_element(seed) for seed in range(3))
    join = elements.combine_smoother
    close(join(join(one, two), three), join(one, join(two, three)))


def test_no_evidence_leaves_the_affine_map():
    one, two = filter_element(0, 1.0), filter_element(1, 1.0)
    zero = {"eta": jnp.zeros(3), "J": Dense(jnp.zeros((3, 3)))}
    both = elements.combine_filter(one._replace(**zero), two._replace(**zero))
    A = two.A.matrix
    close(both[:2], (A @ one.A.matrix, A @ one.b + two.b))
    assert not both.eta.any()
    assert not both.J.matrix.any()


def test_smoother_order_is_that_of_a_reversed_scan():
    early, late = smoother_element(0), smoother_element(1)
    both = elements.combine_smoother(late, early)
    E = early.E.matrix
    close(both[:2], (E @ late.E.matrix, E @ late.g + early.g))


@pytest.mark.parametrize("kind", ["filter", "smoother"])
def test_diagonal_equals_dense(kind):
    rng = np.random.default_rng(0)
    make = FilterElement if kind == "filter" else SmootherElement
    combine = getattr(elements, f"combine_{kind}")
    pair, dense = [], []
    for _ in range(2):
        x = [jnp.asarray(rng.uniform(0.5, 1, 3)) for _ in make._fields]
        vectors = [name in {"b", "eta", "g"} for name in make._fields]
        pair.append(make(*(v if so else Diagonal(v) for v, so in zip(x, vectors))))
        full = (v if so else Dense(jnp.diag(v)) for v, so in zip(x, vectors))
        dense.append(make(*full))
    small, large = combine(*pair), combine(*dense)
    for a, b in zip(small, large):
        a, b = (x if isinstance(x, jax.Array) else to_dense(x) for x in (a, b))
        assert np.allclose(a, b, rtol=1e-5)
