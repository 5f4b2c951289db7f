"""Shared fixtures: small seeded cells, the `lax.scan` oracle, and counters."""

import contextlib
import gc
import math
import os
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

# Most of the time of these tests is compilation, and none of them reads a clock. The
# older emitters of fused kernels compile in half the time of the default ones; from
# jaxlib 0.11 on they may be gone, and XLA ends a process with a flag that it has not.
FLAGS = ["--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from elk_ssm import _platforms

CELLS = ("gru", "lstm", "rnn", "linear")
D, U = 3, 2


class Problem(NamedTuple):
    """A recurrence with its start and inputs."""

    step: Callable
    initial: Any
    inputs: Any


def _gru(weights, h, u):
    """Weights of shape (3, n, n + U): reset, update, candidate."""
    reset, update = jax.nn.sigmoid(weights[:2] @ jnp.concatenate([h, u]))
    proposal = jnp.tanh(weights[2] @ jnp.concatenate([reset * h, u]))
    return (1 - update) * proposal + update * h


def _lstm(weights, state, u):
    """Weights of shape (4, n, n + U): input, forget, output, candidate."""
    c, h = state
    mixed = weights @ jnp.concatenate([h, u])
    write, keep, show = jax.nn.sigmoid(mixed[:3])
    c = keep * c + write * jnp.tanh(mixed[3])
    return c, show * jnp.tanh(c)


def _rnn(weights, h, u):
    return jnp.tanh(weights[0] @ jnp.concatenate([h, u]))


def _linear(weights, x, u):
    return weights[0] @ jnp.concatenate([x, u])


_STEPS = {
    "gru": (_gru, 3),
    "lstm": (_lstm, 4),
    "rnn": (_rnn, 1),
    "linear": (_linear, 1),
}


def _draw(name: str, size: int, seed: int) -> jax.Array:
    """Draw weights; the recurrent part has spectral radius 0.9 or 0.8 if linear."""
    rng = np.random.default_rng([seed, *name.encode()])
    gates = _STEPS[name][1]
    hidden = rng.normal(size=(gates, size, size))
    radius = np.abs(np.linalg.eigvals(hidden)).max(-1)[:, None, None]
    hidden *= (0.8 if name == "linear" else 0.9) / radius
    driven = rng.normal(size=(gates, size, U))
    return jnp.asarray(np.concatenate([hidden, driven], -1), jnp.zeros(()).dtype)


def _inputs(length: int, seed: int) -> jax.Array:
    rng = np.random.default_rng(seed + 1)
    return jnp.asarray(rng.normal(size=(length, U)), jnp.zeros(()).dtype)


@pytest.fixture(scope="session")
def problem():
    """Make `problem(name, length)`: a seeded cell with inputs, in the current dtype."""

    def make(name: str, length: int, *, size: int = D, seed: int = 0) -> Problem:
        step, weights = _STEPS[name][0], _draw(name, size, seed)
        zeros = jnp.zeros(size)
        initial = (zeros, zeros) if name == "lstm" else zeros
        return Problem(
            lambda state, u: step(weights, state, u), initial, _inputs(length, seed)
        )

    return make


@pytest.fixture(scope="session")
def switched():
    """Make `switched(which, length)`: any cell, chosen by a number it closes over.

    The program is the same for every `which` (an index of `CELLS`, traced or not), so
    one compilation serves the four cells. The state is a pair, as the LSTM's; the
    other cells split theirs.
    """

    def make(which: Any, length: int) -> Problem:
        half = 2
        weights = [
            _draw(cell, half if cell == "lstm" else 2 * half, 0) for cell in CELLS
        ]
        which = jnp.asarray(which)

        def branch(cell: str, weights: jax.Array) -> Callable:
            step = _STEPS[cell][0]
            if cell == "lstm":
                return lambda state, u: step(weights, state, u)
            return lambda state, u: tuple(
                jnp.split(step(weights, jnp.concatenate(state), u), 2)
            )

        branches = [branch(cell, w) for cell, w in zip(CELLS, weights)]

        def step(state: Any, u: jax.Array) -> Any:
            return jax.lax.switch(which, branches, state, u)

        zeros = jnp.zeros(half)
        return Problem(step, (zeros, zeros), _inputs(length, 0))

    return make


@pytest.fixture(scope="session")
def reference():
    """Trajectory by `jax.lax.scan`, the oracle of every evaluation."""

    def run(step: Callable, initial: Any, inputs: Any, length: int | None = None):
        def body(state: Any, entry: Any):
            state = step(state, entry)
            return state, state

        return jax.lax.scan(body, initial, inputs, length=length)[1]

    return run


@pytest.fixture
def platforms(monkeypatch):
    """Trace programs for other platforms: `platforms("all")`, as with the variable."""

    def forget():
        _platforms.only_platform.cache_clear()
        jax.clear_caches()

    def ask(value: str) -> str | None:
        monkeypatch.setenv(_platforms.VARIABLE, value)
        forget()
        return _platforms.only_platform()

    yield ask
    monkeypatch.undo()
    forget()


@pytest.fixture
def every_platform(platforms):
    """Trace programs for every platform, as where an accelerator is installed."""
    platforms("all")


@pytest.fixture
def x64():
    """Run a test in double precision."""
    with jax.enable_x64(True):
        yield


def pytest_collection_finish():
    """Have the collector look less often, and not at what stays: a tenth of all time.

    A trace makes some hundred thousand objects, few of them in cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


# A process may map 65,530 pieces of memory on Linux by default, and every program that
# XLA compiles takes about twenty: past some 3,000 programs the next one crashes it.
_MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Let compiled programs go between modules before there are too many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


_COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: _COMPILED.append(name)
)


@pytest.fixture(scope="session")
def compilations():
    """Count the programs that XLA compiles: `with compilations() as count: ...`."""

    @contextlib.contextmanager
    def counting():
        before = len(_COMPILED)
        found: list[int] = []
        yield found
        names = _COMPILED[before:]
        found.append(sum(name.endswith("backend_compile_duration") for name in names))

    return counting


@pytest.fixture(scope="session")
def largest_array():
    """Return the size of the largest array in the program of `function(*args)`.

    In the program that this platform runs, without the branches for others.
    """

    def run(function: Callable, *args: Any) -> int:
        text = jax.jit(function).lower(*args).as_text()
        shapes = set(re.findall(r"tensor<((?:\d+x)*)\w+>", text))
        return max(math.prod(map(int, shape.split("x")[:-1])) for shape in shapes)

    return run


def assert_close(actual: Any, expected: Any, *, atol: float, rtol: float = 0.0) -> None:
    """Compare two pytrees, their structures, shapes and dtypes included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert jnp.shape(a) == jnp.shape(b)
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_allclose(a, b, atol=atol, rtol=rtol)


@pytest.fixture(scope="session")
def close():
    """The comparison of pytrees as a fixture."""
    return assert_close
