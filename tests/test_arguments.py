"""Wrong arguments are named where they are given, in one sentence, with the cause."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

X0, INPUTS = jnp.zeros(2), jnp.ones((5, 2))
ONE = elk.ScaledIdentity(1.0)
LINEAR = elk.LGSSM(jnp.zeros(1), ONE, ONE, ONE, ONE, ONE)
NONLINEAR = elk.NonlinearSSM(
    jnp.zeros(1), ONE, lambda z, u: jnp.sin(z), ONE, lambda z, u: z, ONE
)
Y = jnp.ones((4, 1))


def if_positive(x, u):
    return x if x[0] > 0 else u


def by_numpy(x, u):
    return jnp.asarray(np.tanh(np.asarray(x))) + u


def by_index(x, u):
    return [x, u][x.astype(int)[0]]


@pytest.mark.parametrize(
    ("f", "says", "cause"),
    [
        (if_positive, "jnp.where, jax.lax.cond", jax.errors.ConcretizationTypeError),
        (by_numpy, "write jnp", jax.errors.TracerArrayConversionError),
        (by_index, "index a jnp array", jax.errors.TracerIntegerConversionError),
    ],
)
@pytest.mark.parametrize("run", [elk.evaluate, elk.sequential, elk.diagnose, elk.scan])
def test_what_a_traced_value_forbids(f, says, cause, run):
    step = (lambda x, u: (f(x, u), x)) if run is elk.scan else f
    with pytest.raises(TypeError, match=says) as caught:
        run(step, X0, INPUTS)
    assert isinstance(caught.value.__cause__, cause)


def test_a_linen_module_inside_f():
    nn = pytest.importorskip("flax.linen")
    cell = nn.GRUCell(2)
    with pytest.raises(TypeError, match=r"cell\.apply\(params.*from_cell") as caught:
        elk.evaluate(lambda x, u: cell(x, u)[0], X0, INPUTS)
    assert type(caught.value.__cause__).__module__.startswith("flax")


def test_other_errors_of_f_are_its_own():
    def f(x, u):
        raise NotImplementedError("mine")

    with pytest.raises(NotImplementedError, match="mine"):
        elk.evaluate(f, X0, INPUTS)


WEIGHTS = jnp.eye(2)


def cell(x, u):
    return WEIGHTS @ x + u


@pytest.mark.parametrize(
    ("f", "x0", "inputs", "options"),
    [
        (cell, jnp.zeros((3, 2)), jnp.ones((3, 5, 2)), {}),
        (lambda x, u: jnp.tanh(x + u), jnp.zeros((3, 2)), jnp.ones((3, 5, 2)), {}),
        (lambda x, u: x + u, jnp.zeros((1, 2)), jnp.ones((1, 5, 2)), {}),
        (lambda x, u: x + u, jnp.zeros((3, 2)), jnp.ones((3, 5, 2)), {"length": 5}),
    ],
)
def test_a_batch_axis_is_recognised(f, x0, inputs, options):
    with pytest.raises((TypeError, ValueError), match=r"batch axis: use jax\.vmap"):
        elk.evaluate(f, x0, inputs, **options)


def test_states_with_axes_of_their_own_are_no_batch():
    sol = elk.evaluate(
        lambda x, u: jnp.tanh(0.5 * x + u), jnp.zeros((3, 2)), jnp.ones((5, 3, 2))
    )
    assert sol.states.shape == (5, 3, 2)


RAGGED = np.array([[1.0, 2.0], [3.0]], dtype=object)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: elk.evaluate(cell, X0, INPUTS, tol="1e-3"), ValueError, "tol.*'1e-3'"),
        (lambda: elk.evaluate(cell, X0, RAGGED), TypeError, "rows of different"),
        (lambda: elk.evaluate(cell, RAGGED, INPUTS), TypeError, "object array"),
        (lambda: elk.lgssm_filter(Y, LINEAR), TypeError, "expected an LGSSM"),
        (lambda: elk.lgssm_smoother(Y, LINEAR), TypeError, "expected an LGSSM"),
        (lambda: elk.lgssm_filter(LINEAR, RAGGED), TypeError, "rows of one length"),
        (lambda: elk.smooth(NONLINEAR, RAGGED), TypeError, "rows of one length"),
        (
            lambda: elk.smooth(NONLINEAR, Y, max_iters=-1),
            ValueError,
            "not be negative; got -1",
        ),
        (
            lambda: elk.smooth(NONLINEAR, Y, max_iters=2.5),
            TypeError,
            "integer; got 2.5",
        ),
        (lambda: elk.smooth(NONLINEAR, Y, tol="1e-3"), TypeError, "tol.*'1e-3'"),
        (lambda: elk.smooth(NONLINEAR, Y, tol=-1.0), ValueError, "tol.*-1.0"),
        (lambda: elk.scan(cell, X0, INPUTS, tols=1.0), TypeError, "tols"),
        (lambda: elk.sweep_noise(cell, X0, INPUTS, tols=1.0), TypeError, "tols"),
    ],
)
def test_the_argument_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_the_model_comes_before_the_key():
    key = jax.random.key(0)
    ways = {
        "lgssm_sample": (elk.lgssm_sample, LINEAR, Y),
        "sample": (elk.sample, NONLINEAR, 4),
    }
    for name, (draw, model, rest) in ways.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = draw(model, key, rest)
        with pytest.warns(
            DeprecationWarning, match=rf"{name} takes \(model, key"
        ) as seen:
            found = draw(key, model, rest)
        assert seen[0].filename == __file__
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_array_equal(a, b)
