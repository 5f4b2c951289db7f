"""Memory limited from outside: a line that says what did not fit, and what would."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from elk_ssm import _limits, _memory

resource = pytest.importorskip("resource")
if sys.platform != "linux":
    pytest.skip("limits as of Linux", allow_module_level=True)

T, D = 25_000, 128
MATRICES = 4 * T * D * D

SCRIPT = """
import os, resource, sys
import jax, jax.numpy as jnp
import elk_ssm as elk
from elk_ssm import _limits, cli

T, D = {T}, {D}
kind = resource.RLIMIT_{kind}
free = resource.getrlimit(kind)

def f(x, u):
    return jnp.tanh(0.5 * x + u)

def run(method):
    return elk.evaluate(f, jnp.zeros(D), inputs, method=method)

inputs = jnp.ones((T, D))
elk.raise_if_failed(run(elk.quasi_deer()))

def leave(room):
    resource.setrlimit(kind, free)
    resource.setrlimit(kind, (2**50, free[1]))
    held = _limits.limits()[0].held
    resource.setrlimit(kind, (held + room, free[1]))

def library(method):
    try:
        return elk.raise_if_failed(run(method)).status
    except Exception as error:
        said = [*str(error).split(), *getattr(error, "__notes__", [])]
        return " ".join([type(error).__name__, *said])

evaluate = ["evaluate", "--input=long.npy", "--cell=gru", "--state-size={D}"]
evaluate += ["--output=o.npz"]
leave({little})
print(library(elk.deer()))
print(library(elk.quasi_deer()))
print(cli.main([*evaluate, "--method=deer"]), flush=True)
leave({more})
print(library(elk.deer()))
print(cli.main([*evaluate, "--method=deer"]), flush=True)
"""


def start(argv, tmp_path, kind=None, most=None):
    def limited():
        if kind is not None:
            resource.setrlimit(kind, (most, most))

    options = {"capture_output": True, "text": True, "timeout": 200, "cwd": tmp_path}
    return subprocess.run([sys.executable, *argv], preexec_fn=limited, **options)


@pytest.mark.parametrize("kind", ["AS", "DATA"])
def test_what_does_not_fit_is_said_in_a_line(kind, tmp_path):
    """Beforehand where the Jacobians alone are too much, else by who runs out.

    What a process holds changes while it runs (threads come, arenas go), so how much
    is left is only known to be between what does not fit and what does.
    """
    np.save(tmp_path / "long.npy", np.zeros((T, 1)))
    little, more = int(0.7 * MATRICES), int(1.7 * MATRICES)
    script = SCRIPT.format(T=T, D=D, kind=kind, little=little, more=more)
    done = start(["-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[0].startswith("MemoryLimitError Dense Jacobians at 25,000 nodes")
    said = re.search(r"take 1\.6 GB, and a device holds (\d\.\d) GB", told[0])
    assert said is not None
    assert float(said[1]) < 1.6
    assert told[1] == "0"
    assert told[2:4] == ["25,000 samples x 1 column (0), no gaps", "2"]
    assert told[4].startswith("JaxRuntimeError RESOURCE_EXHAUSTED")
    # The Jacobians, and as much again for the scan over them.
    assert re.search(r"asked for 3\.\d GB at once", told[4])
    assert "quasi_deer" in told[4]
    assert "block_size" in told[4]
    assert told[6] == "2"
    first, second = done.stderr.splitlines()
    for line in (first, second):
        assert line.startswith("elk-ssm: error: out of memory: ")
        assert "--method auto or quasi_deer" in line
    assert "Dense Jacobians" in first
    asked = r"computation asked for (3\.\d) GB at once, and at most (\d\.\d) GB may"
    said = re.search(asked, second)
    assert said is not None
    assert float(said[2]) < float(said[1])
    assert os.listdir(tmp_path) == ["long.npy"]


@pytest.mark.parametrize("kind", ["AS", "DATA"])
def test_less_than_jax_takes_is_refused_before_it_crashes(kind, tmp_path):
    """There the compiler aborts, or waits for memory for ever and hears no signal."""
    limit = getattr(resource, f"RLIMIT_{kind}")
    done = start(["-m", "elk_ssm", "--version"], tmp_path, limit, 600_000_000)
    name = {"AS": "ulimit -v", "DATA": "ulimit -d"}[kind]
    said = f"elk-ssm: error: out of memory: {name} gives this process 0.6 GB, and JAX"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_a_container_says_what_it_gives(tmp_path, monkeypatch):
    """What files hold in memory is dropped for others, so it is not held."""
    every = _limits._CONTAINER
    for (place, statistics, name), most, held in zip(
        every, (3_000_000_000, 2_000_000_000), (700_000_000, 500_000_000), strict=True
    ):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(f"{most}\n")
        said = f"file 9\n{name} {held}\n{name}_thp 4\nempty\n\n"
        (tmp_path / statistics).write_text(said)
        here = *(str(tmp_path / x) for x in (place, statistics)), name
        monkeypatch.setattr(_limits, "_CONTAINER", (here,))
        assert _limits.Limit("container", most, held) in _limits.limits()
        assert _limits.process_bytes() <= most
        assert _memory.device_bytes() <= most
        assert _memory.left_bytes() <= most - held
    (tmp_path / "memory.max").write_text("max\n")
    here = str(tmp_path / "memory.max"), "there is none", "anon"
    monkeypatch.setattr(_limits, "_CONTAINER", (here,))
    assert all(limit.name != "container" for limit in _limits.limits())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory: nothing more could be allocated"),
        (MemoryError("std::bad_alloc"), "out of memory: std::bad_alloc"),
        (_memory.MemoryLimitError("It takes 9 GB."), "out of memory: It takes 9 GB"),
        (ValueError("RESOURCE_EXHAUSTED"), None),
    ],
)
def test_which_errors_are_of_memory(error, said):
    assert _memory.out_of_memory(error) == said
