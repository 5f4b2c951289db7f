"""`cpu_or_later` is `platform_dependent` with a branch traced where it is lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm._jax import cpu_or_later


def make(traces):
    def cpu(static, x, pair):
        traces.append("cpu")
        return {"sum": x + static * pair[0]}, pair[1]

    def default(static, x, pair):
        traces.append("default")
        return {"sum": jnp.sinh(x) + static * pair[0]}, pair[1]

    return lambda x, pair: cpu_or_later(cpu, default, 2.0, x, pair)


X, PAIR = jnp.arange(3.0), (jnp.ones(3), jnp.arange(3))


def test_only_what_is_lowered_is_traced():
    traces = []
    found = jax.jit(make(traces))(X, PAIR)
    assert traces == ["cpu"]
    np.testing.assert_array_equal(found[0]["sum"], X + 2)
    np.testing.assert_array_equal(found[1], PAIR[1])


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_program_for_another_machine_holds_the_other_branch(platform, batched):
    function = make([])
    if batched:
        function = jax.vmap(jax.vmap(function, (0, None)), (None, 0))
        args = jnp.ones((2, 3)), (jnp.ones((5, 3)), jnp.ones((5, 3), jnp.int32))
    else:
        args = X, PAIR
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*args)
    assert ("sinh" in exported.mlir_module()) == (platform != "cpu")


def test_a_program_for_several_machines_holds_both():
    exported = jax.export.export(jax.jit(make([])), platforms=["cpu", "cuda"])(X, PAIR)
    assert "sinh" in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(X, PAIR)[0]["sum"], X + 2)


def test_batches_are_those_of_a_loop():
    function = make([])
    xs = jnp.arange(6.0).reshape(2, 3)
    found = jax.jit(jax.vmap(function, (0, None)))(xs, PAIR)
    for i, x in enumerate(xs):
        np.testing.assert_array_equal(found[0]["sum"][i], function(x, PAIR)[0]["sum"])
    assert found[1].shape == (2, 3)


def test_where_it_is_differentiated_both_are_there():
    function = make([])

    def total(x):
        return jnp.sum(function(x**2, PAIR)[0]["sum"])

    np.testing.assert_allclose(jax.grad(total)(X), 2 * X)
    np.testing.assert_allclose(jax.hessian(total)(X), 2 * np.eye(3))


def test_it_runs_without_jit():
    with jax.disable_jit():
        found = make([])(X, PAIR)
    np.testing.assert_array_equal(found[0]["sum"], X + 2)


def test_what_prints_still_prints(capfd):
    def cpu(_, x):
        jax.debug.print("seen {}", x)
        return x

    jax.block_until_ready(
        jax.jit(lambda x: cpu_or_later(cpu, cpu, None, x))(jnp.asarray(7))
    )
    jax.effects_barrier()
    assert "seen 7" in capfd.readouterr().out


def scopes_of(length, platform="cpu"):
    u = jnp.ones((length, 2))
    run = jax.jit(lambda u: elk.evaluate(lambda x, u: 0.5 * x + u, jnp.zeros(2), u))
    lowered = run.trace(u).lower(lowering_platforms=(platform,))
    return lowered.as_text(debug_info=True)


def test_no_search_for_a_failure_is_compiled_where_every_step_was_followed():
    assert "failure/" not in scopes_of(100)
    assert "failure/" not in scopes_of(4096)
    assert "failure/" in scopes_of(100, "cuda")


@pytest.mark.parametrize("length", [100, 4096])
def test_a_cpu_traces_nothing_of_what_an_accelerator_runs(length, monkeypatch):
    from elk_ssm.solve import strategies

    def fail(*_):
        raise AssertionError("an accelerator's branch was traced")

    monkeypatch.setattr(strategies, "settle_short_blocks", fail)
    sol = elk.evaluate(
        lambda x, u: jnp.tanh(0.25 * x + u), jnp.zeros(3), jnp.ones((length, 3))
    )
    assert bool(sol.status == elk.Status.converged)
