"""The task `linearize`: what it takes, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.linalg.structure import Dense, Diagonal

T = 6
X0 = {"h": jnp.zeros(2), "n": jnp.asarray(0)}
INPUTS = jnp.linspace(-1, 1, 2 * T).reshape(T, 2)


def f(state, u):
    h = jnp.tanh(0.5 * state["h"] + u * (1 + state["n"]))
    return {"h": h, "n": state["n"] + 1}


STATES = {"h": INPUTS + 0.5, "n": jnp.arange(1, T + 1)}


def test_values_and_operators_are_f_s():
    for method, kind in (
        (None, None),
        (elk.deer(), Dense),
        (elk.quasi_deer(), Diagonal),
    ):
        found = elk.linearize(f, STATES, INPUTS, initial_state=X0, method=method)
        if kind is not None:
            assert isinstance(found.operator, kind)
        before = jnp.concatenate([X0["h"][None], STATES["h"][:-1]])
        for t in range(T):
            g = lambda h, t=t: f({"h": h, "n": jnp.asarray(t)}, INPUTS[t])["h"]  # noqa: E731
            np.testing.assert_allclose(found.values[t], g(before[t]), rtol=1e-6)
            jacobian = jax.jacrev(g)(before[t])
            if kind is Diagonal:
                jacobian = jnp.diag(jacobian)
            if kind is not None:
                np.testing.assert_allclose(found.operator[0][t], jacobian, atol=1e-6)


def test_flat_results_are_given_their_structure_back():
    found = elk.linearize(f, STATES, INPUTS, initial_state=X0, noise=1.0)
    (h,) = jax.tree.leaves(found.unravel(found.smooth().means))
    assert h.shape == (T, 2)


def test_the_length_comes_from_the_states_when_there_are_no_inputs():
    found = elk.linearize(
        lambda x, _: jnp.cos(x), jnp.ones((4, 2)), initial_state=jnp.zeros(2)
    )
    np.testing.assert_allclose(found.values[0], 1.0)
    assert found.values.shape == (4, 2)


@pytest.mark.parametrize("shape", [(), (2,), (T, 1), (T, 2)])
def test_noise_of_every_shape_is_written_out(shape):
    found = elk.linearize(
        f, STATES, INPUTS, initial_state=X0, noise=jnp.full(shape, 2.0)
    )
    np.testing.assert_array_equal(found.noise, jnp.full((T, 2), 2.0))


def test_the_method_s_noise_unless_another_is_given():
    method = elk.quasi_elk(3.0)
    found = elk.linearize(f, STATES, INPUTS, initial_state=X0, method=method)
    np.testing.assert_array_equal(found.noise, jnp.full((T, 2), 3.0))
    found = elk.linearize(f, STATES, INPUTS, initial_state=X0, method=method, noise=5.0)
    np.testing.assert_array_equal(found.noise, jnp.full((T, 2), 5.0))


@pytest.mark.parametrize("backend", ["sequential", "associative"])
def test_the_backend_is_the_surrogate_s(backend):
    found = elk.linearize(f, STATES, INPUTS, initial_state=X0, backend=backend)
    program = str(jax.make_jaxpr(lambda s: s.filter().means)(found))
    assert (f"length={T}" in program) == (backend == "sequential")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise": -1.0}, ValueError, "noise is a variance"),
        ({"noise": "1.0"}, TypeError, "noise must be a number"),
        ({"noise": jnp.ones(3)}, ValueError, r"shape \(3,\).*\(2,\) per dimension"),
        ({"process_variance": "median"}, ValueError, '"per_step"; got .median'),
        ({"process_variance": -1.0}, ValueError, "process_variance.*-1"),
        ({"process_variance": jnp.nan}, ValueError, "process_variance.*nan"),
        ({"backend": "gpu"}, ValueError, "backend must be one of"),
        ({"method": "deer"}, TypeError, "method must be made by"),
        ({"initial_state": X0["h"]}, ValueError, "."),
    ],
)
def test_mistakes_are_explained(options, error, message):
    options = {"initial_state": X0, **options}
    if "initial_state" in options and options["initial_state"] is not X0:
        error = (TypeError, ValueError, IndexError)
    with pytest.raises(error, match=message):
        elk.linearize(f, STATES, INPUTS, **options)


def test_states_of_another_structure_are_refused():
    with pytest.raises(ValueError, match="states must be the state with a leading"):
        elk.linearize(f, STATES["h"], INPUTS, initial_state=X0)
    short = jax.tree.map(lambda x: x[:-1], STATES)
    with pytest.raises(ValueError, match="length 6"):
        elk.linearize(f, short, INPUTS, initial_state=X0)
