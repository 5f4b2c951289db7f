"""Numbers from the command line: in range, or named in one line."""

import argparse
import math
from collections.abc import Callable

MAX_INT32 = 2**31 - 1


def integer(low: int, high: int = MAX_INT32) -> Callable[[str], int]:
    """Return a parser of integers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            expected = f"expected an integer from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
        return value

    return parse


def positive(text: str) -> float:
    """Parse a number above 0; infinity is one."""
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def tolerance(text: str) -> float:
    """Parse a relative tolerance: at 1 and above, any state would do."""
    value = _number(text)
    if not 0 < value < 1:
        expected = "expected a number above 0 and below 1"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
