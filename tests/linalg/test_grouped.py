"""Groups of any members: the verbs against those of blocks in a row."""

import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.linalg.grouped import NOBODY, Grouped
from elk_ssm.linalg.structure import Dense, common

pytestmark = pytest.mark.usefixtures("x64")
MEMBERS = ((4, 0, 2), (1, NOBODY, NOBODY), (5, 3, NOBODY))
D, RNG = 6, np.random.default_rng(0)


def draw():
    """A matrix with entries inside of the groups, and what holds it."""
    matrix, blocks = np.zeros((D, D)), np.zeros((3, 3, 3))
    for k, group in enumerate(MEMBERS):
        for a, i in enumerate(group):
            for b, j in enumerate(group):
                if NOBODY not in (i, j):
                    matrix[i, j] = blocks[k, a, b] = RNG.normal()
                elif a == b:
                    blocks[k, a, b] = 1  # what nobody is part of is left alone
    return matrix, Grouped(jnp.asarray(blocks), MEMBERS)


def test_verbs():
    (A, a), (B, b), x = draw(), draw(), RNG.normal(size=D)
    cov, noise = a.mm(a.T).shift(0.1), np.exp(x)
    C = A @ A.T + 0.1 * np.eye(D)
    gain = C @ np.linalg.inv(C + np.diag(noise))
    seen = cov.observe(jnp.asarray(x), jnp.asarray(noise))
    pairs = {
        "dense": (a, A),
        "product": (a.mm(b), A @ B),
        "transpose": (a.T, A.T),
        "rows": (a.scale_rows(jnp.asarray(x)), np.diag(x) @ A),
        "diagonal": (a.diag(jnp.asarray(x)), np.diag(x)),
        "congruence": (a.congruence(cov), A @ C @ A.T),
        "solved": (cov.solve(b)[0], np.linalg.solve(C, B)),
        "observed": (seen.covariance, C - gain @ C),
    }
    for found, expected in pairs.values():
        np.testing.assert_allclose(found.to_dense(), expected, atol=1e-12)
    vectors = {
        "times": (a.mv(jnp.asarray(x)), A @ x),
        "variances": (a.variances(), np.diag(A)),
        "mean": (seen.mean, x - gain @ x),
        "logarithms": (
            np.log(seen.totals).sum(),
            np.linalg.slogdet(C + np.diag(noise))[1],
        ),
    }
    for found, expected in vectors.values():
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_other_groups_are_another_structure():
    a = draw()[1]
    other = Grouped(a.blocks, MEMBERS[::-1])
    assert {type(one) for one in common(a, a)} == {Grouped}
    mixed = common(a, other)
    assert {type(one) for one in mixed} == {Dense}
    np.testing.assert_array_equal(mixed[1].matrix, other.to_dense())
