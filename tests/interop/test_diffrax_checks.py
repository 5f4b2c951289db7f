"""What `diffeqsolve` refuses and says, and the ends of what it takes."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.interop.test_diffrax import ODE, start

from elk_ssm.interop import diffrax as parallel

DECAY = diffrax.ODETerm(lambda t, y, args: -y)
BACK = {"t0": 1.0, "t1": 0.0, "dt0": -0.1}


def at(*times):
    return diffrax.SaveAt(ts=jnp.array(times))


ADAPTIVE = diffrax.PIDController(rtol=1e-3, atol=1e-6)
THREE = diffrax.StepTo(jnp.arange(3.0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"stepsize_controller": ADAPTIVE}, ValueError, "side by side"),
        ({"stepsize_controller": THREE}, ValueError, "dt0=None"),
        ({"dt0": None}, ValueError, r"need dt0; .*diffrax\.StepTo"),
        ({"dt0": "0.1"}, TypeError, "dt0 must be one number; got '0.1'"),
        ({"dt0": jnp.ones(2), "y0": 0.1}, ValueError, r"32\[2\]. The order .* dt0, y0"),
        ({"dt0": {"x": jnp.ones(2)}}, TypeError, "dt0 must be one number"),
        ({"dt0": None, "t1": 0.0}, ValueError, "need dt0"),
        ({"y0": "a"}, TypeError, "y0 must be arrays; got the text 'a'"),
        ({"t1": None}, TypeError, "t1 must be one number; got None"),
        ({"terms": lambda t, y, args: -y}, TypeError, r"ODETerm\(f\); got func"),
        ({"terms": None}, TypeError, r"diffrax.ODETerm\(f\); got None"),
        ({"saveat": jnp.ones(2)}, TypeError, r"diffrax.SaveAt\(ts=...\); got A"),
        ({"saveat": at(0.5, 1.5)}, ValueError, "t0 = 0.0 and t1 = 1.0; got 1.5"),
        ({"saveat": at(-0.5)}, ValueError, "t0 = 0.0 and t1 = 1.0; got -0.5"),
        ({"saveat": at(jnp.nan)}, ValueError, "got nan"),
        ({"saveat": at(0.5, 0.25)}, ValueError, "increasing .*; got 0.5 before 0.25"),
        ({"saveat": at(0.25, 0.5)} | BACK, ValueError, "decreasing .*; got 0.25 be"),
        ({"saveat": diffrax.SaveAt(subs=[at(2.0).subs])}, ValueError, "got 2.0"),
        ({"dt0": -0.1}, ValueError, "do not lead from"),
        ({"dt0": 0.0}, ValueError, "do not lead from"),
        ({"solver": diffrax.Kvaerno5()}, ValueError, "tolerances of its own"),
        ({"solver": "Tsit5"}, TypeError, "solver of diffrax"),
        ({"event": None}, TypeError, "event"),
        ({"adjoint": diffrax.BacksolveAdjoint()}, ValueError, "BacksolveAdjoint"),
        ({"max_steps": 3}, ValueError, "max_steps is 3"),
        ({"saveat": diffrax.SaveAt(t1=True, made_jump=True)}, ValueError, "that adapt"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(change, error, message):
    given = {"solver": diffrax.Euler(), "t0": 0.0, "t1": 1.0, "dt0": 0.1} | change
    given = {"terms": DECAY, "y0": jnp.ones(1)} | given
    with pytest.raises(error, match=message):
        parallel.diffeqsolve(**given)


def test_times_in_order_and_at_the_ends_are_taken(x64, close):
    args = DECAY, diffrax.Heun(), 1.0, 0.0, -0.1, jnp.ones(1)
    saveat = at(1.0, 0.7, 0.7, 0.0)
    found = parallel.diffeqsolve(*args, saveat=saveat)
    close(found.ys, diffrax.diffeqsolve(*args, saveat=saveat).ys, atol=1e-13)
    # In float32 these ends are those of the interval, in float64 they are not.
    ends = diffrax.SaveAt(ts=np.float32([0.0, 0.3]))
    args = DECAY, diffrax.Heun(), jnp.float32(0), jnp.float32(0.3), 0.1, jnp.ones(1)
    assert jnp.isfinite(parallel.diffeqsolve(*args, saveat=ends).ys).all()


def test_traced_times_outside_are_nan():
    def last(t):
        args = DECAY, diffrax.Euler(), 0.0, 1.0, 0.1, jnp.ones(1)
        return parallel.diffeqsolve(*args, saveat=diffrax.SaveAt(ts=t[None])).ys[0, 0]

    found = jax.vmap(jax.jit(last))(jnp.array([0.0, 2.0]))
    assert float(found[0]) == 1.0
    assert bool(jnp.isnan(found[1]))


@pytest.mark.parametrize(
    "saveat",
    [None, at(1.0, 1.0), diffrax.SaveAt(t0=True, t1=True), diffrax.SaveAt(dense=True)],
    ids=["end", "times", "both", "dense"],
)
def test_without_a_step_it_returns_what_diffrax_does(saveat, x64, close):
    args = ODE, diffrax.Tsit5(), 1.0, 1.0, 0.1, start(), 1.5
    how = {} if saveat is None else {"saveat": saveat}
    found, expected = (
        solve(*args, **how) for solve in (parallel.diffeqsolve, diffrax.diffeqsolve)
    )
    close((found.ts, found.ys), (expected.ts, expected.ys), atol=0)
    assert found.stats["num_steps"] == found.stats["num_iters"] == 0
    if saveat is not None and saveat.dense:
        close(found.evaluate(1.0), start(), atol=0)
    with pytest.raises(ValueError, match="there is no step to take"):
        parallel.from_diffrax(*args)


def test_without_a_step_the_gradient_is_that_of_y0():
    def value(y):
        return parallel.diffeqsolve(DECAY, diffrax.Heun(), 0, 0, 0.1, y).ys[0] ** 2

    assert float(jax.jit(jax.grad(value))(3.0)) == 6.0
    assert float(jax.jvp(value, (3.0,), (1.0,))[1]) == 6.0


def test_a_traced_number_of_steps_is_explained():
    def run(dt0):
        term = diffrax.ODETerm(lambda t, y, args: -y)
        return parallel.diffeqsolve(term, diffrax.Euler(), 0, 1, dt0, jnp.ones(1)).ys

    with pytest.raises(ValueError, match="StepTo"):
        jax.jit(run)(0.1)


@pytest.mark.parametrize("wrap", [tuple, list, lambda subs: {"a": tuple(subs)}])
def test_subs_keep_their_places(wrap):
    """Two of them in a tuple, too, which is what a time and its value are."""
    subs = [diffrax.SubSaveAt(t1=True), diffrax.SubSaveAt(ts=jnp.linspace(0, 1, 3))]
    problem = diffrax.ODETerm(lambda t, y, a: -y), diffrax.Tsit5(), 0.0, 1.0, 0.13
    options = {"y0": jnp.ones(2), "saveat": diffrax.SaveAt(subs=wrap(subs))}
    ours, theirs = (
        solve(*problem, **options)
        for solve in (parallel.diffeqsolve, diffrax.diffeqsolve)
    )
    assert jax.tree.structure(ours.ts) == jax.tree.structure(theirs.ts)
    for a, b in zip(
        jax.tree.leaves((ours.ts, ours.ys)), jax.tree.leaves((theirs.ts, theirs.ys))
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
