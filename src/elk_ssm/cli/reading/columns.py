"""Which columns are data: those that were asked for, or all that are no index.

A name in the header wins over a number, unless the number is that of another column.
Without a choice, a column that counts or orders the rows is refused: an index that
pandas has written, or a column of times, would drive the cell.
"""

import numpy as np

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading.options import Reading
from elk_ssm.cli.reading.table import Table

NAMES_OF_INDICES = {"index", "time", "t", "date", "datetime", "timestamp", "year"}
NAMES_OF_INDICES |= {
    "sample",
    "frame",
    "row",
    "seconds",
    "sec",
    "ms",
    "id",
    "unnamed: 0",
}
# So many numbers do not rise by chance: one order of 10! is a rising one.
ENOUGH = 10


def choose_columns(table: Table, reading: Reading) -> tuple[list[int], int | None]:
    """Return the columns of the data, in order, and the one with the times.

    Raises:
        UsageError: for a column that is not there, or that could be another one.
    """
    time = None
    if reading.time_column is not None:
        time = _find(table, reading.time_column, reading.by, "--time-column")
    if reading.columns:
        chosen = [_find(table, x, reading.by, "--column") for x in reading.columns]
    else:
        chosen = [i for i in range(table.shape[1]) if i != time]
    if not chosen:
        raise UsageError(f"{table.path}: there is no column beside that of the times.")
    return chosen, time


def refuse_indices(table: Table, chosen: list[int], values: np.ndarray) -> None:
    """Raise `UsageError` if a column that nobody asked for looks like an index.

    Args:
        table: the file.
        chosen: which of its columns are taken.
        values: theirs, `(T, E)`.
    """
    if table.shape[1] < 2 or len(values) < 3:
        return
    steps = np.diff(values, axis=0)
    for place in np.flatnonzero((steps > 0).all(axis=0)):
        column, step = chosen[place], steps[:, place]
        even = bool(np.ptp(step) <= 1e-3 * step[0])
        known = table.names[column].lower() in NAMES_OF_INDICES
        if not (even or known or len(values) >= ENOUGH):
            continue
        counts = even and step[0] == 1 and values[0, place] in (0, 1)
        _refuse_index(table, column, [i for i in chosen if i != column], counts)


def _refuse_index(table: Table, column: int, others: list[int], counts: bool) -> None:
    name = table.name(column)
    unnamed = any(table.names) and not table.names[column]
    called = f"column {name} has no name and" if unnamed else f"column {name}"
    verb = "counts the rows, as an index does" if counts else "rises all the way"
    rest = " ".join(map(table.name, others)) if len(others) < 6 else "..."
    raise UsageError(
        f"{table.path}: {called} {verb}: if it is the time, say --time-column {name}; "
        f"to leave it out, --column {rest}; if it is data, --column with every column."
    )


def _find(table: Table, text: str, by: str | None, flag: str) -> int:
    """Return the place of a column."""
    named = [i for i, name in enumerate(table.names) if text and name == text]
    number = int(text) if text.isdecimal() and int(text) < len(table.names) else None
    if by == "number" or (by is None and not named):
        if number is not None:
            return number
    elif len(named) > 1:
        raise UsageError(
            f"{table.path}: several columns are named {text!r}; give a number with "
            "--by number."
        )
    elif named:
        if by is None and number is not None and number != named[0]:
            raise UsageError(
                f"{table.path}: {flag} {text} could be the name of column {named[0]} "
                f"or the number of column {table.name(number)}: say --by name or "
                "--by number."
            )
        return named[0]
    raise UsageError(f"{table.path}: no column {text!r}; {_known(table)}.")


def _known(table: Table) -> str:
    names = [name for name in table.names if name]
    known = f" and the names {', '.join(names[:20])}" if names else ""
    return f"there are the numbers 0 to {len(table.names) - 1}{known}"
