"""Ctrl-C at any time: exit code 130, one line, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elk_ssm import _start

# What the parent of the tests ignores would stay ignored.
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
SCRIPT = (
    HEARD
    + """
import sys, threading, time
sys.orig_argv = [sys.executable, "-m", "elk_ssm"]
from elk_ssm import _start  # hears from here on
from elk_ssm.cli import interrupts, writing
from pathlib import Path
{body}
"""
)


@pytest.fixture
def interrupted(tmp_path):
    """Run Python until it has printed a line, send a signal, and return the end."""

    def interrupted(argv, number=signal.SIGINT):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, *argv]
        with subprocess.Popen(command, cwd=tmp_path, **pipes) as child:
            line = child.stdout.readline()
            child.send_signal(number)
            out, err = child.communicate(timeout=120)
        return child.returncode, line + out, err

    return interrupted


def test_a_file_half_written_is_gone_and_the_old_one_there(interrupted, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"old")
    body = """
with writing.replacing(Path("a.npz")) as file:
    file.write(b"half")
    file.flush()
    print("half", len(list(Path(".").glob(".*.tmp"))), flush=True)
    while True:  # As in a long call of a library, no exception would be noticed.
        try:
            time.sleep(100)
        except KeyboardInterrupt:
            pass
"""
    code, out, err = interrupted(["-c", SCRIPT.format(body=body)])
    assert (code, out, err) == (130, "half 1\n", "elk-ssm: interrupted\n")
    assert os.listdir(tmp_path) == ["a.npz"]
    assert (tmp_path / "a.npz").read_bytes() == b"old"


def test_termination(interrupted):
    body = 'print("on", flush=True); time.sleep(100)'
    code, _, err = interrupted(["-c", SCRIPT.format(body=body)], signal.SIGTERM)
    assert (code, err) == (143, "elk-ssm: terminated\n")


def test_a_command_that_ends_meanwhile():
    """A signal that came before the end of the command is what it ends by."""
    body = "import os, signal; os.kill(os.getpid(), signal.SIGINT); _start.end(0)"
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (130, "elk-ssm: interrupted\n")


def test_a_benchmark_ends_with_what_it_has_started(interrupted):
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    body = f'interrupts.run_child([sys.executable, "-c", {sleeper!r}], Path("."))'
    code, out, err = interrupted(["-c", SCRIPT.format(body=body)])
    assert (code, err) == (130, "elk-ssm: interrupted\n")
    status = Path(f"/proc/{int(out)}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child still runs")


def test_while_the_package_is_imported(tmp_path):
    """From the package's first module on, long before JAX is there."""
    hook = """
{heard}
import builtins, sys
def watched(name, *rest, old=builtins.__import__):
    if name == "jax":
        builtins.__import__ = old
        print("imports", flush=True)
        import time; time.sleep(100)
    return old(name, *rest)
builtins.__import__ = watched
import runpy
sys.orig_argv = [sys.executable, "-m", "elk_ssm"]
runpy.run_module("elk_ssm", run_name="__main__")
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", hook.replace("{heard}", HEARD)], **pipes
    ) as child:
        assert child.stdout.readline() == "imports\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "elk-ssm: interrupted\n")


@pytest.mark.parametrize(
    ("argv", "ours"),
    [
        (["python", "-m", "elk_ssm", "demo"], True),
        (["python", "-X", "dev", "-m", "elk_ssm.cli"], True),
        (["python", "-I", "/bin/elk-ssm", "demo"], True),
        (["python", "script.py", "-m", "elk_ssm"], False),
        (["python", "-c", "import elk_ssm", "elk-ssm"], False),
        (["python", "-m", "pytest", "elk-ssm"], False),
        (["python"], False),
    ],
)
def test_only_the_command_line_hears(argv, ours):
    assert _start.is_command_line(argv) == ours
