import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.linalg.small import matmul, matvec, solve, symmetrize


@pytest.fixture(scope="module", params=[1, 2, 4, 9])
def system(request):
    size, rng = request.param, np.random.default_rng(request.param)
    M = rng.normal(size=(3, 2, size, size)).astype(np.float32)
    return M, rng.normal(size=(3, 2, size, 2)).astype(np.float32)


def test_products_equal_numpy(system):
    M, B = system
    # A handful of float32 roundings, for sums of at most nine terms.
    assert np.allclose(matmul(M, B), M @ B, atol=1e-5)
    assert np.allclose(matvec(M, B[..., 0]), (M @ B)[..., 0], atol=1e-5)


def test_solve_equals_numpy(system):
    M, B = system
    found = np.asarray(solve(jnp.asarray(M), jnp.asarray(B)), np.float64)
    residual = M.astype(np.float64) @ found - B
    # Backward stability: the residual is small against |M| |x|, whatever cond(M).
    scale = np.abs(M).sum(-1).max() * np.abs(found).max()
    assert np.abs(residual).max() < 1e-6 * scale


def test_solve_pivots():
    M = jnp.array([[0.0, 1.0, 0.0], [1e-8, 0.0, 1.0], [1.0, 0.0, 0.0]])
    B = jnp.array([[1.0], [2.0], [3.0]])
    assert np.allclose(solve(M, B)[:, 0], [3.0, 1.0, 2.0], rtol=1e-6)


def test_solve_derivative_is_that_of_the_equation():
    rng = np.random.default_rng(0)
    M, B, dM, dB = (
        jnp.asarray(rng.normal(size=s)) for s in [(3, 3), (3, 2), (3, 3), (3, 2)]
    )
    X, dX = jax.jvp(solve, (M, B), (dM, dB))
    expected = np.linalg.solve(M, dB - dM @ X)
    assert np.allclose(dX, expected, rtol=1e-3, atol=1e-4)
    _, pull = jax.vjp(solve, M, B)
    weight = jnp.ones_like(X)
    cotangents = pull(weight)
    pairing = jnp.sum(cotangents[0] * dM) + jnp.sum(cotangents[1] * dB)
    assert np.allclose(pairing, jnp.sum(weight * dX), rtol=1e-3, atol=1e-4)


def test_singular_is_not_finite():
    assert not np.isfinite(solve(jnp.zeros((2, 2)), jnp.ones((2, 1)))).any()


@pytest.mark.parametrize("shapes", [((2, 3), (2, 1)), ((2, 2), (3, 1))])
def test_wrong_shapes_are_named(shapes):
    with pytest.raises(ValueError, match="got"):
        solve(jnp.ones(shapes[0]), jnp.ones(shapes[1]))


def test_no_library_call_even_in_batches():
    text = jax.jit(solve).lower(jnp.ones((5, 4, 4)), jnp.ones((5, 4, 1))).as_text()
    assert "custom_call" not in text


def test_symmetrize():
    M = jnp.array([[1.0, 4.0], [0.0, 2.0]])
    assert np.array_equal(symmetrize(M), [[1.0, 2.0], [2.0, 2.0]])
