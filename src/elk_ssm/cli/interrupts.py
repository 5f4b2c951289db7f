"""What the command line undoes when a signal ends it; `_start.py` hears the signal.

Python delivers an interrupt between two of its own instructions, of which a long
compilation or computation has none, and as an exception, which callbacks of C libraries
swallow. So a thread ends the process, after what is registered here.
"""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from elk_ssm._start import undone_if_interrupted, unless_ending


def removed_if_interrupted(path: Path) -> contextlib.AbstractContextManager[None]:
    """Remove a file if the process is interrupted in here."""
    return undone_if_interrupted(lambda: path.unlink(missing_ok=True))


def run_child(command: list[str], cwd: Path) -> int:
    """Run a program to its end, or to ours, and return its exit code.

    In a process group of its own, so that Ctrl-C reaches it through us alone, and what
    it has started with it.
    """
    group = 0 if os.name == "posix" else None
    child = subprocess.Popen(command, cwd=cwd, process_group=group)
    with undone_if_interrupted(lambda: os.killpg(child.pid, signal.SIGTERM)):
        code = child.wait()
    # If it was ended from here, so is this process.
    with unless_ending():
        return code if code >= 0 else 128 - code
