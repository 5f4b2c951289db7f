"""The public face under the strict settings of JAX, one task at a time.

Nothing that the library does to a user's numbers relies on what these settings forbid:
dtypes and ranks that are promoted silently, tracers that outlive their trace, NaN that
a later mask would hide.
"""

from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

T, D = 12, 2
KEY = np.array([0, 7], np.uint32)
X0 = np.zeros(D, np.float32)
INPUTS = np.linspace(-1, 1, T * D, dtype=np.float32).reshape(T, D)
WEIGHTS = np.array([[0.4, 0.3], [-0.2, 0.5]], np.float32)
EMISSIONS = np.where(np.arange(T) == 3, np.nan, INPUTS[:, 0])[:, None]
EMISSIONS = EMISSIONS.astype(np.float32)


def f(x, u):
    return jnp.tanh(jnp.asarray(WEIGHTS) @ x + u)


def step(x, u):
    after = f(x, u)
    return after, jnp.sum(after)


def solved(method=None, **options):
    return elk.evaluate(
        f, jnp.asarray(X0), jnp.asarray(INPUTS), method=method, **options
    )


def slope(method, **options):
    def loss(weights, x0, inputs):
        def g(x, u):
            return jnp.tanh(weights @ x + u)

        return jnp.sum(elk.evaluate(g, x0, inputs, method=method, **options).states)

    arrays = map(jnp.asarray, (WEIGHTS, X0, INPUTS))
    return jax.grad(loss, argnums=(0, 1, 2))(*arrays)


def lgssm():
    one = elk.ScaledIdentity(jnp.ones((), jnp.float32))
    return elk.LGSSM(
        jnp.zeros(D, jnp.float32), one, jnp.asarray(WEIGHTS), one,
        jnp.ones((1, D), jnp.float32), one,
    )  # fmt: skip


def nonlinear(scale=1.0):
    one = elk.ScaledIdentity(jnp.ones((), jnp.float32))
    q = elk.ScaledIdentity(jnp.asarray(scale, jnp.float32))
    return elk.NonlinearSSM(
        jnp.zeros(D, jnp.float32), one, lambda z, u: jnp.sin(z), q,
        lambda z, u: z[:1], one,
    )  # fmt: skip


def counts():
    return elk.NonlinearSSM(
        jnp.zeros(D, jnp.float32),
        elk.ScaledIdentity(1.0),
        lambda z, u: 0.9 * z,
        elk.ScaledIdentity(0.1),
        lambda z, u: z[:1],
        None,
        lambda h, y, u: jnp.sum(y * h - jnp.exp(h)),
        lambda key, h, u: jax.random.normal(key, h.shape, h.dtype) + h,
    )


def chain_kernel(key, x):
    ours, other = jax.random.split(key)
    y = x + jax.random.normal(ours, x.shape, x.dtype)
    ratio = jnp.exp(0.5 * jnp.sum(x**2) - 0.5 * jnp.sum(y**2))
    return jnp.where(jax.random.uniform(other, (), x.dtype) < ratio, y, x)


def forced_run():
    g = elk.forced(f, 0.3)
    x0, data = jnp.asarray(X0), jnp.asarray(INPUTS)
    return elk.evaluate(g, x0, g.inputs(x0, data, data), method=elk.deer())


def posterior(method, **options):
    model = elk.linearize(
        f, jnp.asarray(INPUTS), jnp.asarray(INPUTS), initial_state=jnp.asarray(X0),
        method=method, **options,
    )  # fmt: skip
    return model.filter(), model.smooth(), model.residual, model.to_lgssm()


def fitted():
    return elk.fit(nonlinear, jnp.ones((), jnp.float32), EMISSIONS, num_steps=2)


def newton(**options):
    return elk.auto(strategy="newton", block_size=4, **options)


