"""`smooth` with time sharded over eight devices; see `test_on_a_mesh`.

The oracle is `smooth` on one device, whose mode is compared with dense least squares
elsewhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.collectives import collectives, entries
from jax.sharding import Mesh
from tests.nssm.oracle import emissions_of, pendulum

import elk_ssm as elk
from elk_ssm.nssm.model import NonlinearSSM

P_ = 8
# Of sixteen steps every device has two; of thirteen the last device has none.
EVEN, UNEVEN = 16, 13

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()), ("time",))


def counts_model(steps, decay=0.9, rate=1.0):
    """Poisson counts, a driven state, and a process noise for every step."""
    rng = np.random.default_rng(0)
    Q = 0.05 + rng.random((steps, 1, 1))
    # The entry of step 0 is never used, whatever it holds.
    Q[0] = 1e-300
    return NonlinearSSM(
        initial_mean=jnp.zeros(1),
        initial_covariance=jnp.eye(1),
        dynamics=lambda z, u: decay * jnp.sin(z) + u,
        dynamics_covariance=jnp.asarray(Q),
        log_density=lambda h, y, u: jnp.sum(y * h - rate * jnp.exp(h)),
    )


def counts(steps):
    rng = np.random.default_rng(1)
    y = rng.poisson(2.0, (steps, 1)).astype(float)
    y[4] = np.nan
    return jnp.asarray(y), jnp.asarray(0.3 * rng.normal(size=(steps, 1)))


def cases(name):
    if name == "counts":
        emissions, inputs = counts(UNEVEN)
        return counts_model(UNEVEN), emissions, inputs, {"noise": 1e2}
    options = {"linearization": "cubature", "tol": 1e-6}
    return pendulum(), emissions_of(pendulum(), EVEN), None, options


@pytest.mark.parametrize("name", ["sigma points", "counts"])
def test_the_mode_and_the_iterations_are_those_of_one_device(mesh, name):
    model, emissions, inputs, options = cases(name)
    found = elk.smooth(model, emissions, inputs, mesh=mesh, **options)
    expected = elk.smooth(model, emissions, inputs, **options)
    # Sigma points have no mode to converge to, only a point where nothing is gained.
    good = elk.Status.converged, elk.Status.precision_limit
    assert int(found.status) == int(expected.status) in good
    assert int(found.num_iters) == int(expected.num_iters)
    for part in expected._fields[:4] + expected._fields[-2:]:
        # The same passes, rounded in another order.
        a, b = getattr(found, part), getattr(expected, part)
        np.testing.assert_allclose(a, b, atol=1e-8, err_msg=part)
    if name == "sigma points":
        assert found.means.sharding.spec[0] == "time"


def test_the_mode_moves_with_the_model_as_on_one_device(mesh):
    emissions, inputs = counts(UNEVEN)

    def summary(parameters, mesh):
        model = counts_model(UNEVEN, *parameters)
        found = elk.smooth(model, emissions, inputs, mesh=mesh, noise=1e2)
        return jnp.sum(jnp.sin(found.means)) + found.log_likelihood

    parameters = jnp.asarray([0.9, 1.0])
    found = jax.grad(summary)(parameters, mesh)
    # The mode is found to 1e-8, and its derivatives as well as that.
    np.testing.assert_allclose(found, jax.grad(summary)(parameters, None), rtol=1e-6)


def test_nothing_of_all_of_time_is_sent_forwards_or_backwards(mesh):
    steps = 1600
    inputs = jnp.zeros((steps, 1))

    def loss(decay, emissions):
        model = counts_model(steps, decay)
        return jnp.sum(elk.smooth(model, emissions, inputs, mesh=mesh).means)

    emissions = jax.ShapeDtypeStruct((steps, 1), jnp.float64)
    found = collectives(jax.jit(jax.grad(loss)).lower(0.9, emissions).compile())
    assert any("transpose(jvp" in each.place for each in found)
    assert 1 < entries(found) <= P_ * (3 + 2)


def test_what_goes_through_time_on_one_device_is_refused(mesh):
    emissions = emissions_of(pendulum(), EVEN)
    with pytest.raises(ValueError, match="goes through time step by step"):
        elk.smooth(pendulum(), emissions, guess="extended", mesh=mesh)
