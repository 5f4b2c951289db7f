"""The verbs of every structure equal those of its dense matrix, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm.linalg.grouped import Grouped
from elk_ssm.linalg.structure import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Operator,
    as_operator,
    common,
    in_structure,
    pattern_of,
    to_dense,
    unified,
)

D = 6
SHAPES = {Dense: (D, D), Diagonal: (D,), BlockDiagonal: (3, 2, 2), Grouped: (3, 2, 2)}
pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.parametrize("kind", SHAPES),
]
LEAD = pytest.mark.parametrize("lead", [(), (5,), (2, 5)])


def draw(kind, lead=(), seed=0):
    return kind(
        jnp.asarray(np.random.default_rng(seed).normal(size=lead + SHAPES[kind]))
    )


def covariance(kind, lead=(), seed=0):
    root = draw(kind, lead, seed)
    return root.mm(root.T).shift(0.1)


def vector(lead=(), seed=9):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*lead, D)))


def full(operator):
    """The matrices by definition, and not by our own `to_dense`."""
    array = np.asarray(operator.array)
    if isinstance(operator, Dense):
        return array
    if isinstance(operator, Diagonal):
        return array[..., None] * np.eye(D)
    out = np.zeros((*array.shape[:-3], D, D))
    for k in range(3):
        own = slice(k, None, 3) if isinstance(operator, Grouped) else [2 * k, 2 * k + 1]
        rows = np.arange(D)[own]
        out[..., rows[:, None], rows] = array[..., k, :, :]
    return out


def close(found, expected):
    found = full(found) if isinstance(found, Operator) else found
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@LEAD
def test_what_a_structure_holds_of_a_full_matrix(kind, lead):
    whole = np.random.default_rng(3).normal(size=(*lead, D, D))
    held = full(kind(jnp.ones(SHAPES[kind]))) > 0
    close(draw(kind).part_of(jnp.asarray(whole)), np.where(held, whole, 0))
    np.testing.assert_array_equal(pattern_of(draw(kind), D, D) >= 0, held)
    close(in_structure(draw(kind), jnp.asarray(whole)), np.where(held, whole, 0))


@LEAD
def test_algebra(kind, lead):
    a, b, x = draw(kind, lead), draw(kind, lead, 1), vector(lead)
    A, B, X = full(a), full(b), np.asarray(x)
    close(to_dense(a), A)
    close(a.mv(x), np.einsum("...ij,...j->...i", A, X))
    close(a.push(x), np.einsum("...ij,...j->...i", A, X))
    close(a.mm(b), A @ B)
    close(a.T, np.swapaxes(A, -1, -2))
    close(a.add(b), A + B)
    close(a.scale_rows(x), X[..., None] * A)
    close(a.diag(x), X[..., None] * np.eye(D))
    close(a.shift(x), A + X[..., None] * np.eye(D))
    close(a.shift(2.0), A + 2 * np.eye(D))
    close(a.variances(), np.diagonal(A, axis1=-2, axis2=-1))
    close(a.symmetrized(), (A + np.swapaxes(A, -1, -2)) / 2)
    close(a.scaled(jnp.full(lead, 3.0)), 3 * A)


@LEAD
def test_a_congruence_is_symmetric_to_the_last_bit(kind, lead):
    a, s = draw(kind, lead), covariance(kind, lead, 1)
    found = full(a.congruence(s))
    close(found, full(a) @ full(s) @ np.swapaxes(full(a), -1, -2))
    np.testing.assert_array_equal(found, np.swapaxes(found, -1, -2))


@LEAD
def test_one_elimination_serves_matrices_and_vectors(kind, lead):
    a, b, x = covariance(kind, lead), draw(kind, lead, 1), vector(lead)
    first, second, third = a.solve(b, x, a)
    close(first, np.linalg.solve(full(a), full(b)))
    close(second, np.linalg.solve(full(a), np.asarray(x)[..., None])[..., 0])
    close(third, np.broadcast_to(np.eye(D), full(a).shape))


def test_zeros_stay_zeros_under_what_overflowed(kind):
    huge = kind(jnp.full(SHAPES[kind], jnp.inf))
    assert not huge.push(jnp.zeros(D)).any()
    assert jnp.isinf(huge.push(jnp.ones(D))).all()


def test_steps_and_choices(kind):
    static, varying = draw(kind), draw(kind, (5,), 1)
    assert varying.varies
    assert not static.varies
    close(varying.at(3), full(varying)[3])
    close(static.at(3), full(static))
    mask = jnp.array([True, False, True, True, False])
    chosen = full(varying.where(mask, 0.0))
    close(chosen, np.where(np.asarray(mask)[:, None, None], full(varying), 0))
    close(varying.where(mask, static).array[1], static.array)


@LEAD
def test_observing_is_gaussian_conditioning(kind, lead):
    cov, mean = covariance(kind, lead), vector(lead)
    noise = jnp.exp(vector(lead, 3))
    found = cov.observe(mean, noise)
    C, R = full(cov), np.asarray(noise)[..., None] * np.eye(D)
    gain = C @ np.linalg.inv(C + R)
    close(found.mean, np.asarray(mean) - np.einsum("...ij,...j->...i", gain, mean))
    close(found.covariance, C - gain @ C)
    # The densities of the innovations, one after the other, are that of all.
    squares = np.sum(np.asarray(found.innovations**2 / found.totals), -1)
    solved = np.linalg.solve(C + R, np.asarray(mean)[..., None])[..., 0]
    close(squares, np.sum(np.asarray(mean) * solved, -1))
    close(np.sum(np.log(found.totals), -1), np.linalg.slogdet(C + R)[1])


@LEAD
def test_observing_a_run_keeps_the_evidence_about_where_it_began(kind, lead):
    cov, run, mean = covariance(kind, lead), draw(kind, lead, 1), vector(lead)
    noise = jnp.exp(vector(lead, 3))
    A, b, C, eta, J = cov.observe_run(run, mean, noise)
    full_C, R = full(cov), np.asarray(noise)[..., None] * np.eye(D)
    keep = np.eye(D) - full_C @ np.linalg.inv(full_C + R)
    precision = np.linalg.inv(full_C + R)
    back = np.swapaxes(full(run), -1, -2) @ precision
    close(A, keep @ full(run))
    close(b, np.einsum("...ij,...j->...i", keep, mean))
    close(C, keep @ full_C)
    close(eta, -np.einsum("...ij,...j->...i", back, mean))
    close(J, back @ full(run))


def test_structures_are_pytrees_and_named_tuples(kind):
    operator = draw(kind)
    again = jax.tree.map(lambda x: x, operator)
    assert type(again) is kind
    assert repr(operator).startswith(kind.__name__ + "(")
    if kind is Grouped:  # has more than its array
        assert again.members == operator.members
        return
    assert operator._fields == (kind._fields[0],)
    assert type(operator._replace(**{kind._fields[0]: operator[0]})) is kind


def test_one_structure_for_all(kind):
    same = common(draw(kind), draw(kind, (4,)))
    assert all(type(operator) is kind for operator in same)
    mixed = common(draw(kind), Diagonal(jnp.ones(D)))
    assert {type(operator) for operator in mixed} == {
        Diagonal if kind is Diagonal else Dense
    }
    close(to_dense(mixed[0]), full(draw(kind)))


def test_declarations_are_read(kind):
    operator = draw(kind, (4,))
    assert type(as_operator(operator, D, "F")) is kind
    with pytest.raises(ValueError, match="F: "):
        as_operator(kind(jnp.zeros(())), D, "F")


@LEAD
def test_groups_that_never_mix_are_taken_apart_and_put_back(kind, lead):
    a, x = draw(kind, lead), vector(lead)
    if not a.grouped:
        assert kind is Dense
        return
    parts, vectors = a.cut(a) if a.mixes else Dense(a.cut(a.array)[..., None]), a.cut(x)
    again, moved = a.join((parts, parts.mv(vectors)))
    assert type(again) is kind
    close(again, full(a))
    close(moved, np.einsum("...ij,...j->...i", full(a), x))
    diagonal = a.apart(Diagonal(x))
    assert type(diagonal) is Diagonal
    close(a.join(diagonal.array), x)


def test_diagonal_ones_join_the_structure_of_the_others(kind):
    a, d = draw(kind, (5,)), Diagonal(vector())
    found = unified(d, a, d)
    assert {type(one) for one in found} == {kind}
    close(found[0], np.asarray(vector())[:, None] * np.eye(D))
    close(found[1], full(a))
