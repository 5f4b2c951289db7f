"""Differential equations in parallel over time, against `diffrax.diffeqsolve`."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import elk_ssm as elk
from elk_ssm.interop import diffrax as parallel

FINDER = diffrax.VeryChord(rtol=1e-5, atol=1e-5, norm=optimistix.max_norm)
SPAN = (0.0, 1.0, 0.03)  # the last step is clipped
MOST = 64
STEPS = diffrax.SaveAt(steps=True)


def oscillator(t, y, mu):
    """Van der Pol, driven, of a pytree."""
    x, v = y["x"], y["v"]
    return {"x": v, "v": mu * (1 - x**2) * v - x + jnp.sin(t)}


ODE = diffrax.ODETerm(oscillator)


def start():
    return {"x": jnp.asarray(2.0), "v": jnp.asarray(0.5)}


def brownian(kind, **how):
    key = jax.random.key(0)
    if kind == "tree":
        return diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, (2,), key, **how)
    return diffrax.UnsafeBrownianPath((2,), key, **how)


def langevin(path):
    """An SDE in two dimensions with noise that depends on the state."""
    drift = diffrax.ODETerm(lambda t, y, a: -a * y + jnp.sin(3 * t))
    spread = diffrax.ControlTerm(lambda t, y, a: jnp.diag(0.3 + 0.1 * y**2), path)
    return diffrax.MultiTerm(drift, spread)


def reference(terms, solver, y0, args, span=SPAN, **how):
    """Values after every step, and their times, by diffrax."""
    how = {"saveat": STEPS, "max_steps": MOST} | how
    if "UnsafeBrownianPath" in str(terms):  # not made for reverse mode
        how["adjoint"] = diffrax.ForwardMode()
    found = diffrax.diffeqsolve(terms, solver, *span, y0, args, **how)
    count = int(found.stats["num_steps"])
    return jax.tree.map(lambda y: y[:count], found.ys), found.ts[:count]


def assert_steps_equal(terms, solver, y0, args, span=SPAN, *, atol=1e-13, **how):
    made = parallel.from_diffrax(terms, solver, *span, y0, args, **how)
    expected, times = reference(terms, solver, y0, args, span, **how)
    np.testing.assert_allclose(made.times, times, atol=5e-16, rtol=0)
    sol = elk.sequential(*made)
    for a, b in zip(jax.tree.leaves(made.ys(sol.states)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, atol=atol, rtol=0)
    return made


SOLVERS = [
    diffrax.Euler(),
    diffrax.Heun(),
    diffrax.Tsit5(),
    diffrax.Dopri8(),
    diffrax.ReversibleHeun(),
    diffrax.LeapfrogMidpoint(),
    diffrax.HalfSolver(diffrax.Bosh3()),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_the_recurrence_takes_the_steps_of_diffrax(solver, x64):
    assert_steps_equal(ODE, solver, start(), 1.5)


@pytest.mark.parametrize("solver", [diffrax.Kvaerno3(root_finder=FINDER)])
def test_an_implicit_solver_carries_its_last_stage(solver, x64):
    span = (0.0, 0.1, 0.02)
    made = assert_steps_equal(ODE, solver, start(), 1.5, span, atol=1e-12)
    assert made.f.equation.carries == "stage"


def test_backwards_in_time(x64):
    assert_steps_equal(ODE, diffrax.Dopri5(), start(), 1.5, (1.0, -0.5, -0.07))


def test_an_explicit_solver_needs_no_more_state_than_y(x64):
    made = parallel.from_diffrax(ODE, diffrax.Tsit5(), *SPAN, start(), 1.5)
    assert jax.tree.structure(made.initial_state) == jax.tree.structure(start())


@pytest.mark.parametrize("kind", ["tree", "unsafe"])
def test_an_sde_sees_the_same_brownian_path(kind, x64):
    # The last bit of a time seeds an unsafe path, so times are given.
    to = diffrax.StepTo(jnp.linspace(0.0, 1.0, 35) ** 2)
    args = langevin(brownian(kind)), diffrax.Heun(), jnp.ones(2), 0.8, (0.0, 1.0, None)
    made = assert_steps_equal(*args, stepsize_controller=to)
    # Increments are inputs, so no pass draws them again.
    assert jax.tree.leaves(made.inputs.controls)[0].shape == (34, 2)


def test_a_stochastic_runge_kutta_solver_gets_its_areas(x64):
    path = brownian("tree", levy_area=diffrax.SpaceTimeLevyArea)
    made = assert_steps_equal(langevin(path), diffrax.SlowRK(), jnp.ones(2), 0.8)
    assert len(jax.tree.leaves(made.inputs.controls)) > 1


def test_an_sde_backwards_in_time(x64):
    terms = langevin(brownian("tree"))
    to, span = diffrax.StepTo(jnp.linspace(1.0, 0.0, 21)), (1.0, 0.0, None)
    args = terms, diffrax.Heun(), jnp.ones(2), 0.8, span
    assert_steps_equal(*args, stepsize_controller=to)


def test_a_cde_along_an_interpolated_path(x64):
    rng = np.random.default_rng(0)
    knots = jnp.linspace(0.0, 1.0, 6)
    path = diffrax.LinearInterpolation(knots, jnp.asarray(rng.normal(size=(6, 2))))
    term = diffrax.ControlTerm(lambda t, y, a: jnp.tanh(a * jnp.outer(y, y)), path)
    assert_steps_equal(term, diffrax.Heun(), jnp.ones(2), 0.8)


@pytest.mark.parametrize(
    ("terms", "solver", "y0"),
    [
        (lambda: ODE, diffrax.Tsit5(), start),
        (lambda: langevin(brownian("tree")), diffrax.Heun(), lambda: jnp.ones(2)),
    ],
    ids=["tsit5", "sde"],
)
def test_values_and_gradients_equal_those_of_diffrax(terms, solver, y0, x64, close):
    def loss(solve, **how):
        def run(y0, mu):
            found = solve(terms(), solver, *SPAN, y0, mu, **how)
            return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(found.ys))

        return jax.jit(jax.value_and_grad(run, (0, 1)))(y0(), jnp.asarray(1.5))

    found = loss(parallel.diffeqsolve, method=elk.deer(), adjoint="parallel")
    close(found, loss(diffrax.diffeqsolve), atol=1e-12)


def test_what_is_saved_is_what_diffrax_saves(x64, close):
    times = jnp.asarray([0.0, 0.011, 0.03, 0.5, 1.0])
    subs = {
        "between": diffrax.SubSaveAt(t0=True, ts=times, t1=True),
        "third": diffrax.SubSaveAt(steps=3, t1=True, fn=lambda t, y, a: a * y["x"] + t),
    }
    saveat = diffrax.SaveAt(subs=subs, dense=True, solver_state=True)
    args = (ODE, diffrax.Tsit5(), *SPAN, start(), 1.5)
    found = parallel.diffeqsolve(*args, saveat=saveat, method=elk.picard())
    expected = diffrax.diffeqsolve(*args, saveat=saveat, max_steps=MOST)
    pairs = found.ts, found.ys
    for a, b in zip(*map(jax.tree.leaves, (pairs, (expected.ts, expected.ys)))):
        np.testing.assert_allclose(a, b[: len(a)], atol=1e-12)
        assert not np.isfinite(b[len(a) :]).any()
    close(found.evaluate(0.123), expected.evaluate(0.123), atol=1e-12)
    assert found.stats["num_steps"] == expected.stats["num_steps"]
    assert found.result == diffrax.RESULTS.successful
    assert (found.t0, found.t1) == (0.0, 1.0)


def test_the_steps_of_an_adaptive_solve_can_be_taken_again(x64):
    controller = diffrax.PIDController(rtol=1e-4, atol=1e-6)
    saveat = diffrax.SaveAt(t0=True, steps=True)
    how = {"saveat": saveat, "stepsize_controller": controller, "max_steps": MOST}
    first = diffrax.diffeqsolve(ODE, diffrax.Tsit5(), 0, 1, 0.1, start(), 1.5, **how)
    ts = first.ts[jnp.isfinite(first.ts)]
    again = parallel.diffeqsolve(
        ODE, diffrax.Tsit5(), 0, 1, None, start(), 1.5,
        stepsize_controller=diffrax.StepTo(ts), saveat=saveat, method=elk.deer(),
    )  # fmt: skip
    np.testing.assert_allclose(again.ts, ts)
    np.testing.assert_allclose(again.ys["x"], first.ys["x"][: len(ts)], atol=1e-13)


def test_times_may_be_traced_where_their_number_is_known(x64):
    count, term = 10, diffrax.ODETerm(lambda t, y, args: -y)

    def end(t1):
        ts = jnp.linspace(0.0, t1, count + 1)
        to = diffrax.StepTo(ts)
        return parallel.diffeqsolve(
            term, diffrax.Euler(), 0.0, t1, None, 1.0, stepsize_controller=to
        ).ys[0]

    found, slope = jax.jit(jax.value_and_grad(end))(2.0)
    step = 1 - 2.0 / count
    np.testing.assert_allclose([found, slope], [step**count, -(step ** (count - 1))])


def test_a_solve_that_does_not_converge_is_stepped_through(x64, close):
    args = (ODE, diffrax.Heun(), *SPAN, start(), 1.5)
    found = parallel.diffeqsolve(*args, method=elk.jacobi(), max_iters=1)
    close(found.ys, diffrax.diffeqsolve(*args).ys, atol=1e-13)