METHODS = {
    "default": lambda: None,
    "forgetful": lambda: elk.auto(strategy="forgetful", block_size=2),
    "short_blocks": lambda: elk.auto(strategy="short_blocks", block_size=3),
    "newton": newton,
    "newton, gate": lambda: newton(gate=elk.Gate(rollouts=1), noise=10.0),
    "by steps": lambda: elk.auto(strategy="sequential"),
    "deer": elk.deer,
    "deer in blocks": lambda: elk.deer(block_size=3, gate=elk.Gate()),
    "quasi_deer": elk.quasi_deer,
    "elk": lambda: elk.elk(1e2),
    "elk, smoother": lambda: elk.elk(1e2, estimate="smoother"),
    "quasi_elk": lambda: elk.quasi_elk(1e2),
    "quasi_elk, smoother": lambda: elk.quasi_elk(1e2, estimate="smoother"),
    "annealed": lambda: elk.quasi_elk(elk.Annealed()),
    "per step": lambda: elk.quasi_elk(elk.PerStep(jnp.ones(T, jnp.float32))),
    "residual": lambda: elk.elk(elk.ResidualProportional()),
    "gain ratio": lambda: elk.elk(elk.GainRatio()),
    "picard": elk.picard,
    "anderson": lambda: elk.picard(anderson=2),
    "jacobi": elk.jacobi,
    "blocks": lambda: elk.quasi_deer(linearization=elk.BlockDiagonalJacobian(1)),
    "stochastic": lambda: elk.quasi_deer(
        linearization=elk.StochasticDiagonal(jnp.asarray(KEY))
    ),
    "clipped": lambda: elk.deer(linearization=elk.Clipped(elk.DenseJacobian())),
    "scaled": lambda: elk.deer(linearization=elk.Scaled(elk.DiagonalJacobian(), 0.5)),
}
TASKS = {f"evaluate, {name}": lambda m=m: solved(m()) for name, m in METHODS.items()}
TASKS |= {
    "associative": lambda: solved(elk.elk(1e2), backend="associative"),
    "associative, newton": lambda: solved(newton(), backend="associative"),
    "history": lambda: solved(elk.quasi_elk(1e2), history=20),
    "boundaries": lambda: solved(elk.deer(block_size=3), keep="boundaries"),
    "last": lambda: solved(keep="last"),
    "guess": lambda: solved(elk.deer(), guess=jnp.asarray(INPUTS), tol=1e-4, atol=1e-6),
    "batch": lambda: jax.vmap(lambda x: elk.evaluate(f, x, jnp.asarray(INPUTS)))(
        jnp.asarray(INPUTS[:3])
    ),
    "sequential": lambda: elk.sequential(f, jnp.asarray(X0), jnp.asarray(INPUTS)),
    "iterates": lambda: elk.iterates(
        f, jnp.asarray(X0), jnp.asarray(INPUTS), num_iters=2
    ),
    "gradient": lambda: slope(None),
    "gradient, deer": lambda: slope(elk.deer(), adjoint="parallel"),
    "gradient, blocks": lambda: slope(elk.jacobi(), adjoint="blocks"),
    "gradient, short blocks": lambda: slope(elk.jacobi(), adjoint="short_blocks"),
    "forward mode": lambda: jax.jvp(
        lambda x: elk.evaluate(f, x, jnp.asarray(INPUTS)).states,
        (jnp.asarray(X0),),
        (jnp.asarray(X0) + 1,),
    ),
    "scan": lambda: elk.scan(step, jnp.asarray(X0), jnp.asarray(INPUTS)),
    "scan, reversed": lambda: elk.scan(
        step, jnp.asarray(X0), jnp.asarray(INPUTS), reverse=True, method=elk.deer()
    ),
    "sequential_scan": lambda: jax.grad(
        lambda x: elk.sequential_scan(step, x, jnp.asarray(INPUTS))[1].sum()
    )(jnp.asarray(X0)),
    "forced": forced_run,
    "chains": lambda: elk.chains(
        chain_kernel, jnp.asarray(INPUTS[:2]), jnp.asarray(KEY), 6
    ),
    "chains, jacobi": lambda: elk.chains(
        chain_kernel, jnp.asarray(INPUTS[:2]), jnp.asarray(KEY), 6, method=elk.jacobi()
    ),
    "lyapunov": lambda: elk.lyapunov_spectrum(
        f, jnp.asarray(X0), length=None, inputs=jnp.asarray(INPUTS)
    ),
    "diagnose": lambda: elk.diagnose(f, jnp.asarray(X0), jnp.asarray(INPUTS)),
    "sweep_noise": lambda: (
        elk.sweep_noise(f, jnp.asarray(X0), jnp.asarray(INPUTS), [1.0, jnp.inf]).best
    ),
    "surrogate, dense": lambda: posterior(elk.elk(1e2)),
    "surrogate, diagonal": lambda: posterior(elk.quasi_elk(1e2)),
    "surrogate, per step": lambda: posterior(
        elk.quasi_deer(), process_variance="per_step", noise=1.0
    ),
    "lgssm_filter": lambda: elk.lgssm_filter(lgssm(), EMISSIONS),
    "lgssm_filter, associative": lambda: elk.lgssm_filter(
        lgssm(), EMISSIONS, backend="associative"
    ),
    "lgssm_smoother": lambda: elk.lgssm_smoother(lgssm(), EMISSIONS),
    "lgssm, square root": lambda: elk.lgssm_smoother(
        lgssm(), EMISSIONS, form="square_root"
    ),
    "lgssm, diffuse": lambda: elk.lgssm_smoother(
        lgssm()._replace(initial_covariance=elk.Diffuse()), EMISSIONS
    ),
    "lgssm, stationary": lambda: elk.lgssm_filter(
        lgssm()._replace(initial_covariance=elk.Stationary()), EMISSIONS
    ),
    "lgssm, diagonal": lambda: elk.lgssm_smoother(
        lgssm()._replace(
            dynamics_weights=elk.ScaledIdentity(0.5),
            emission_weights=elk.ScaledIdentity(1.0),
        ),
        INPUTS,
    ),
    "lgssm_sample": lambda: elk.lgssm_sample(
        lgssm(), jnp.asarray(KEY), EMISSIONS, num_samples=2
    ),
    "lgssm_predict": lambda: elk.lgssm_predict(lgssm(), EMISSIONS, 3),
    "lgssm_log_likelihood": lambda: jax.grad(
        lambda y: elk.lgssm_log_likelihood(lgssm(), y)
    )(jnp.asarray(INPUTS[:, :1])),
    "smooth": lambda: elk.smooth(nonlinear(), EMISSIONS),
    "smooth, extended": lambda: elk.smooth(nonlinear(), EMISSIONS, guess="extended"),
    "smooth, unscented": lambda: elk.smooth(
        nonlinear(), EMISSIONS, linearization="unscented"
    ),
    "smooth, density": lambda: elk.smooth(counts(), np.abs(EMISSIONS)),
    "extended_smoother": lambda: elk.extended_smoother(nonlinear(), EMISSIONS),
    "log_prob": lambda: elk.log_prob(nonlinear(), INPUTS, EMISSIONS),
    "sample": lambda: elk.sample(nonlinear(), jnp.asarray(KEY), T),
    "sample, density": lambda: elk.sample(counts(), jnp.asarray(KEY), T),
    "fit": fitted,
}


