"""Several processes on one machine, over loopback, and what happens when one dies."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = str(ROOT / "examples" / "two_processes.py")
LONGEST = 240


def environment(devices):
    several = f" --xla_force_host_platform_device_count={devices}"
    flags = os.environ["XLA_FLAGS"] + several
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def output_of(script, devices, length):
    """Run a script to its end and return what it printed."""
    run = subprocess.run(
        [sys.executable, script, "--length", str(length)],
        env=environment(devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_documented_command_runs_two_processes():
    told = output_of(SCRIPT, devices=2, length=400)
    assert "2 processes, 4 devices" in told
    assert "200 of 400 states here" in told
    assert "loss and gradient are those of a plain scan" in told


@pytest.fixture
def workers():
    """Start two processes that solve again and again; end what a test leaves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    options = ["--length", "400", "--solves", "1000000", "--heartbeat", "5"]
    options += ["--coordinator", coordinator, "--worker"]
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *options, str(i)],
            env=environment(1),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    yield started
    for worker in started:
        worker.kill()
        worker.wait()
        worker.stdout.close()


def test_when_one_process_is_killed_the_other_ends_with_an_error(workers):
    first, second = workers
    seen = []
    for line in first.stdout:
        seen.append(line)
        if "solved" in line:
            break
    assert seen, "the first worker said nothing"
    assert "solved" in seen[-1], "".join(seen)
    second.kill()
    # Far more than the heartbeat's five seconds, and far less than forever.
    told, _ = first.communicate(timeout=LONGEST)
    assert first.returncode not in (0, None)
    assert "heartbeat" in told or "Gloo" in told or "closed" in told, told[-3000:]


def test_the_example_of_one_process_runs():
    told = output_of("examples/beyond_one_device.py", devices=4, length=160)
    assert "states (160, 8), on each device [(40, 8)]" in told
    assert "batch of two: sharded as P('batch', 'time')" in told
