"""Programs are traced for the platforms that could run them, and for no other."""

import sys
from importlib import metadata
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm import _platforms

D, T = 2, 12
EMISSIONS = jax.random.normal(jax.random.key(0), (T, D))


def log_likelihood(weights, emissions, backend="auto"):
    eye = jnp.eye(D)
    model = elk.LGSSM(jnp.zeros(D), eye, weights, eye, eye, eye)
    return elk.lgssm_log_likelihood(model, emissions, backend=backend)


def last_state(weights, emissions):
    def step(x, u):
        return jnp.tanh(weights @ x + u)

    method = elk.auto(strategy="short_blocks", block_size=4)
    solution = elk.evaluate(step, jnp.zeros(D), emissions, method=method)
    return jnp.sum(solution.states[-1] ** 2)


WEIGHTS = jnp.array([[0.5, 0.2], [-0.1, 0.7]])
FUNCTIONS = [log_likelihood, last_state]


def branches(function):
    """How many choices by platform a program holds; those of JAX are among them."""
    return str(jax.make_jaxpr(function)(WEIGHTS, EMISSIONS)).count("platform_index")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_both_programs_have_the_same_value_and_derivatives(function, platforms):
    found = []
    for platform in ("all", "cpu"):
        platforms(platform)
        first = jax.value_and_grad(function)(WEIGHTS, EMISSIONS)
        second = jax.jacfwd(jax.grad(function))(WEIGHTS, EMISSIONS)
        found.append((*first, second))
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_only_what_can_run_is_traced(function, platforms):
    platforms("all")
    every = branches(jax.grad(function))
    for platform in ("cpu", "cuda"):
        platforms(platform)
        assert branches(jax.grad(function)) < every


def test_one_platform_has_its_own_program(platforms):
    def program(backend):
        run = jax.jit(log_likelihood, static_argnums=2)
        return run.lower(WEIGHTS, EMISSIONS, backend).as_text()

    for platform, backend in (("cpu", "sequential"), ("cuda", "associative")):
        platforms(platform)
        assert program("auto") == program(backend)


@pytest.mark.parametrize(
    ("value", "only"), [("all", None), ("cpu", "cpu"), ("tpu", "tpu")]
)
def test_what_is_asked_for_is_done(value, only, platforms):
    assert platforms(value) == only


def test_a_platform_that_is_none_is_refused(platforms):
    with pytest.raises(ValueError, match="ELK_SSM_PLATFORMS must be all or one of cpu"):
        platforms("gpu")


def test_what_is_installed_decides(platforms, monkeypatch, tmp_path):
    """By what JAX looks for: entry points, a namespace of plugins, a TPU's library."""
    found = dict.fromkeys(("libtpu", "jax_plugins"))
    points = []
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(
        _platforms.importlib.util, "find_spec", lambda name: found[name]
    )
    assert platforms("") == "cpu"
    points.append(metadata.EntryPoint("cuda", "jax_cuda", "jax_plugins"))
    assert platforms("") is None
    points.clear()
    found["libtpu"] = SimpleNamespace()
    assert platforms("") is None
    found["libtpu"] = None
    found["jax_plugins"] = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    assert platforms("") == "cpu"
    (tmp_path / "xla_cuda12").mkdir()
    (tmp_path / "xla_cuda12" / "__init__.py").touch()
    assert platforms("") is None


def test_the_plugins_of_this_environment_are_seen(platforms):
    """On the machines of the tests there is a CPU alone, unless JAX says otherwise."""
    if {device.platform for device in jax.devices()} == {"cpu"}:
        plugins = [name for name in sys.modules if name.startswith("jax_plugins.")]
        assert platforms("") == (None if plugins else "cpu")
