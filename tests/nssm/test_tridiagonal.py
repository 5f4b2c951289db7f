"""Block tridiagonal systems against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.linalg.structure import Diagonal
from elk_ssm.nssm.expansion import Expansion
from elk_ssm.nssm.information import information_covariances
from elk_ssm.nssm.rows import Rows
from elk_ssm.nssm.tridiagonal import definite_solve, unit_factor
from elk_ssm.parallel.time_axis import LOCAL

pytestmark = pytest.mark.usefixtures("x64")
T, D = 5, 2


def system(shift, seed=0):
    rng = np.random.default_rng(seed)
    blocks = rng.normal(size=(T, D, D))
    blocks = blocks + np.swapaxes(blocks, 1, 2) + shift * np.eye(D)
    couplings = rng.normal(size=(T, D, D))
    couplings[0] = 0
    dense = np.zeros((T * D, T * D))
    for t in range(T):
        here = slice(t * D, (t + 1) * D)
        dense[here, here] = blocks[t]
        if t:
            before = slice((t - 1) * D, t * D)
            dense[here, before], dense[before, here] = couplings[t], couplings[t].T
    return blocks, couplings, dense, rng.normal(size=(T, D))


solve = jax.jit(lambda *args: definite_solve(LOCAL, *args))


@pytest.mark.parametrize("shift", [-1.0, 2.0, 4.0, 6.0, 10.0])
def test_the_inertia_is_that_of_the_dense_matrix(shift):
    for seed in range(5):
        blocks, couplings, dense, rhs = system(shift, seed)
        found, definite = solve(blocks, couplings, rhs)
        assert bool(definite) == bool(np.linalg.eigvalsh(dense)[0] > 0)
        if definite:
            expected = np.linalg.solve(dense, rhs.ravel()).reshape(T, D)
            np.testing.assert_allclose(found, expected, atol=1e-9)


def test_replaced_pivots_add_a_diagonal_and_leave_a_definite_matrix_alone():
    floors = np.full((T, D), 0.1)
    blocks, couplings, dense, rhs = system(10.0)
    np.testing.assert_allclose(
        solve(blocks, couplings, rhs, floors)[0].ravel(),
        np.linalg.solve(dense, rhs.ravel()),
        atol=1e-9,
    )
    for seed in range(5):
        blocks, couplings, dense, rhs = system(0.0, seed)
        found, definite = solve(blocks, couplings, rhs, floors)
        assert not definite
        # (M + E) x = v with E diagonal, E >= 0 where x does not vanish; x ascends.
        added = (rhs.ravel() - dense @ found.ravel()) / found.ravel()
        assert np.all(added > -1e-6)
        assert np.sum(found * rhs) > 0


def test_a_factor_is_a_congruence():
    matrix = np.array([[4.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, 2.0]])
    inverse, pivots, definite = unit_factor(jnp.asarray(matrix))
    assert bool(definite)
    np.testing.assert_allclose(
        inverse @ matrix @ inverse.T, np.diag(pivots), atol=1e-12
    )
    assert not bool(unit_factor(jnp.asarray(matrix - 3 * np.eye(3)))[2])


def test_covariances_from_the_precision_are_those_of_the_dense_inverse():
    rng = np.random.default_rng(0)
    F, H = rng.normal(size=(T, D, D)), rng.normal(size=(T, 1, D))
    q, r = rng.uniform(0.5, 2, D), rng.uniform(0.5, 2, (T, 1))
    seen = np.array([True, False, True, True, False])[:, None]
    zeros = jnp.zeros((T, D))
    rows = Rows(*map(jnp.asarray, (H, r, np.zeros((T, 1)), seen)))
    expansion = Expansion(
        zeros[0], jnp.eye(D), jnp.asarray(F), zeros, Diagonal(jnp.asarray(q)), rows
    )
    transition = np.eye(T * D)
    for t in range(1, T):
        transition[t * D : (t + 1) * D, (t - 1) * D : t * D] = -F[t]
    noise = np.concatenate([np.ones(D), np.tile(q, T - 1)])
    precision = transition.T @ (transition / noise[:, None])
    for t in np.flatnonzero(seen):
        here = slice(t * D, (t + 1) * D)
        precision[here, here] += H[t].T @ H[t] / r[t]
    covariance = np.linalg.inv(precision)
    blocks = [covariance[t * D : (t + 1) * D, t * D : (t + 1) * D] for t in range(T)]
    np.testing.assert_allclose(information_covariances(expansion), blocks, atol=1e-10)
