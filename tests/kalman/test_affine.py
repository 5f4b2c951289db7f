"""The affine scans against dense NumPy linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.kalman.affine import affine_scan, apply
from elk_ssm.linalg.structure import Dense, Diagonal

T, D = 11, 3
BACKENDS = ["auto", "sequential", "associative"]
pytestmark = pytest.mark.usefixtures("x64")


def make(kind, length=T):
    rng = np.random.default_rng(0)
    if kind is Dense:
        return Dense(jnp.asarray(rng.normal(size=(length, D, D)) * 0.6))
    return Diagonal(jnp.asarray(rng.normal(size=(length, D))))


def full_system(operator):
    """The (T D, T D) matrix L of L x = b."""
    entries = np.asarray(operator[0])
    length = len(entries)
    system = np.eye(length * D)
    for t in range(1, length):
        block = np.diag(entries[t]) if entries.ndim == 2 else entries[t]
        system[t * D : (t + 1) * D, (t - 1) * D : t * D] = -block
    return system


@pytest.mark.parametrize("kind", [Dense, Diagonal])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, T])
def test_equals_the_dense_solve_both_ways(kind, backend, length):
    operator = make(kind, length)
    offsets = jnp.asarray(np.random.default_rng(1).normal(size=(length, D)))
    system = full_system(operator)
    for reverse, matrix in ((False, system), (True, system.T)):
        found = affine_scan(operator, offsets, reverse=reverse, backend=backend)
        expected = np.linalg.solve(matrix, offsets.ravel()).reshape(length, D)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", [Dense, Diagonal])
def test_reversed_is_the_transpose(kind):
    operator = make(kind)
    rng = np.random.default_rng(2)
    b, c = jnp.asarray(rng.normal(size=(2, T, D)))
    forward = affine_scan(operator, b, backend="sequential")
    backward = affine_scan(operator, c, reverse=True, backend="sequential")
    assert abs(jnp.vdot(c, b)) > 1e-3
    np.testing.assert_allclose(jnp.vdot(c, forward), jnp.vdot(backward, b), rtol=1e-12)
    pulled = jax.vjp(lambda b: affine_scan(operator, b, backend="sequential"), b)[1](c)
    np.testing.assert_allclose(pulled[0], backward, rtol=1e-12)


def test_first_operator_meets_the_known_zero():
    operator = make(Dense)
    poisoned = Dense(operator.matrix.at[0].set(7.0))
    b = jnp.ones((T, D))
    for reverse in (False, True):
        one, two = (
            affine_scan(o, b, reverse=reverse, backend="sequential")
            for o in (operator, poisoned)
        )
        np.testing.assert_array_equal(one, two)


def test_apply_multiplies():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(T, D)))
    dense, diagonal = make(Dense), make(Diagonal)
    np.testing.assert_allclose(
        apply(dense, x), np.einsum("tij,tj->ti", dense.matrix, x), rtol=1e-12
    )
    np.testing.assert_allclose(apply(diagonal, x), diagonal.diagonal * x)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="associative; got 'gpu'"):
        affine_scan(make(Dense), jnp.ones((T, D)), backend="gpu")


def test_one_precision_for_all_settings():
    # TF32 or bfloat16 products would be a thousand times less precise.
    operator, b = make(Dense), jnp.ones((T, D))
    wide = Dense(jnp.full((T, 16, 16), 1 / 17) + 0 * operator.matrix[0, 0, 0])
    with jax.default_matmul_precision("bfloat16"):
        program = str(
            jax.make_jaxpr(lambda a, b: affine_scan(a, b, backend="sequential"))(
                wide, jnp.ones((T, 16))
            )
        )
    assert "dot_general" not in program or "Precision.HIGHEST" in program
    assert "bfloat16" not in program.lower()
    assert b.dtype == jnp.float64
