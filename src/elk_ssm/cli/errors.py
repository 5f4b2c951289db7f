"""The mistakes of the command line: one line for the person who made them."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class UsageError(Exception):
    """A mistake in what was asked for; the message is one line for the person."""


@contextlib.contextmanager
def file_errors(path: Path, what: str) -> Iterator[None]:
    """Turn the system's errors about a file into a `UsageError`: what, path, why."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror or error}.") from error


def needed(module: str, task: str, install: str) -> Any:
    """Import a module, or say in one line what needs it and what installs it.

    Args:
        module: its name, such as `"pandas"`.
        task: what needs it, such as `"reading .csv files"`.
        install: what pip installs, such as `"elk-ssm[data]"`.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise UsageError(f'{task} needs {package}: pip install "{install}".') from None
