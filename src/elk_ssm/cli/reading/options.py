"""How to read a file: one value, and the flags that make it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from elk_ssm.cli.reading.gaps import GAP_POLICIES

DELIMITERS = {"tab": "\t", r"\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}
TEXT_FLAGS = ("delimiter", "decimal", "header")


@dataclass(frozen=True)
class Reading:
    """How to read a file; None leaves a question to the file.

    Attributes:
        columns: names or numbers (from 0) of the columns, in this order; all if empty.
        by: whether `columns` and `time_column` are names or numbers, where both fit.
        time_column: name or number of the column with the times.
        transpose: whether rows are channels (True) or samples (False).
        key: which array of a file of several.
        delimiter: what separates fields of a text file; `" "` is any white space.
        decimal: the decimal point of a text file.
        header: whether the first line of a text file has names.
    """

    columns: tuple[str, ...] = ()
    by: Literal["name", "number"] | None = None
    time_column: str | None = None
    transpose: bool | None = None
    key: str | None = None
    delimiter: str | None = None
    decimal: str | None = None
    header: bool | None = None


def add_reading_arguments(
    add: Callable[..., Any], policies: Sequence[str] = GAP_POLICIES
) -> None:
    """Add the flags to a command.

    Args:
        add: the parser's `add_argument`.
        policies: what `--missing` may say; the first is its default.
    """
    either = argparse.BooleanOptionalAction
    add(
        "--column",
        nargs="+",
        default=[],
        metavar="NAME_OR_NUMBER",
        help="columns to use, by name or number from 0 (default: all)",
    )
    add(
        "--by",
        choices=("name", "number"),
        help="what --column and --time-column are, where they could be either",
    )
    add(
        "--time-column",
        metavar="NAME_OR_NUMBER",
        help="column with the times, numbers or ISO dates; kept apart from the data",
    )
    add(
        "--missing", choices=policies, default=policies[0], help=_missing_help(policies)
    )
    add(
        "--transpose",
        action=either,
        default=None,
        help="rows are channels (or surely samples); asked for where T < channels",
    )
    add("--key", metavar="NAME", help="which array of an .npz, .mat or .h5 file")
    add(
        "--delimiter",
        type=_delimiter,
        metavar="CHAR",
        help="between the fields of a text file: a character, or tab, space",
    )
    add("--decimal", choices=(".", ","), help="decimal point of a text file")
    add("--header", action=either, default=None, help="the first line has names")


def reading_of(args: argparse.Namespace) -> Reading:
    """Return what the flags say."""
    names = ("by", "time_column", "transpose", "key", *TEXT_FLAGS)
    given = {name: getattr(args, name) for name in names}
    return Reading(columns=tuple(args.column), **given)


def _missing_help(policies: Sequence[str]) -> str:
    return f"what to do about gaps (default: {policies[0]})"


def _delimiter(text: str) -> str:
    found = DELIMITERS.get(text, text)
    if len(found) != 1 or found.isalnum() or found in "\"'.+-\n\r":
        expected = "expected one character that is no part of a number, tab or space"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    return found