def arrays_of(task):
    """Return a function of nothing that gives the arrays of a task's result."""
    return lambda: [x for x in jax.tree.leaves(task()) if isinstance(x, jax.Array)]


def under(**settings):
    """Enter settings of JAX by name."""
    stack = ExitStack()
    for name, value in settings.items():
        stack.enter_context(getattr(jax, name)(value))
    return stack


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_no_promotion_is_implicit(task):
    """Both settings raise while a program is traced, so nothing has to be compiled."""
    with under(numpy_dtype_promotion="strict", numpy_rank_promotion="raise"):
        assert jax.eval_shape(arrays_of(task))


def test_what_is_promoted_would_be_seen():
    wrong = {
        "dtype": lambda x, u: x * jnp.asarray(1, jnp.int32) + u,
        "rank": lambda x, u: x + jnp.ones((1, 1))[0, 0] + jnp.ones((1, D)),
    }
    for step in wrong.values():
        with (
            under(numpy_dtype_promotion="strict", numpy_rank_promotion="raise"),
            pytest.raises((TypeError, ValueError)),
        ):
            elk.evaluate(step, jnp.asarray(X0), jnp.asarray(INPUTS))


LEAKS = (
    "evaluate, default", "evaluate, forgetful", "evaluate, newton, gate",
    "gradient, deer", "sequential_scan", "lgssm_smoother",
)  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
def test_no_tracer_leaks(name):
    with under(check_tracer_leaks=True):
        assert jax.eval_shape(arrays_of(TASKS[name]))


NANS = (
    "evaluate, forgetful", "evaluate, newton, gate", "history", "gradient", "lyapunov",
    "diagnose", "surrogate, diagonal", "lgssm, diffuse", "lgssm_sample",
    "lgssm_predict", "smooth", "extended_smoother", "sample",
)  # fmt: skip


@pytest.mark.parametrize("name", NANS)
def test_no_nan_arises_that_is_not_the_answer(name):
    """With gaps in the data, short series, and more history than passes."""
    with under(debug_nans=True):
        assert jax.block_until_ready(arrays_of(TASKS[name])())


def test_nan_that_f_returns_is_a_status_and_no_error():
    with under(debug_nans=True):
        sol = elk.evaluate(lambda x, _: jnp.log(x - 1), jnp.asarray(X0), length=T)
    assert int(sol.status) == elk.Status.nonfinite
    assert int(sol.failed_step) >= 0
    assert np.isfinite(sol.states).all()


def test_checks_inside_of_jax():
    with under(enable_checks=True):
        sol = solved(elk.deer())
    assert int(sol.status) == elk.Status.converged


def test_without_compilation():
    """Step by step in Python, so for the shortest problems only."""
    with under(disable_jit=True):
        x0, inputs = jnp.asarray(X0), jnp.asarray(INPUTS[:3])
        sol = elk.evaluate(f, x0, inputs, method=elk.deer())
    assert int(sol.status) == elk.Status.converged
