"""Float32 over the grid that is promised: noise, spectral radius, structure.

The reference is a float64 NumPy smoother. Data come from the model itself, its dynamics
slowed down to a spectral radius below one where they would overflow.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kalman import oracle

from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import Diagonal, to_dense

NOISES = (1e-2, 1e0, 1e4, 1e6, 1e8)
RADII = (0.5, 0.99, 1.05)
CASES = [(noise, radius) for noise in NOISES for radius in RADII]
EPS = float(np.finfo(np.float32).eps)


class Grid(NamedTuple):
    F: np.ndarray
    Q: np.ndarray
    H: np.ndarray
    R: np.ndarray
    y: np.ndarray


def grid(structure, T, D=3):
    """All cases at once, numbers as float32 holds them."""
    rng = np.random.default_rng(0)
    E = 2 if structure == "partial" else D
    F = (
        np.diag([1.0, 0.7, -0.4])
        if structure == "diagonal"
        else rng.normal(size=(D, D))
    )
    F = F / np.abs(np.linalg.eigvals(F)).max()
    H = rng.normal(size=(E, D)) if structure == "partial" else np.eye(D)
    draws = rng.normal(size=(T, D)), rng.normal(size=(T, E))
    parts = []
    for noise, radius in CASES:
        x, y = np.zeros(D), []
        for shock, error in zip(*draws):
            x = min(radius, 0.99) * F @ x + shock
            y.append(H @ x + np.sqrt(noise) * error)
        parts.append((radius * F, np.eye(D), H, noise * np.eye(E), y))
    stacked = (np.array(part) for part in zip(*parts))
    return Grid(*(part.astype(np.float32).astype(np.float64) for part in stacked))


def model_of(structure, F, Q, H, R):
    D = F.shape[-1]
    diagonal = lambda matrix: Diagonal(jnp.diagonal(matrix))  # noqa: E731
    start = (jnp.zeros(D), Diagonal(jnp.ones(D)))
    if structure == "diagonal":
        return LGSSM(*start, *map(diagonal, (F, Q, H, R)))
    if structure == "correlated":
        return LGSSM(*start, F, Q, H, R)
    return LGSSM(*start, F, diagonal(Q), H, diagonal(R))


def errors_of(structure, T, backend):
    """The posterior of every case beside its reference."""
    cases = grid(structure, T)
    expected = oracle.rts(*cases)

    @jax.jit
    def run(F, Q, H, R, y):
        found = lgssm_smoother(model_of(structure, F, Q, H, R), y, backend=backend)
        covs = map(to_dense, (found.filtered_covariances, found.smoothed_covariances))
        return found.filtered_means, found.smoothed_means, *covs, found.log_likelihood

    found = [run(*(jnp.float32(part[i]) for part in cases)) for i in range(len(CASES))]
    return [np.array(part, np.float64) for part in zip(*found)], expected


SEQUENTIAL = [("dense", 10_000), ("correlated", 500), ("partial", 10_000)]
SEQUENTIAL += [("diagonal", 10_000)]


@pytest.fixture(
    scope="module",
    params=[(s, T, "sequential") for s, T in SEQUENTIAL]
    + [("dense", 64, "associative"), ("diagonal", 64, "associative")],
    ids=lambda p: f"{p[0]}-{p[2]}",
)
def results(request):
    return errors_of(*request.param)


def relative(found, expected):
    """The largest error of each case over its largest value."""
    axes = tuple(range(1, expected.ndim))
    return np.abs(found - expected).max(axes) / np.abs(expected).max(axes)


def test_means_and_likelihood(results):
    (fm, sm, _, _, ll), (rfm, _, rsm, _, rll) = results
    assert relative(fm, rfm).max() < 1e-5
    assert relative(sm, rsm).max() < 1e-4
    assert (np.abs(ll - rll) / np.abs(rll)).max() < 1e-5


def test_covariances(results):
    (_, _, fP, sP, _), (_, rfP, _, rsP, _) = results
    assert relative(fP, rfP).max() < 1e-4
    assert relative(sP, rsP).max() < 1e-4


def test_covariances_are_symmetric_and_positive_semidefinite(results):
    for covs in results[0][2:4]:
        size = np.abs(covs).max((-1, -2))
        asymmetry = np.abs(covs - covs.swapaxes(-1, -2)).max((-1, -2))
        # Fused multiply-adds may round the two sides apart by a last bit.
        assert (asymmetry <= 2 * EPS * size).all()
        assert np.linalg.eigvalsh(covs).min() > 0.0


def test_a_diffuse_prior_does_not_swallow_the_noise():
    """P - K S K' would return 0 or less here instead of R."""
    D = 3
    model = LGSSM(jnp.zeros(D), 1e8 * jnp.eye(D), jnp.eye(D), Diagonal(jnp.ones(D)),
                  jnp.eye(D), Diagonal(jnp.full(D, 1e-2)))  # fmt: skip
    found = lgssm_smoother(model, jnp.ones((1, D)))
    assert np.allclose(found.filtered_covariances.matrix, 1e-2 * np.eye(D), rtol=1e-4)
