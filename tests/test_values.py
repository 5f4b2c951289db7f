"""Methods are values: they hash, compare, check what they hold, and stay data."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

MAKERS = {
    "auto": elk.auto,
    "deer": elk.deer,
    "elk": lambda: elk.elk(1e2),
    "per dimension": lambda: elk.quasi_elk(jnp.array([1.0, 2.0]), gate=elk.Gate(5.0)),
    "annealed": lambda: elk.elk(elk.Annealed(1.0, growth=2.0)),
    "anderson": lambda: elk.picard(anderson=3),
    "random": lambda: elk.quasi_deer(
        linearization=elk.StochasticDiagonal(jax.random.key(3))
    ),
    "blocks": lambda: elk.deer(linearization=elk.BlockDiagonalJacobian([[0], [1]])),
    "scaled": lambda: elk.deer(linearization=elk.Scaled(elk.DiagonalJacobian(), 0.5)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal_parts_make_equal_methods(make):
    first, second = make(), make()
    assert first == second
    assert hash(first) == hash(second)
    assert jax.tree.leaves(first) is not jax.tree.leaves(second)


def test_all_of_them_differ():
    assert len({make() for make in MAKERS.values()}) == len(MAKERS)


def test_numbers_compare_by_value_however_they_are_written():
    ways = 100, 100.0, np.float32(100), jnp.asarray(100.0), jnp.asarray(100)
    assert len({elk.Method(elk.DenseJacobian(), elk.Constant(x)) for x in ways}) == 1
    assert elk.Gate(3) == elk.Gate(jnp.asarray(3.0)) != elk.Gate(3.5)
    assert elk.Constant(jnp.ones(2)) != elk.Constant(jnp.ones((2, 1)))
    assert elk.Constant(1.0) != elk.Gate(1.0)


def test_a_method_is_a_static_argument():
    traces = []

    @jax.jit(static_argnames="method")
    def run(x, method):
        traces.append(method)
        return elk.evaluate(lambda x, _: 0.5 * x, x, length=4, method=method).states

    x = jnp.ones(2)
    found = [run(x, method=elk.elk(s)) for s in (1.0, 1.0, 2.0)]
    assert len(traces) == 2
    np.testing.assert_allclose(
        found[0], x * 0.5 ** jnp.arange(1, 5)[:, None], atol=1e-5
    )


def test_a_method_is_an_attribute_of_modules():
    nn = pytest.importorskip("flax.linen")
    eqx = pytest.importorskip("equinox")

    class Linen(nn.Module):
        method: elk.Method

        def __call__(self, x):
            return elk.evaluate(lambda x, _: x / 2, x, length=2, method=self.method)

    class Equinox(eqx.Module):
        method: elk.Method = eqx.field(static=True)

    method = elk.elk(1e2)
    assert hash(Linen(method)) == hash(Linen(elk.elk(1e2)))
    assert Linen(method).apply({}, jnp.ones(1)).states.shape == (2, 1)
    same = (
        jax.tree.structure(Equinox(method)),
        jax.tree.structure(Equinox(elk.elk(1e2))),
    )
    assert same[0] == same[1]


def test_traced_numbers_have_no_hash():
    with pytest.raises(TypeError, match="traced number cannot be hashed"):
        jax.jit(lambda s: hash(elk.elk(s)))(1.0)
    assert jax.jit(lambda s: s * (elk.elk(s) == elk.elk(s + 1)))(1.0) == 0


def test_what_jax_puts_in_the_place_of_numbers_is_not_checked():
    """Gradients, axes and zeros of a method are trees of its structure."""
    method = elk.elk(elk.Annealed(1.0), gate=elk.Gate(2.0))
    assert jax.tree.leaves(jax.tree.map(lambda _: 0, method)) == [0] * 4

    def loss(method):
        sol = elk.evaluate(lambda x, _: 0.5 * x, jnp.ones(1), length=3, method=method)
        return sol.states.sum()

    slope = jax.grad(loss)(jax.tree.map(jnp.asarray, method))
    assert not np.any(jax.tree.leaves(slope))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: elk.Gate(0), ValueError, "factor must be a positive number; got 0"),
        (lambda: elk.Gate(-1.0), ValueError, "factor must be .* got -1.0"),
        (lambda: elk.Gate(float("nan")), ValueError, "factor must be .* got nan"),
        (lambda: elk.Gate("3"), TypeError, "factor must be .* got '3'"),
        (lambda: elk.Gate(True), TypeError, "factor must be .* got True"),
        (lambda: elk.Annealed(-1.0), ValueError, "initial is a variance.* got -1.0"),
        (lambda: elk.Annealed(growth=0.5), ValueError, "growth must be .* at least 1"),
        (lambda: elk.GainRatio(initial=0.0), ValueError, "initial must be .* got 0.0"),
        (lambda: elk.Constant([1.0, -2.0]), ValueError, "noise is a variance.* -2.0"),
        (lambda: elk.Constant("much"), TypeError, "noise is a variance.*'much'"),
        (lambda: elk.PerStep(jnp.zeros(3)), ValueError, "noise is a variance.* 0.0"),
        (lambda: elk.ResidualProportional(0), ValueError, "coefficient must be"),
        (lambda: elk.Anderson(ridge=-1.0), ValueError, "ridge must be .* got -1.0"),
        (lambda: elk.Method(noise=100.0, linearization=elk.DenseJacobian()),
         TypeError, "noise must be an object"),
        (lambda: elk.deer(gate=np.float32(3)), TypeError, "gate must be an object"),
        (lambda: elk.deer(noise=1.0), TypeError, "noise"),
        (lambda: elk.Scaled("diag", 0.5), TypeError, "linearization|linearisation"),
    ],
)  # fmt: skip
def test_numbers_are_named_where_they_are_given(make, error, says):
    with pytest.raises(error, match=says) as caught:
        make()
    assert str(caught.value).count("\n") == 0


def test_completion_has_what_to_complete():
    """No public function takes whatever comes."""
    free = {"fit"}  # passes options on to smooth
    for name in set(elk.__all__) - free:
        public = getattr(elk, name)
        if inspect.isfunction(public):
            kinds = [p.kind for p in inspect.signature(public).parameters.values()]
            assert inspect.Parameter.VAR_KEYWORD not in kinds, name
