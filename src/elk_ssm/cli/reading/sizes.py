"""What is too large to read, seen in what a file says of itself.

A compressed file of a few kilobytes may hold terabytes, and a header may claim any
shape. Both are compared with half of this machine's memory, or of what the process may
have, before a byte of it is allocated.
"""

from math import prod
from pathlib import Path

from elk_ssm._limits import process_bytes
from elk_ssm._memory import in_words
from elk_ssm.cli.errors import UsageError

BYTES_OF_NUMBER = 8
# Text is held, decoded, parsed, and copied as numbers.
COPIES_OF_TEXT = 4


def room() -> int:
    """Bytes that one file may take in memory."""
    return process_bytes() // 2


def check_bytes(path: Path, needed: int) -> None:
    """Raise `UsageError` for a file that takes more memory than there may be."""
    limit = room()
    if needed > limit:
        raise UsageError(
            f"{path}: too large: it takes {in_words(needed)} in memory, and at most "
            f"{in_words(limit)} are used for a file here."
        )


def check_shape(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    """Raise `UsageError` for an array that does not fit, beside a copy as float64."""
    check_bytes(path, prod(shape) * (itemsize + BYTES_OF_NUMBER))
