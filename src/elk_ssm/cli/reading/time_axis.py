"""The times of the samples: all there, each later than the one before."""

import numpy as np

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading.recording import instant
from elk_ssm.cli.reading.table import Table


def read_times(table: Table, column: int) -> np.ndarray:
    """Return the times `(T,)`, float64 or datetime64.

    Raises:
        UsageError: if a time is missing, or is not later than the one before.
    """
    times = table.times(column)
    gap = np.isnat(times) if times.dtype.kind == "M" else ~np.isfinite(times)
    for row in np.flatnonzero(gap)[:1]:
        where = table.where(int(row), column)
        raise UsageError(f"{table.path}: {where}: there is no time.")
    late = np.diff(times) > np.zeros((), np.diff(times).dtype)
    for row in np.flatnonzero(~late)[:1]:
        where = table.where(int(row) + 1, column)
        before, this = (instant(time) for time in times[row : row + 2])
        raise UsageError(
            f"{table.path}: {where}: {this} is not after the one before it, {before}; "
            "there must be one row for a time, sorted by time."
        )
    return times
