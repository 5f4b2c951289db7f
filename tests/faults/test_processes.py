"""A process of a sharded run is killed at a random moment; the other one ends as well.

Before they have met, while they compile, or while they solve; either of the two.
`HYPOTHESIS_PROFILE=long` tries many more moments.
"""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = str(ROOT / "examples" / "two_processes.py")
HEARTBEAT, PATIENCE = 5, 8
# Far more than either of these, and far less than for ever.
LONGEST = 150
MANY = os.environ.get("HYPOTHESIS_PROFILE") == "long"

rng = np.random.default_rng(int(os.environ.get("SEED", "20")))
# Who is killed, after which words of process 0, how often they are heard, and seconds.
MOMENTS = [(int(rng.integers(2)), None, 0, 0.0)]
for _ in range(8 if MANY else 1):
    MOMENTS += [
        (1, "processes", 1, rng.uniform(0, 2)),
        (0, "solved", int(rng.integers(1, 20)), 0.0),
    ]
if MANY:
    MOMENTS += [
        (victim, "processes", 1, 2 * i / 8) for victim in (0, 1) for i in (0, 9)
    ]
    MOMENTS += [(1 - MOMENTS[0][0], None, 0, 0.0)]


@pytest.fixture
def workers(tmp_path):
    """Two processes that solve for ever, and the files of what they say."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    options = ["--length", "400", "--solves", "1000000", "--coordinator", coordinator]
    options += ["--heartbeat", str(HEARTBEAT), "--patience", str(PATIENCE), "--worker"]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    said = [tmp_path / f"{i}.txt" for i in (0, 1)]
    started = []
    for i, path in enumerate(said):
        with path.open("w") as file:
            command = [sys.executable, SCRIPT, *options, str(i)]
            streams = {"stdout": file, "stderr": subprocess.STDOUT}
            started.append(
                subprocess.Popen(command, env=environment, cwd=ROOT, **streams)
            )
    yield started, said
    for worker in started:
        worker.kill()
        worker.wait()


def wait_for(word, times, path, started):
    end = time.monotonic() + LONGEST
    while word is not None and path.read_text().count(word) < times:
        assert all(worker.poll() is None for worker in started), path.read_text()
        assert time.monotonic() < end, f"{word!r} was not said"
        time.sleep(0.05)


@pytest.mark.parametrize(("victim", "word", "times", "later"), MOMENTS)
def test_the_other_ends_and_says_why(workers, victim, word, times, later):
    started, said = workers
    wait_for(word, times, said[0], started)
    time.sleep(later)
    started[victim].kill()
    other = started[1 - victim]
    code = other.wait(timeout=LONGEST)
    told = said[1 - victim].read_text()
    assert code not in (0, None), told
    reasons = "heartbeat|Gloo|closed|DEADLINE_EXCEEDED|UNAVAILABLE|coordination service"
    assert re.search(reasons, told, re.IGNORECASE), told[-3000:]
