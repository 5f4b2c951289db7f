"""Words out: one line at a time, whole, and an error where nobody can read them.

On a terminal a line is wrapped between words, never cut; elsewhere it stays one line.
"""

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator

from elk_ssm._start import unless_ending

CLOSED_PIPE = 141  # 128 + SIGPIPE, as of every program whose reader has gone.


class OutputLostError(Exception):
    """Standard output takes no more; `code` is the exit code to end with."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror or error}.")
        self.code = CLOSED_PIPE if isinstance(error, BrokenPipeError) else 2


@contextlib.contextmanager
def to_standard_output() -> Iterator[None]:
    """Print in here: what cannot be written, or flushed, is an `OutputLostError`."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise OutputLostError(error) from error


def say(text: str) -> None:
    """Print a line to standard output, now."""
    with to_standard_output(), unless_ending():
        print(_wrapped(text, sys.stdout))


def complain(text: str) -> None:
    """Print a line to standard error, if anybody can read it."""
    with contextlib.suppress(OSError), unless_ending():
        print("elk-ssm:", *text.split(), file=sys.stderr, flush=True)


def shows_progress(asked: bool | None) -> bool:
    """Whether to show progress: as asked, or on a terminal."""
    if asked is not None:
        return asked
    return sys.stderr is not None and sys.stderr.isatty()


def let_go_of_standard_output() -> None:
    """Have nothing left to flush when the interpreter ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _wrapped(text: str, stream: object) -> str:
    if stream is None or not getattr(stream, "isatty", lambda: False)():
        return text
    width = max(shutil.get_terminal_size().columns, 20)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
