"""Results say what they are: concrete, batched, traced, and rebuilt around anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import elk_ssm as elk

X0, INPUTS = jnp.zeros(2), jnp.ones((30, 2))
ONE = elk.ScaledIdentity(1.0)
MODEL = elk.NonlinearSSM(
    jnp.zeros(1), ONE, lambda z, u: jnp.sin(z), ONE, lambda z, u: z, ONE
)


def f(x, u):
    return jnp.tanh(0.5 * x + u)


def solve(x0=X0, method=None, **options):
    return elk.evaluate(f, x0, INPUTS, method=method, **options)


@pytest.fixture(scope="module")
def results():
    """One of each, made once."""
    surrogate = elk.linearize(f, INPUTS, INPUTS, initial_state=X0, noise=1.0)
    sol = solve(method=elk.deer(), history=4)
    fitted = elk.fit(elk.models.local_level(), jnp.sin(jnp.arange(20.0) ** 2))
    return {
        "ModelFit": fitted,
        "Model": fitted.model,
        "NonlinearModel": elk.models.poisson_counts(),
        "Forecast": elk.forecast(fitted, 3),
        "Decomposition": elk.decompose(fitted),
        "Innovations": elk.innovations(fitted),
        "Diagnostics": elk.diagnostics(fitted),
        "Solution": sol,
        "History": sol.history,
        "Plan": sol.plan,
        "Surrogate": surrogate,
        "Posterior": surrogate.filter(),
        "LGSSM": elk.LGSSM(jnp.zeros(1), ONE, ONE, ONE, ONE, ONE),
        "NonlinearSSM": MODEL,
        "Smoothed": elk.smooth(MODEL, jnp.ones((4, 1))),
        "Sample": elk.sample(MODEL, jax.random.key(0), 4),
        "NoiseSweep": elk.sweep_noise(f, X0, INPUTS, [1.0, 9.0]),
        "LyapunovSpectrum": elk.lyapunov_spectrum(f, X0, INPUTS),
        "Diagnosis": elk.diagnose(f, X0, INPUTS),
    }


def test_all_are_short_and_name_themselves(results):
    for name, result in results.items():
        text = repr(result)
        assert text.startswith(name)
        assert len(text) < 900
        assert "Array(" not in text
    said = repr(results["Solution"])
    for part in ("float32[30, 2]", "status=converged", "deer: "):
        assert part in said
    fitted = repr(results["ModelFit"])
    for part in ("status=converged", "level.variance=", "float32[20, 1]"):
        assert part in fitted
    assert "level.variance=2 (fixed)" in repr(
        elk.models.local_level().fix(**{"level.variance": 2.0})
    )
    assert "&#x27;" in results["Solution"]._repr_html_()


def test_all_work_while_they_are_traced_and_rebuilt(results):
    for name, result in results.items():
        said = []
        jax.jit(lambda r: said.append(repr(r)))(result)  # noqa: B023
        shapes = jax.eval_shape(lambda r: r, result)
        bare = jax.tree.map(lambda _: None, result)
        for text in (*said, repr(shapes), repr(bare)):
            assert text.startswith(name)


def test_converged_is_an_array_of_the_batch(results):
    for name in ("Solution", "Smoothed", "Sample", "NoiseSweep"):
        found = results[name].converged
        assert found.dtype == jnp.bool_
        assert found.shape == results[name].status.shape
        assert np.all(found)
    assert jax.jit(lambda x: solve(x, elk.deer()).converged)(X0)
    assert not solve(method=elk.jacobi(), max_iters=1).converged


NAMES = {
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "elk": elk.elk(1e2),
    "quasi_elk": elk.quasi_elk(1e2),
    "picard": elk.picard(),
    "jacobi": elk.jacobi(),
    "iteration": elk.picard(noise=elk.Constant(1e2)),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_plan(name):
    plan = solve(method=NAMES[name]).plan
    assert elk.PlanKind(int(plan.kind)).name == name
    assert plan.describe().startswith(f"{name}: {int(plan.passes)} passes")


def test_the_exact_prefix_at_the_end_explains_a_residual():
    def logistic(x, _):
        return 4 * x * (1 - x)

    sol = elk.evaluate(logistic, jnp.array([0.3]), length=60, method=elk.jacobi())
    assert sol.converged
    assert sol.residual_norm > 0.1
    assert "every state was provably exact" in repr(sol)
    assert "exact" not in solve(method=elk.deer()).plan.describe()


def test_a_batch_says_how_often_each():
    starts = jnp.stack([X0, X0 + 0.5, X0 + 0.5])
    sols = jax.vmap(lambda x: solve(x, elk.jacobi()))(starts)
    assert "3 converged" in repr(sols)
    text = sols.plan.describe()
    assert "of 3: jacobi: " in text
    counts = [int(part.split(" of ")[0]) for part in text.split("; ")]
    assert sum(counts) == 3


def test_advice_depends_on_the_method():
    def failed(kind):
        sol = solve(method=NAMES[kind])
        return sol._replace(status=jnp.asarray(elk.Status.precision_limit))

    for kind, chaotic in (("jacobi", False), ("picard", False), ("deer", True)):
        with pytest.raises(RuntimeError, match="precision_limit") as caught:
            elk.raise_if_failed(failed(kind))
        assert ("chaotic" in str(caught.value)) == chaotic
        assert "float64" in str(caught.value)


def test_raise_if_failed_takes_all_that_have_a_status(results):
    smoothed = results["Smoothed"]
    fit = elk.Fit(jnp.zeros(()), jnp.zeros(3), jnp.zeros(3, int), smoothed)
    for result in (smoothed, results["Sample"], results["NoiseSweep"], fit):
        assert elk.raise_if_failed(result) is result
    bad = smoothed._replace(status=jnp.asarray(1))
    with pytest.raises(RuntimeError, match=r"max_iters_reached.*step"):
        elk.raise_if_failed(bad)
    with pytest.raises(RuntimeError, match="max_iters_reached"):
        elk.raise_if_failed(fit._replace(smoothed=bad))
    several = jax.tree.map(lambda a, b: jnp.stack([a, b]), smoothed, bad)
    with pytest.raises(RuntimeError, match="batch elements 1"):
        elk.raise_if_failed(several)
    with pytest.raises(TypeError, match="a result with a status"):
        elk.raise_if_failed(jnp.zeros(2))


@pytest.mark.parametrize("strategy", ["forgetful", "short_blocks", "sequential"])
def test_a_history_is_recorded_whatever_the_plan(strategy):
    sol = solve(method=elk.auto(strategy=strategy, block_size=3), history=40)
    recorded = np.isfinite(sol.history.residual_norm)
    assert recorded.any()
    assert np.flatnonzero(recorded)[-1] == sol.num_iters - 1
    assert sol.history.residual_norm[sol.num_iters - 1] == sol.residual_norm


def test_residuals_are_drawn_of_a_solution_a_history_or_several():
    sol = solve(method=elk.deer(), history=9)
    drawn = [
        elk.plotting.residuals(given, Figure().subplots()).lines[0].get_ydata()
        for given in (sol, sol.history, {"a": sol}, {"a": sol.history})
    ]
    for other in drawn[1:]:
        np.testing.assert_array_equal(other, drawn[0])
    with pytest.raises(ValueError, match="no history"):
        elk.plotting.residuals(solve(method=elk.deer()), Figure().subplots())
    several = jax.vmap(lambda x: solve(x, elk.deer(), history=3))(jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="batch"):
        elk.plotting.residuals(several, Figure().subplots())
