"""What the process of the command line does before anything slow is imported.

`elk-ssm` and `python -m elk_ssm` import the package first, which takes a second or
more. From here on an interrupt ends them with one line and the exit code 130, a
termination or a hang-up with 128 + its number. A process of a user's own is left alone.

A thread ends the process. What it undoes must not be done again behind its back, nor
another line be said: such things are done `unless_ending`. Where memory is limited so
much that JAX would crash, or hang, in its first compilation, the process ends at once.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}

# What JAX and its compiler take: libraries, stacks of threads, a small program.
_LEAST = {"ulimit -v": 2_000_000_000, "ulimit -d": 900_000_000}
_LEAST_PER_CORE = {"ulimit -v": 150_000_000, "ulimit -d": 50_000_000}

_undo: list[Callable[[], object]] = []
_heard: list[int] = []
# What has come of these.
_signalled: list[int] = []
# Held for good by the thread that ends the process.
_alive = threading.RLock()


@contextlib.contextmanager
def unless_ending() -> Iterator[None]:
    """Do what is in here while no signal ends the process; else wait for the end."""
    with _alive:
        yield


@contextlib.contextmanager
def undone_if_interrupted(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo`, from another thread, if a signal ends the process in here."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


def cursor_if_interrupted() -> contextlib.AbstractContextManager[None]:
    """Show the cursor of a terminal again if a signal ends the process in here."""
    return undone_if_interrupted(_show_cursor)


def is_command_line(argv: list[str]) -> bool:
    """Whether these original arguments of the interpreter start the command line."""
    words = iter(argv[1:])
    for word in words:
        if word == "-m":
            return next(words, "") in ("elk_ssm", "elk_ssm.cli")
        if word in ("-W", "-X"):
            next(words, "")
        elif word == "-c" or not word.startswith("-"):
            return os.path.basename(word) in ("elk-ssm", "elk-ssm.exe")
    return False


def refuse_too_little() -> None:
    """End this process with a line where it may not have the memory that JAX takes."""
    # Here, so that signals are heard before.
    from elk_ssm._limits import limits

    cores = os.cpu_count() or 1
    for limit in limits():
        least = _LEAST.get(limit.name, 0) + cores * _LEAST_PER_CORE.get(limit.name, 0)
        if limit.most < least:
            said = (
                f"elk-ssm: error: out of memory: {limit.name} gives this process "
                f"{limit.most / 1e9:.1f} GB, and JAX takes about {least / 1e9:.1f} GB "
                f"on {cores} cores.\n"
            )
            with contextlib.suppress(OSError):
                os.write(2, said.encode())
            os._exit(2)


def end(code: int) -> int:
    """End the process of the command line; return the code in any other.

    At once: what Python does in order at its end can be interrupted as well, and is by
    then no longer told in a line.
    """
    if not _heard:
        return code
    while _signalled:  # The thread that ends the process is on its way.
        time.sleep(0.1)
    with unless_ending():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def end_by_signals() -> None:
    """Let signals end this process at once, whatever it is doing."""
    numbers = [getattr(signal, name) for name in WORDS if hasattr(signal, name)]
    # What the parent had ignored, as nohup does, stays ignored.
    heard = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    _heard.extend(heard)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, lambda number, _: _signalled.append(number))
    threading.Thread(target=_wait, args=(reader, heard), daemon=True).start()


def _wait(reader: int, heard: list[int]) -> None:
    number = 0
    while number not in heard:  # The pipe hears of every signal with a handler.
        number = os.read(reader, 1)[0]
    _alive.acquire(timeout=1.0)  # Whoever holds it does something short, or hangs.
    for step in reversed(_undo.copy()):
        with contextlib.suppress(Exception):
            step()
    word = WORDS[signal.Signals(number).name]
    with contextlib.suppress(OSError):
        os.write(2, f"elk-ssm: {word}\n".encode())
    # Shutting down in order would wait for what runs, and can crash XLA.
    os._exit(128 + number)


def _show_cursor() -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, b"\r\x1b[2K\x1b[?25h")


# Elsewhere signals and pipes are not what they are on POSIX; `main` does what it can.
if os.name == "posix" and is_command_line(sys.orig_argv):
    end_by_signals()
    refuse_too_little()
