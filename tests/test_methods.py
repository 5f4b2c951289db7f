"""The published names are pairings of parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk


@pytest.mark.parametrize(
    ("method", "linearization", "noise"),
    [
        (elk.deer(), elk.DenseJacobian, None),
        (elk.quasi_deer(), elk.DiagonalJacobian, None),
        (elk.elk(3.0), elk.DenseJacobian, 3.0),
        (elk.quasi_elk(3.0), elk.DiagonalJacobian, 3.0),
        (elk.picard(), elk.IdentityJacobian, None),
        (elk.jacobi(), elk.ZeroJacobian, None),
    ],
)
def test_names_are_pairings(method, linearization, noise):
    assert isinstance(method.linearization, linearization)
    assert (None if method.noise is None else float(method.noise.value)) == noise
    assert method.estimate == "filter"
    assert method.block_size == 1
    assert method.gate is None


def test_factories_pass_parts_on():
    gate = elk.Gate(5.0)
    method = elk.quasi_elk(1.0, estimate="smoother", block_size=4, gate=gate)
    assert (method.estimate, method.block_size, method.gate) == ("smoother", 4, gate)
    other = elk.quasi_deer(linearization=elk.DiagonalJacobian(chunk=7))
    assert other.linearization.chunk == 7


def test_numbers_are_data_and_choices_are_structure():
    one, two = elk.elk(1.0, gate=elk.Gate(2.0)), elk.elk(9.0, gate=elk.Gate(4.0))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert jax.tree.leaves(two) == [9.0, 4.0]
    for other in (
        elk.elk(1.0, gate=elk.Gate(2.0), estimate="smoother"),
        elk.elk(1.0, gate=elk.Gate(2.0), block_size=2),
        elk.quasi_elk(1.0, gate=elk.Gate(2.0)),
    ):
        assert jax.tree.structure(one) != jax.tree.structure(other)


def test_methods_cross_jit_and_vmap_boundaries():
    doubled = jax.jit(lambda m: jax.tree.map(lambda x: 2 * x, m))(elk.elk(3.0))
    assert doubled.noise.value == 6.0
    batched = jax.vmap(elk.elk)(jnp.asarray([1.0, 2.0]))
    np.testing.assert_array_equal(batched.noise.value, [1.0, 2.0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"estimate": "mean"}, "estimate must be .*'mean'"),
        ({"block_size": 0}, "block_size must be a positive integer; got 0"),
        ({"block_size": 2.0}, "block_size .*2.0"),
    ],
)
def test_impossible_choices_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        elk.elk(1.0, **parts)


def test_unknown_parts_are_refused():
    with pytest.raises(TypeError, match="blocksize"):
        elk.deer(blocksize=3)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("auto", "a number, an array or a noise policy; got 'auto'"),
        (None, "a number, an array or a noise policy; got None"),
        (elk.Annealed, r"an instance of a policy, such as Annealed\(\); got the class"),
    ],
)
def test_noise_that_is_none(noise, message):
    with pytest.raises(TypeError, match=message):
        elk.quasi_elk(noise)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: elk.picard(noise=1.0), "noise must be an object"),
        (lambda: elk.deer(gate=True), r"gate must be an object such as elk.Gate\(\)"),
        (lambda: elk.deer(gate=elk.Gate), "gate must be an object"),
        (lambda: elk.quasi_deer(linearization="diag"), "linearization must be"),
        (lambda: elk.deer(linearization=elk.DiagonalJacobian), "linearization must be"),
        (lambda: elk.auto(gate=elk.Gate), "gate must be an object"),
    ],
)
def test_a_class_or_a_word_or_a_number_is_no_part(make, says):
    with pytest.raises(TypeError, match=says):
        make()
