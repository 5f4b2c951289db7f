"""Results out: whether a file can be written, and writing it whole or not at all."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from elk_ssm._start import unless_ending
from elk_ssm.cli.errors import UsageError, file_errors
from elk_ssm.cli.interrupts import removed_if_interrupted


def check_output(path: Path, suffix: str) -> None:
    """Raise `UsageError` now if `path` could not be written later."""
    if path.suffix != suffix:
        raise UsageError(f"{path}: expected an output file ending in {suffix}.")
    if path.is_dir():
        raise UsageError(f"{path}: is a directory.")
    # Replacing a file asks nothing of the file itself; its owner meant it to stay.
    mode = path.stat().st_mode if path.exists() else stat.S_IWUSR
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(f"{path}: the file is read-only.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the directory {path.parent} does not exist.")
    # A link may point into another directory.
    check_directory(path.resolve().parent, path)


def check_directory(directory: Path, path: Path) -> None:
    """Raise `UsageError` now if a file could not be made in `directory`.

    By making one: permissions say nothing of a full or read-only file system.
    """
    what = f"{path}: the directory {directory} is not writable"
    try:
        with _temporary(directory / "probe"):
            pass
    except OSError as error:
        raise UsageError(f"{what} ({error.strerror}).") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` only once it is whole.

    The bytes go to a temporary file in the same directory. An error leaves `path` as
    it was and removes the temporary file; so does an interrupt.
    """
    target = path.resolve()
    with file_errors(path, "cannot write"), _temporary(target) as (temporary, file):
        yield file
        _finish(file)
        _rename(temporary, target)


def write_files(files: dict[Path, bytes]) -> None:
    """Write files that are whole already: all of them, or none.

    No name is taken before all bytes are on the disk.
    """
    with contextlib.ExitStack() as open_files:
        written = []
        for path, content in files.items():
            target = path.resolve()
            open_files.enter_context(file_errors(path, "cannot write"))
            temporary, file = open_files.enter_context(_temporary(target))
            file.write(content)
            _finish(file)
            written.append((path, temporary, target))
        with unless_ending():
            for path, temporary, target in written:
                with file_errors(path, "cannot write"):
                    _rename(temporary, target)


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write named arrays to an `.npz` file, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file beside `target` that is gone at the end, unless it was renamed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with removed_if_interrupted(temporary):
        with unless_ending():
            file = open(temporary, "xb")  # noqa: SIM115 (closed below)
        try:
            with contextlib.closing(file):
                yield temporary, file
        finally:
            temporary.unlink(missing_ok=True)


def _finish(file: IO[bytes]) -> None:
    """Have everything on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _rename(temporary: Path, target: Path) -> None:
    with unless_ending():
        os.replace(temporary, target)
