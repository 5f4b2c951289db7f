"""Mistakes are explained."""

import jax.numpy as jnp
import numpy as np
import pytest
from tests.evaluate.cases import decay

import elk_ssm as elk

X0, INPUTS = jnp.zeros(2), jnp.ones((5, 2))
MISTAKES = {
    "structure": (lambda x, u: {"x": x}, X0, INPUTS, {}, ValueError, "same structure"),
    "shape": (lambda x, u: x[:1], X0, INPUTS, {}, ValueError, r"float32\[2\].*\[1\]"),
    "dtype": (
        lambda x, u: x.astype(jnp.bfloat16),
        X0,
        INPUTS,
        {},
        ValueError,
        r"float32\[2\].*bfloat16\[2\]",
    ),
    "output": (lambda x, u: (x, u), X0, INPUTS, {}, ValueError, r"elk\.scan"),
    "axis": (
        decay,
        X0,
        (INPUTS, jnp.ones((4, 2))),
        {},
        ValueError,
        r"share.*lengths \[4, 5\]",
    ),
    "list": (decay, X0, [1.0, 2.0], {}, ValueError, r"jnp\.asarray"),
    "scalar input": (decay, X0, 1.0, {}, ValueError, "leading time axis"),
    "text": (decay, X0, "abc", {}, TypeError, "'abc'"),
    "no length": (decay, X0, None, {}, ValueError, "length=T"),
    "length": (decay, X0, INPUTS, {"length": 4}, ValueError, "length is 4.*5 steps"),
    "no step": (decay, X0, jnp.ones((0, 2)), {}, ValueError, "T = 0"),
    "no steps": (lambda x, u: x, X0, None, {"length": 0}, ValueError, "T = 0"),
    "float length": (lambda x, u: x, X0, None, {"length": 2.0}, TypeError, "2.0"),
    "order": (X0, decay, INPUTS, {}, TypeError, r"evaluate\(f, initial_state"),
    "bfloat16": (
        lambda x, u: x,
        X0.astype(jnp.bfloat16),
        INPUTS,
        {},
        TypeError,
        "bfloat16",
    ),
    "float16": (
        lambda x, u: x,
        X0.astype(jnp.float16),
        INPUTS,
        {},
        TypeError,
        "float32 or",
    ),
    "complex": (
        lambda x, u: x,
        X0.astype(jnp.complex64),
        INPUTS,
        {},
        TypeError,
        "complex64",
    ),
    "integer": (
        lambda x, u: x + 1,
        jnp.zeros(2, int),
        INPUTS,
        {},
        TypeError,
        "floating-point leaf.*int32",
    ),
    "empty": (lambda x, u: x, jnp.zeros(0), INPUTS, {}, ValueError, r"float32\[0\]"),
    "no leaves": (lambda x, u: x, (), INPUTS, {}, TypeError, "floating-point leaf"),
    "backend": (
        decay,
        X0,
        INPUTS,
        {"backend": "gpu"},
        ValueError,
        "auto, sequential, associative; got 'gpu'",
    ),
    "adjoint": (decay, X0, INPUTS, {"adjoint": "dense"}, ValueError, "'dense'"),
    "guess": (
        decay,
        X0,
        INPUTS,
        {"guess": jnp.ones((4, 2))},
        ValueError,
        r"guess must be.*length 5.*float32\[5, 2\].*float32\[4, 2\]",
    ),
    "guess tree": (decay, X0, INPUTS, {"guess": (INPUTS,)}, ValueError, "guess"),
    "method": (decay, X0, INPUTS, {"method": "deer"}, TypeError, r"elk\.deer\(\)"),
    "factory": (decay, X0, INPUTS, {"method": elk.deer}, TypeError, r"elk\.deer\(\)"),
    "tol": (decay, X0, INPUTS, {"tol": 0.0}, ValueError, "tol must be.*0.0"),
    "nan tol": (decay, X0, INPUTS, {"tol": jnp.nan}, ValueError, "tol must be"),
    "array tol": (decay, X0, INPUTS, {"tol": X0}, ValueError, "tol must be"),
    "max_iters": (decay, X0, INPUTS, {"max_iters": 0}, ValueError, "max_iters"),
    "np max_iters": (
        decay,
        X0,
        INPUTS,
        {"max_iters": np.int64(-1)},
        ValueError,
        "max_iters",
    ),
    "real max_iters": (decay, X0, INPUTS, {"max_iters": 2.5}, TypeError, "max_iters"),
    "history": (decay, X0, INPUTS, {"history": -1}, ValueError, "history.*-1"),
    "noise": (
        decay,
        X0,
        INPUTS,
        {"method": elk.elk(jnp.ones(3))},
        ValueError,
        r"shape \(3,\).*\(2,\) per dimension, \(5, 1\) per step or \(5, 2\)",
    ),
    "branch": (
        lambda x, u: x if x[0] > 0 else u,
        X0,
        INPUTS,
        {},
        TypeError,
        "f failed on one state.*bool",
    ),
    "batch": (
        lambda x, u: jnp.dot(jnp.eye(2), x) + u,
        jnp.zeros((3, 2)),
        jnp.ones((3, 5, 2)),
        {},
        TypeError,
        r"jax\.vmap",
    ),
    "states before inputs": (
        lambda x, u: jnp.eye(2) @ x + u.sum(),
        INPUTS,
        X0,
        {},
        TypeError,
        r"The order is evaluate\(f, initial_state, inputs\).*What f said: dot_general",
    ),
    "a list of steps": (
        lambda x, u: x + u,
        X0,
        [np.ones(2)] * 40,
        {},
        TypeError,
        r"\.\.\. \(40 leaves\).*inputs is a Python list.*its 40 entries.*jnp\.asarray",
    ),
    "a list of numbers": (
        lambda x, u: x + u,
        X0,
        [1.0, 2.0],
        {},
        ValueError,
        r"Python list is a pytree of its entries: pass jnp\.asarray",
    ),
    "a list as state": (
        lambda x, u: x + u,
        [0.0, 0.0],
        INPUTS,
        {},
        TypeError,
        r"initial_state is a Python list.*its 2 entries",
    ),
    "a pair": (
        lambda x, u: (x, x),
        X0,
        INPUTS,
        {},
        ValueError,
        r"same structure, float32\[2\]; got \(.*elk\.scan",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_explained(mistake):
    f, x0, inputs, options, error, message = mistake
    with pytest.raises(error, match=f"(?s){message}"):
        elk.evaluate(f, x0, inputs, **options)


def test_counters_that_depend_on_floats_are_refused():
    def f(state, u):
        x, n = state
        return decay(x, u), n + (x[0] > 0)

    with pytest.raises(TypeError, match="evolve independently"):
        elk.evaluate(f, (X0, jnp.asarray(0)), INPUTS)


def test_sequential_takes_counters_that_depend_on_floats(reference, close):
    def f(state, u):
        x, n = state
        return decay(x, u), n + (x[0] > 0)

    x0 = (X0, jnp.asarray(0))
    found = elk.sequential(f, x0, INPUTS).states
    close(found, reference(f, x0, INPUTS), atol=1e-6)
